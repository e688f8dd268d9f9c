//! Where the time of a step goes: each op's time beside the work and the bytes that its plan counts, and which of the device's two
//! ceilings (arithmetic, memory) it could reach. [`StepProfile::measure`] times, [`Peaks`] are the ceilings, the rest shows.

mod peaks;
mod picture;
mod show;

pub use peaks::Peaks;
pub use picture::to_svg;

use crate::device::{DType, Element};
use crate::error::Result;
use crate::model::{Mode, Network, PathwayInput};
use crate::optimizer::SgdConfig;
use crate::shape::StepShape;

/// One op of a step.
#[derive(Clone, Debug)]
pub struct OpProfile {
    /// What it is, as [`OpKind`](crate::model::plan::OpKind) has it; `Update` for the optimizer's step.
    pub kind: String,
    /// The tensor that it is about.
    pub name: String,
    /// The kernels that it launches; none on the CPU.
    pub kernels: Vec<String>,
    /// Median over the repeats.
    pub seconds: f64,
    /// FLOPs of its plan: convolutions, attention, projections.
    pub flops: u64,
    /// Bytes that must move at least once, by its plan.
    pub bytes: u64,
}

/// A step at one shape.
#[derive(Clone, Debug)]
pub struct StepProfile {
    /// Training or evaluation.
    pub mode: Mode,
    /// The shape.
    pub shape: StepShape,
    /// How often the step was run for the times.
    pub num_repeats: usize,
    /// Its ops in order, and the optimizer's step.
    pub ops: Vec<OpProfile>,
}

impl StepProfile {
    /// Times every op of a prepared step on clips of noise: median of `num_repeats` (at least 1) after one step that is not counted.
    /// On a GPU between events, without waiting in between. The parameters change: a network is of no other use afterwards.
    ///
    /// # Errors
    /// A shape that was not prepared; what the ops return.
    pub fn measure(network: &mut Network, mode: Mode, shape: StepShape, num_repeats: usize) -> Result<StepProfile> {
        network.inputs(mode, shape)?.iter().enumerate().try_for_each(|(i, input)| write_noise(i, input))?;
        let launched = network.launches(mode, shape)?;
        let mut update = update_ms(network, mode)?;
        let mut times: Vec<Vec<f64>> = vec![vec![]; launched.len()];
        let mut update_times = vec![];
        for _ in 0..num_repeats.max(1) {
            for (all, ms) in times.iter_mut().zip(network.op_times_ms(mode, shape)?) {
                all.push(ms);
            }
            update = update_ms(network, mode)?;
            update_times.extend(update);
        }
        let storage = network.plan(mode, shape)?.lowering.dtype();
        let of_step = network.plans().filter(|plan| plan.mode == mode && plan.shape == shape);
        let mut ops: Vec<OpProfile> = vec![];
        for (((plan, op), launched), mut times) in
            of_step.flat_map(|plan| plan.ops().map(move |op| (plan, op))).zip(launched).zip(times)
        {
            let cost = plan.cost_of(op);
            ops.push(OpProfile {
                kind: format!("{:?}", op.kind()),
                name: plan.tensors[op.subject()].name.clone(),
                kernels: launched.into_iter().map(|l| l.kernel).collect(),
                seconds: median(&mut times) / 1e3,
                flops: cost.flops,
                bytes: cost.bytes,
            });
        }
        if update.is_some() {
            // Parameters and momenta are read and written, gradients read, and where there are 16-bit copies they are written.
            let copy = storage.size_bytes() % 4;
            ops.push(OpProfile {
                kind: "Update".into(),
                name: "all parameters".into(),
                kernels: vec![],
                seconds: median(&mut update_times) / 1e3,
                flops: 0,
                bytes: (network.model().params_len * (5 * 4 + copy)) as u64,
            });
        }
        Ok(StepProfile { mode, shape, num_repeats: num_repeats.max(1), ops })
    }

    /// Sum of all ops.
    pub fn seconds(&self) -> f64 {
        self.ops.iter().map(|op| op.seconds).sum()
    }
}

/// Milliseconds of the optimizer's step, where there is one.
fn update_ms(network: &mut Network, mode: Mode) -> Result<Option<f64>> {
    if mode == Mode::Eval {
        return Ok(None);
    }
    let start = network.stream().record()?;
    network.sgd_step(0.0, &SgdConfig::default())?;
    let end = network.stream().record()?;
    start.elapsed_ms(&end).map(Some)
}

/// Values between -1 and 1 that follow from their place.
fn write_noise(pathway: usize, input: &PathwayInput) -> Result<()> {
    fn write<T: Element>(pathway: usize, input: &PathwayInput, of: impl Fn(f32) -> T) -> Result<()> {
        let value = |i: usize| {
            let bits = (i as u32 + 1).wrapping_mul(0x9e37_79b9) ^ (pathway as u32).wrapping_mul(0x85eb_ca6b);
            of((bits.wrapping_mul(0xc2b2_ae35) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        let memory = input.tensor.memory();
        memory.write(&(0..memory.len()).map(value).collect::<Vec<T>>())
    }
    match input.tensor.dtype() {
        DType::Bf16 => write(pathway, input, half::bf16::from_f32),
        DType::F16 => write(pathway, input, half::f16::from_f32),
        _ => write(pathway, input, |v| v),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
