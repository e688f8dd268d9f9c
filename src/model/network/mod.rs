//! A network in device memory. Weights know no shape: [`Network::prepare`] plans every shape of a run and allocates once;
//! after that a step of any prepared shape allocates no device memory and a change of shape costs nothing. On the CPU executor a step
//! takes nothing from the heap either, once each shape has run.
//!
//! ```no_run
//! use vcycle::device::Device;
//! use vcycle::labels::Labels;
//! use vcycle::model::{Arch, Mode, Model, ModelConfig, Network, StepInputs, StepTargets};
//! use vcycle::optimizer::SgdConfig;
//! use vcycle::shape::StepShape;
//!
//! # fn main() -> vcycle::Result<()> {
//! let model = Model::new(&ModelConfig::new(Arch::SlowFast, 50, 400))?;
//! let mut network = Network::new(&Device::Cpu, model, 0)?;
//! let (coarse, fine) = (StepShape::square(8, 8, 112, 1), StepShape::square(1, 32, 224, 1));
//! network.prepare(&[coarse, fine], &[fine])?;
//! for (step, shape) in [coarse, fine].into_iter().enumerate() {
//!     for input in network.inputs(Mode::Train, shape)? { /* resample into input.tensor */ }
//!     let labels = Labels::Classes(vec![0; shape.clips]);
//!     let inputs = StepInputs { targets: StepTargets::Labels(&labels), step_idx: step as u64, lr: 0.1 };
//!     network.train_step(shape, &inputs, &SgdConfig::default())?; // queued: the device works on it meanwhile
//! }
//! while let Some(results) = network.take_results()? {
//!     println!("{:?}, skipped: {}", results.losses, results.state.skipped);
//! }
//! # Ok(())
//! # }
//! ```

mod block;
mod execute;
mod fused;
mod gram;
mod graphs;
mod kernel_arrays;
mod launches;
mod poison;
mod precise;
mod prepare;
mod profile;
mod snapshot;
mod state;
mod train_step;
mod update;

pub use graphs::Captured;
pub use precise::PreciseStatistics;
pub use profile::Profile;
pub use snapshot::Snapshot;
pub use state::{LossScale, NamedArray, OptimizerState, fold_sub_batch_norm};
pub use train_step::{StepInputs, StepResults, StepTargets};

use std::collections::VecDeque;

use crate::device::{Buffer, DType, Device, Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::init::initial_values;
use crate::model::layers::Model;
use crate::model::plan::{Lowering, Mode, Plan};
use crate::ops::batch_norm;
use crate::shape::StepShape;
use block::StepBlock;
use graphs::Work;
use kernel_arrays::KernelArrays;
use prepare::PreparedStep;
use train_step::Pending;
pub(crate) use update::FIRST_LOSS_SCALE;
use update::{Update, first_state};

/// The input of one pathway of a step: where `resample` writes.
#[derive(Clone, Debug)]
pub struct PathwayInput {
    /// `[n][frames][h][w][stored channels]`.
    pub tensor: Tensor,
    /// Which of the clip's T frames its frames are.
    pub frame_indices: Vec<u32>,
}

/// Parameters, gradients, momenta and running statistics of a [`Model`] on a device, one flat f32 array each, and the
/// prepared steps. Where kernels run, activations, their gradients and a copy of the parameters have 16 bits.
pub struct Network {
    model: Model,
    stream: Stream,
    lowering: Lowering,
    seed: u64,
    arrays: Arrays,
    kernel: Option<KernelArrays>,
    /// What training steps are told and tell.
    block: StepBlock,
    update: Option<Update>,
    steps: Vec<PreparedStep>,
    workspace: Slice,
    /// Of steps whose results were taken.
    batches_tracked: u64,
    /// Steps whose results were not, the oldest first.
    pending: VecDeque<Pending>,
    /// Whether the targets of the step are shared among classes, for cross-entropy.
    is_soft: bool,
    profile: Option<Profile>,
    /// Bytes that the network may allocate.
    memory_limit: Option<usize>,
    /// Whether memory that nothing may read is filled with NaN before each op.
    is_poisoned: bool,
    uses_graphs: bool,
    captured: Option<Captured>,
}

/// The flat arrays and their parts by parameter.
struct Arrays {
    params: Slice,
    /// Gradients and momenta; empty until a training shape is prepared.
    grads: Slice,
    momentum: Slice,
    param: Vec<Slice>,
    grad: Vec<Slice>,
    /// Running mean and variance of each norm.
    norm: Vec<(Slice, Slice)>,
}

impl Network {
    /// Puts `model` on `device` with first values drawn from `seed`. Nothing can run before [`Network::prepare`].
    pub fn new(device: &Device, model: Model, seed: u64) -> Result<Network> {
        Network::with_storage(device, model, seed, DType::Bf16)
    }

    /// [`Network::new`] with another 16-bit type than bf16 for activations, their gradients and a copy of the parameters, where kernels run.
    /// With f16 the loss is scaled, by a factor that follows the gradients.
    ///
    /// # Errors
    /// As [`Network::new`]; a type that is neither bf16 nor f16.
    pub fn with_storage(device: &Device, mut model: Model, seed: u64, storage: DType) -> Result<Network> {
        if !matches!(storage, DType::Bf16 | DType::F16) {
            return Err(Error::unsupported(
                "network",
                format!("kernels store activations in Bf16 or F16, not in {storage:?}"),
            ));
        }
        let (stream, lowering) = (device.stream()?, Lowering::with_storage(device, storage));
        if lowering != Lowering::Plain {
            model.store_input_channels(model.config.input_channels.next_multiple_of(4));
        }
        let params = flat(device, model.params_len)?;
        let running = flat(device, model.running_len)?;
        let param = model.params.iter().map(|p| params.part(p.offset, p.stored_len())).collect::<Result<Vec<_>>>()?;
        let norm = model
            .norms
            .iter()
            .map(|n| Ok((running.part(n.mean_offset, n.c)?, running.part(n.var_offset, n.c)?)))
            .collect::<Result<Vec<_>>>()?;
        for (info, slice) in model.params.iter().zip(&param) {
            slice.write(&info.with_gaps(initial_values(info, seed)))?;
        }
        for (mean, var) in &norm {
            mean.write(&vec![0f32; mean.len()])?;
            var.write(&vec![1f32; var.len()])?;
        }
        let (grads, momentum, workspace) = (flat(device, 0)?, flat(device, 0)?, flat(device, 0)?);
        let arrays = Arrays { params, grads, momentum, param, grad: vec![], norm };
        let kernel = match lowering {
            Lowering::Plain => None,
            Lowering::Fused(dtype) => Some(KernelArrays::new(device, &model, dtype)?),
        };
        let mut network = Network {
            model,
            stream,
            lowering,
            seed,
            arrays,
            kernel,
            block: StepBlock::new(device, 0, 0, &first_state(lowering, false))?,
            update: None,
            steps: vec![],
            workspace,
            batches_tracked: 0,
            pending: VecDeque::new(),
            is_soft: false,
            profile: None,
            memory_limit: None,
            is_poisoned: false,
            uses_graphs: true,
            captured: None,
        };
        network.values_changed()?;
        Ok(network)
    }

    /// The layers.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    /// How layers become ops, and what type activations have.
    pub fn lowering(&self) -> Lowering {
        self.lowering
    }

    /// The queue on which all work of the network runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Channels that are stored a pixel of the input: 4 on GPUs, whose loads want powers of two, otherwise the clip's 3.
    pub fn stored_channels(&self) -> usize {
        self.model.values[0].c
    }

    /// The plans of all prepared steps; those of a step's micro-batches follow one another.
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        self.steps.iter().map(|step| &step.plan)
    }

    /// The plan of a prepared shape; that of its first micro-batch where it has several.
    pub fn plan(&self, mode: Mode, shape: StepShape) -> Result<&Plan> {
        Ok(&self.step(mode, shape)?.plan)
    }

    /// The inputs of a prepared shape, slow pathway first. They share memory with those of other shapes: fill them, run the
    /// step, then fill the next.
    pub fn inputs(&self, mode: Mode, shape: StepShape) -> Result<&[PathwayInput]> {
        Ok(&self.step(mode, shape)?.inputs)
    }

    /// Forward and backward of one batch, waited for; gradients replace those of the step before. Returns the loss of each clip; the
    /// gradients are those of its mean. Neither parameters nor running statistics change. `step_idx` selects the dropout mask. Where a
    /// batch-norm statistic is not finite, all losses are NaN: a ReLU on load may have hidden what went wrong.
    ///
    /// # Errors
    /// A shape that was not prepared, a wrong number of labels, a label that is no class, sets of classes where the model's
    /// loss takes one class a clip.
    pub fn forward_backward(&mut self, shape: StepShape, labels: impl Into<Labels>, step_idx: u64) -> Result<Vec<f32>> {
        self.forward_backward_of(shape, StepTargets::Labels(&labels.into()), step_idx)
    }

    /// [`Network::forward_backward`] with a target for every class of every clip, `[clips][classes]` (mixup, label smoothing).
    ///
    /// # Errors
    /// A shape that was not prepared, a wrong number of targets.
    pub fn forward_backward_soft(&mut self, shape: StepShape, targets: &[f32], step_idx: u64) -> Result<Vec<f32>> {
        self.forward_backward_of(shape, StepTargets::Soft(targets), step_idx)
    }

    fn forward_backward_of(&mut self, shape: StepShape, targets: StepTargets<'_>, step_idx: u64) -> Result<Vec<f32>> {
        let step = self.step_idx(Mode::Train, shape)?;
        self.upload_inputs(step, &StepInputs { targets, step_idx, lr: 0.0 })?;
        self.run_training(step)?;
        self.read_losses(step)
    }

    /// The forward half of [`Network::forward_backward`]: batch statistics, logits and the loss of each clip.
    pub fn forward_train(&mut self, shape: StepShape, labels: impl Into<Labels>, step_idx: u64) -> Result<Vec<f32>> {
        let step = self.queue_forward_train(shape, &labels.into(), step_idx)?;
        self.read_losses(step)
    }

    /// [`Network::forward_train`] without waiting. Returns the number of the prepared step.
    pub(crate) fn queue_forward_train(&mut self, shape: StepShape, labels: &Labels, step_idx: u64) -> Result<usize> {
        let step = self.step_idx(Mode::Train, shape)?;
        self.upload_inputs(step, &StepInputs { targets: StepTargets::Labels(labels), step_idx, lr: 0.0 })?;
        self.launch_repeated(step, Work::Forward)?;
        Ok(step)
    }

    fn queue_forward(&mut self, step: usize) -> Result<()> {
        self.micro_batches(step).try_for_each(|part| self.run(part, execute::Pass::Forward))
    }

    fn read_losses(&self, step: usize) -> Result<Vec<f32>> {
        let (shape, skip) = (self.steps[step].plan.shape, self.block.skip.read::<u32>()?[0]);
        let [losses, _] = self.block.losses_and_logits(shape.clips, self.model.config.num_classes)?;
        let losses = losses.read::<f32>()?;
        Ok(if skip & batch_norm::SKIP_BIT == 0 { losses } else { vec![f32::NAN; losses.len()] })
    }

    /// Logits of the last training step at `shape`, `[n][classes]`.
    pub fn train_logits(&self, shape: StepShape) -> Result<Vec<f32>> {
        self.step(Mode::Train, shape)?;
        let [_, logits] = self.block.losses_and_logits(shape.clips, self.model.config.num_classes)?;
        logits.read::<f32>()
    }

    /// Moves the running statistics by the batch statistics of the last training step at `shape`, with BN.MOMENTUM.
    /// Without effect where they are fixed (MODEL.FROZEN_BN).
    pub fn update_running_statistics(&mut self, shape: StepShape) -> Result<()> {
        if self.model.config.frozen_bn {
            return Ok(());
        }
        self.move_running_statistics(self.step_idx(Mode::Train, shape)?, None)?;
        self.batches_tracked += 1;
        self.running_changed();
        Ok(())
    }

    /// Forward with running statistics. Returns the class scores `[n][classes]` as the model's `head_activation` makes them. At a
    /// larger grid than its `head_grid` the head looks at every window of that size and returns the mean of their scores. A batch with fewer clips than the
    /// prepared shape may leave the rest of the input as it is, clips do not influence each other.
    pub fn forward_eval(&mut self, shape: StepShape) -> Result<Vec<f32>> {
        let step = self.queue_forward_eval(shape)?;
        step.tensors[step.plan.result].read::<f32>()
    }

    /// [`Network::forward_eval`] without waiting.
    fn queue_forward_eval(&mut self, shape: StepShape) -> Result<&PreparedStep> {
        let step = self.step_idx(Mode::Eval, shape)?;
        self.refresh_running_tables()?;
        self.launch_repeated(step, Work::Forward)?;
        Ok(&self.steps[step])
    }

    /// Queues an evaluation of the clips in [`Network::inputs`]; returns where its logits will lie, `[n][classes]`, until the next step.
    pub(crate) fn queue_eval_logits(&mut self, shape: StepShape) -> Result<Slice> {
        let step = self.queue_forward_eval(shape)?;
        let logits = &step.tensors[step.plan.logits];
        logits.memory().part(0, logits.shape().num_elements())
    }

    /// Logits of the last evaluation at `shape`, `[n][classes]`; of every window where there are several, `[n][windows][classes]`.
    pub fn eval_logits(&self, shape: StepShape) -> Result<Vec<f32>> {
        let step = self.step(Mode::Eval, shape)?;
        step.tensors[step.plan.logits].read::<f32>()
    }

    /// A value of the last step at `shape` by PySlowFast's name of the stage and the pathway, such as `s2.0` or
    /// `s2_fuse.0`. Only of use after [`Network::forward_train`]: other passes reuse its memory.
    pub fn stage(&self, mode: Mode, shape: StepShape, name: &str) -> Result<&Tensor> {
        let step = self.step(mode, shape)?;
        if step.plan.is_micro_batch() {
            return Err(Error::unsupported(format!("stage {name}"), "the step runs in micro-batches"));
        }
        let value = self.model.stages.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        let value =
            value.ok_or_else(|| Error::unsupported(format!("stage {name}"), "the model has none of that name"))?;
        let never = || Error::unsupported(format!("stage {name}"), "the fused form has it in no memory by itself");
        step.tensors.get(step.plan.values[value]).ok_or_else(never)
    }

    /// l2 norm of all gradients of the last step.
    pub fn grad_norm(&self) -> Result<f64> {
        let grads = self.arrays.grads.read::<f32>()?;
        Ok(grads.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt())
    }

    fn step_idx(&self, mode: Mode, shape: StepShape) -> Result<usize> {
        self.steps.iter().position(|s| s.plan.mode == mode && s.plan.shape == shape).ok_or_else(|| {
            let known: Vec<String> = self.steps.iter().map(|s| format!("{:?} {}", s.plan.mode, s.plan.shape)).collect();
            let known = known.join(", ");
            Error::shape(
                "network",
                format!("{mode:?} {shape} ({} splits) is not prepared; prepared: {known}", shape.splits),
            )
        })
    }

    /// The numbers of the micro-batches of the prepared step number `first`.
    fn micro_batches(&self, first: usize) -> std::ops::Range<usize> {
        let is_of = |s: &PreparedStep, of: &PreparedStep| s.plan.mode == of.plan.mode && s.plan.shape == of.plan.shape;
        let count = self.steps[first..].iter().take_while(|s| is_of(s, &self.steps[first])).count();
        first..first + count
    }

    fn step(&self, mode: Mode, shape: StepShape) -> Result<&PreparedStep> {
        Ok(&self.steps[self.step_idx(mode, shape)?])
    }
}

fn flat(device: &Device, len: usize) -> Result<Slice> {
    Buffer::zeroed(device, len * 4)?.slice_of(DType::F32, 0, len)
}
