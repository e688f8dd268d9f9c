//! Every distinct convolution of the networks that the project is measured by, at the shapes of their multigrid schedules: taken
//! from the networks' own plans, so that a layer that changes there changes here.

use serde_json::{Value, json};
use vcycle::config::Config;
use vcycle::device::{DType, Device};
use vcycle::model::plan::fused::{FusedOp, Load, LoadGrad, PlannedMask, StoreGrad};
use vcycle::model::plan::{Plan, StepOp};
use vcycle::model::{Lowering, Mode, Model, ModelConfig};
use vcycle::multigrid::Schedule;
use vcycle::ops::conv3d::{Conv3d, Direction};
use vcycle::shape::StepShape;
use vcycle::{Error, Result};

/// Stored channels of a clip.
const CLIP_CHANNELS: usize = 4;

/// A network as one of the shipped configurations has it.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub name: &'static str,
    yaml: &'static str,
    /// Keys and values.
    overrides: &'static [&'static str],
}

const SLOWFAST: &str = include_str!("../../../configs/kinetics/SLOWFAST_8x8_R50_stepwise_multigrid.yaml");
const I3D_NLN: &str = include_str!("../../../configs/kinetics/I3D_NLN_8x8_R50_stepwise_multigrid.yaml");

/// The networks.
pub const NETWORKS: [Measured; 3] = [
    Measured { name: "SlowFast-8x8-R50", yaml: SLOWFAST, overrides: &[] },
    Measured { name: "I3D-8x8-R50", yaml: I3D_NLN, overrides: &["NONLOCAL.LOCATION", "[[[]], [[]], [[]], [[]]]"] },
    Measured { name: "I3D-NLN-8x8-R50", yaml: I3D_NLN, overrides: &[] },
];

/// The network of that name.
pub fn network(name: &str) -> Result<Measured> {
    NETWORKS.into_iter().find(|n| n.name == name).ok_or_else(|| {
        let known = NETWORKS.map(|n| n.name).join(", ");
        Error::Config(format!("network: expected one of {known}; got {name}"))
    })
}

impl Measured {
    /// Of one GPU, with 8 clips as batch norm wants them, in the standard form: what others run instead is timed as their own ops.
    fn config(&self) -> Result<Config> {
        let form = ["VCYCLE.GRAM_BATCH_NORM", "never", "VCYCLE.FUSED_CONV_BACKWARD", "False"];
        let common: Vec<_> = ["TRAIN.BATCH_SIZE", "8", "NUM_GPUS", "1"].into_iter().chain(form).collect();
        let overrides = self.overrides.iter().chain(&common);
        Config::parse(self.yaml, self.name, &overrides.map(ToString::to_string).collect::<Vec<_>>())
    }

    fn model(&self) -> Result<Model> {
        let mut model = Model::new(&ModelConfig::from_config(&self.config()?)?)?;
        model.store_input_channels(CLIP_CHANNELS);
        Ok(model)
    }

    /// The shapes of the long and the short cycle together, the default shape first; one for each pair of frames and crop.
    pub fn grids(&self) -> Result<Vec<StepShape>> {
        let mut grids: Vec<StepShape> = vec![];
        for shape in Schedule::new(&self.config()?)?.step_shapes() {
            if !grids.iter().any(|g| (g.frames, g.height_px) == (shape.frames, shape.height_px)) {
                grids.push(shape);
            }
        }
        grids.sort_by_key(|g| std::cmp::Reverse((g.frames, g.height_px)));
        Ok(grids)
    }

    /// The convolutions of a training step at `grid`, each distinct one once, in the order of the step.
    pub fn rows(&self, grid: StepShape) -> Result<Vec<Row>> {
        let model = self.model()?;
        let stream = Device::Cpu.stream()?;
        let lowering = Lowering::Fused(DType::Bf16);
        let plan = Plan::with_lowering(&stream, &model, grid, Mode::Train, CLIP_CHANNELS, lowering)?;
        let mut rows: Vec<Row> = vec![];
        for op in plan.ops() {
            let Some((conv, direction, filter, form)) = convolution(op) else { continue };
            let filter = &model.params[filter];
            let plain = Row {
                network: self.name,
                grid,
                name: filter.name.trim_end_matches(".weight").to_string(),
                op: conv,
                c_in: filter.shape[1] * conv.groups,
                direction,
                form: None,
                count: 1,
                bytes: plain_bytes(&conv, direction),
            };
            let fused = Row { form: Some(form), bytes: plan.cost_of(op).bytes, ..plain.clone() };
            for row in [plain, fused] {
                match rows.iter_mut().find(|r| r.is_same_work(&row)) {
                    Some(known) => known.count += 1,
                    None => rows.push(row),
                }
            }
        }
        Ok(rows)
    }
}

/// A convolution to be timed, by itself or as a step runs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub network: &'static str,
    pub grid: StepShape,
    /// The first layer of the network that is this convolution.
    pub name: String,
    pub op: Conv3d,
    /// Channels of the input that are not padding.
    pub c_in: usize,
    pub direction: Direction,
    /// What is fused to it; nothing, where it is timed by itself.
    pub form: Option<Form>,
    /// How often a step runs it.
    pub count: usize,
    /// Bytes that must move at least once, in 16-bit types.
    pub bytes: u64,
}

/// What a convolution of a step does beside convolving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    pub input: Input,
    /// A bias is added, or its gradient formed.
    pub bias: bool,
    /// The statistics of the output are formed.
    pub statistics: bool,
    /// The gradient of the output is formed on load, from that of the batch norm after it.
    pub grad_norm: bool,
    /// And stored on the way, for grad_filter.
    pub stores_grad: bool,
    /// The gradient is added to what is there.
    pub accumulate: bool,
    pub mask: MaskOf,
    /// Batch norms before the convolution whose gradient sums are formed.
    pub norms: usize,
}

/// How the input is made on load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Input {
    #[default]
    Stored,
    /// A batch norm and its ReLU.
    Normalised,
    /// The end of a residual block.
    Join {
        /// Whether the shortcut has a batch norm.
        normalises_shortcut: bool,
        /// Whether the block's output is stored on the way.
        stores: bool,
    },
}

/// Where the ReLU before the convolution was open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaskOf {
    #[default]
    None,
    Output,
    Recomputed,
}

impl Input {
    fn of(load: &Load) -> Input {
        match (&load.join, load.scale_shift) {
            (Some(join), _) => {
                Input::Join { normalises_shortcut: join.residual_scale_shift.is_some(), stores: join.output.is_some() }
            }
            (None, Some(_)) => Input::Normalised,
            (None, None) => Input::Stored,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Input::Stored => "stored",
            Input::Normalised => "norm",
            Input::Join { normalises_shortcut: false, stores: false } => "join",
            Input::Join { normalises_shortcut: false, stores: true } => "join_store",
            Input::Join { normalises_shortcut: true, stores: false } => "join_norm",
            Input::Join { normalises_shortcut: true, stores: true } => "join_norm_store",
        }
    }
}

impl Form {
    fn of_gradient(grad_output: &LoadGrad) -> Form {
        Form { grad_norm: grad_output.norm.is_some(), ..Form::default() }
    }

    fn storing(self, store: &StoreGrad) -> Form {
        let mask = match store.mask {
            PlannedMask::None => MaskOf::None,
            PlannedMask::Output(_) => MaskOf::Output,
            PlannedMask::Recomputed(..) => MaskOf::Recomputed,
        };
        Form { accumulate: store.accumulate, mask, norms: store.norms.len(), ..self }
    }

    fn to_json(self) -> Value {
        let mask = ["none", "output", "recomputed"][self.mask as usize];
        json!({
            "input": self.input.name(), "bias": self.bias, "statistics": self.statistics, "grad_norm": self.grad_norm,
            "stores_grad": self.stores_grad, "accumulate": self.accumulate, "mask": mask, "norms": self.norms,
        })
    }
}

/// The convolution that `op` is, if it is one: with its direction, filter and form.
fn convolution(op: &StepOp) -> Option<(Conv3d, Direction, usize, Form)> {
    let StepOp::Fused(op) = op else { return None };
    match op {
        FusedOp::Conv { op, filter, bias, input, statistics, .. } => {
            let bias = bias.is_some();
            let form = Form { input: Input::of(input), bias, statistics: statistics.is_some(), ..Form::default() };
            Some((*op, Direction::Forward, *filter, form))
        }
        FusedOp::ConvGradInput { op, filter, grad_output, store_dy, store, .. } => {
            let form = Form { stores_grad: store_dy.is_some(), ..Form::of_gradient(grad_output) };
            Some((*op, Direction::GradInput, *filter, form.storing(store)))
        }
        FusedOp::ConvGradFilter { op, filter, bias, input, grad_output, .. } => {
            let form = Form { input: Input::of(input), bias: bias.is_some(), ..Form::of_gradient(grad_output) };
            Some((*op, Direction::GradFilter, *filter, form))
        }
        _ => None,
    }
}

/// Input, output and filter once, in 16 bits; the filter's gradient in 32.
fn plain_bytes(op: &Conv3d, direction: Direction) -> u64 {
    let filter_bytes = if direction == Direction::GradFilter { 4 } else { 2 };
    let activations = op.input.num_elements() + op.output().num_elements();
    (2 * activations + filter_bytes * op.filter_len()) as u64
}

/// forward, grad_input or grad_filter.
pub fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => "forward",
        Direction::GradInput => "grad_input",
        Direction::GradFilter => "grad_filter",
    }
}

impl Row {
    fn is_same_work(&self, other: &Row) -> bool {
        (self.op, self.c_in, self.direction, self.form) == (other.op, other.c_in, other.direction, other.form)
    }

    /// plain or fused.
    pub fn form_name(&self) -> &'static str {
        if self.form.is_some() { "fused" } else { "plain" }
    }

    /// As in criterion's ids: `conv3d_forward/SlowFast-8x8-R50/8x32x224/s2.pathway0_res0.branch2.a/plain`.
    pub fn id(&self) -> String {
        let direction = direction_name(self.direction);
        format!("conv3d_{direction}/{}/{}/{}/{}", self.network, self.grid, self.name, self.form_name())
    }

    /// FLOPs that count: without those of channels that are padding.
    pub fn flops(&self) -> u64 {
        2 * self.op.macs() / self.op.input.c as u64 * self.c_in as u64
    }

    /// One object, with all that a peer needs to do the same work.
    pub fn to_json(&self) -> Value {
        let (op, i) = (&self.op, self.op.input);
        json!({
            "id": self.id(), "network": self.network, "grid": self.grid.to_string(), "splits": self.grid.splits,
            "name": self.name, "direction": direction_name(self.direction), "form": self.form_name(),
            "fusion": self.form.map(Form::to_json), "count": self.count,
            "input": [i.n, i.t, i.h, i.w, i.c], "c_in": self.c_in, "c_out": op.c_out, "filter": op.filter,
            "stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups,
            "bytes": self.bytes, "flops": self.flops(),
        })
    }
}
