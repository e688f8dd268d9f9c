//! From a model and a step's shape to everything that running it needs: tensors, ops in order, places in one arena,
//! work and bytes. Pure: no memory is touched, so all plans are made, printed and checked before the first step.

mod arena;
mod backward;
mod cost;
mod display;
mod forward;
pub mod fused;
mod head;
mod layers;
mod memory;
mod micro_batches;
mod ops;

pub use arena::{ALIGNMENT_BYTES, Storage, assign_offsets};
pub use cost::Cost;
pub use layers::LayerCost;
pub use memory::Memory;
pub use micro_batches::{fit_memory, splits_at_once};
pub use ops::{Access, OpKind, StepOp};

use super::layers::{Model, NormId, ValueId};
use crate::device::{DType, Device, Stream};
use crate::error::{Error, Result};
use crate::ops::batch_norm::BatchNorm;
use crate::shape::{ActivationShape, Part, StepShape};

/// Index in [`Plan::tensors`].
pub type TensorId = usize;
/// Index in [`Plan::storages`].
pub type StorageId = usize;

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Forward with batch statistics, loss, backward.
    Train,
    /// Forward with running statistics: no gradients, so activations live briefly.
    Eval,
}

/// How layers become ops, and what type activations and their gradients have in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lowering {
    /// An op a layer, f32: the CPU's form.
    Plain,
    /// Batch norms and joins on load and on store of the convolutions, in this 16-bit type: the form of the kernels.
    Fused(DType),
}

impl Lowering {
    /// The form that `device` runs, with kernels in bf16.
    pub fn of(device: &Device) -> Lowering {
        Lowering::with_storage(device, DType::Bf16)
    }

    /// The form that `device` runs; with kernels in `storage`, which is bf16 or f16.
    pub fn with_storage(device: &Device, storage: DType) -> Lowering {
        match device {
            Device::Cpu => Lowering::Plain,
            Device::Cuda(_) | Device::Simt => Lowering::Fused(storage),
        }
    }

    /// The type of activations and their gradients.
    pub fn dtype(self) -> DType {
        match self {
            Lowering::Plain => DType::F32,
            Lowering::Fused(dtype) => dtype,
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The input of a pathway, outside the arena: the next batch is written there by `resample`.
    Input(usize),
    /// Channels from `offset_c` on of a storage whose positions are `pitch_c` elements apart.
    Arena {
        /// Which storage.
        storage: StorageId,
        /// First channel.
        offset_c: usize,
        /// Elements from one position to the next.
        pitch_c: usize,
    },
}

/// A tensor of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Name of the value, with `grad` in front for gradients.
    pub name: String,
    /// Sizes.
    pub shape: ActivationShape,
    /// Element type.
    pub dtype: DType,
    /// Where it lies.
    pub place: Place,
}

/// Everything that a step of one shape needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The shape of the whole step.
    pub shape: StepShape,
    /// In training, where its clips lie in the batch: all of them, or a micro-batch of whole batch-norm splits.
    pub part: Option<Part>,
    /// Clips that run together.
    pub clips: usize,
    /// Training or evaluation.
    pub mode: Mode,
    /// Plain or fused.
    pub lowering: Lowering,
    /// Tensor table.
    pub tensors: Vec<PlannedTensor>,
    /// Storages that the tensors lie in, with lifetimes and offsets in the arena.
    pub storages: Vec<Storage>,
    /// Forward ops in order, the loss (training) or the head's activation (evaluation) included.
    pub forward: Vec<StepOp>,
    /// Backward ops in order; none for evaluation.
    pub backward: Vec<StepOp>,
    /// Input tensors, one a pathway.
    pub inputs: Vec<TensorId>,
    /// Tensor of each value of the model; `usize::MAX` for values that are never in memory.
    pub values: Vec<TensorId>,
    /// Logits `[n][1][1][1][classes]`; in evaluation at a larger grid than the model's `head_grid` those of every window.
    pub logits: TensorId,
    /// Loss of each clip, `[n][1][1][1][1]` (training), or the class scores `[n][1][1][1][classes]` (evaluation).
    pub result: TensorId,
    /// Size of the arena.
    pub arena_bytes: usize,
    /// Scratch memory that the largest op needs.
    pub workspace_bytes: usize,
    /// Multiply-adds of the forward pass.
    pub forward_macs: u64,
    /// Multiply-adds of the backward pass.
    pub backward_macs: u64,
}

impl Plan {
    /// Plans a step of `model` at `shape`. `stream` says which device's form and workspace sizes apply; `input_pitch_c` is
    /// the number of channels that are stored a pixel of the input (at least the model's).
    ///
    /// # Errors
    /// A shape that the model cannot take, such as frames that are no multiple of SLOWFAST.ALPHA.
    pub fn new(stream: &Stream, model: &Model, shape: StepShape, mode: Mode, input_pitch_c: usize) -> Result<Plan> {
        Plan::with_lowering(stream, model, shape, mode, input_pitch_c, Lowering::of(stream.device()))
    }

    /// [`Plan::new`] in a form of the caller's choice, to look at: a device runs its own form only.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn with_lowering(
        stream: &Stream,
        model: &Model,
        shape: StepShape,
        mode: Mode,
        input_pitch_c: usize,
        lowering: Lowering,
    ) -> Result<Plan> {
        Plan::of(stream, model, &Request::whole(shape, mode, input_pitch_c, lowering))
    }

    fn of(stream: &Stream, model: &Model, request: &Request) -> Result<Plan> {
        let Request { shape, mode, lowering, .. } = *request;
        check_shape(model, shape)?;
        if lowering != Lowering::Plain && mode == Mode::Train && model.config.frozen_bn {
            let reason = "kernels have no gradient of a batch norm with fixed statistics; train it with --device cpu";
            return Err(Error::unsupported("MODEL.FROZEN_BN", reason));
        }
        let mut planner = Planner::new(model, request);
        if lowering == Lowering::Plain {
            planner.forward()?;
            if mode == Mode::Train {
                planner.backward()?;
            }
        } else {
            let mut fused = fused::FusedPlanner::new(stream, planner);
            fused.forward()?;
            if mode == Mode::Train {
                fused.backward()?;
            }
            planner = fused.into_base();
        }
        let mut plan = planner.plan;
        plan.find_lifetimes();
        plan.arena_bytes = assign_offsets(&mut plan.storages);
        plan.workspace_bytes = plan.ops().map(|op| op.workspace_bytes(stream, &plan)).max().unwrap_or(0);
        plan.forward_macs = plan.forward.iter().map(StepOp::macs).sum();
        plan.backward_macs = plan.backward.iter().map(StepOp::macs).sum();
        Ok(plan)
    }

    /// Batch-norm splits of its clips; 1 in evaluation.
    pub fn splits(&self) -> usize {
        self.part.map_or(1, |part| part.splits_of(self.clips))
    }

    /// All ops in order.
    pub fn ops(&self) -> impl Iterator<Item = &StepOp> {
        self.forward.iter().chain(&self.backward)
    }

    /// Memory of the input of a pathway, of all clips of the step.
    pub fn input_bytes(&self, pathway: usize) -> usize {
        let input = &self.tensors[self.inputs[pathway]];
        input.shape.num_elements() / self.clips * self.shape.clips * input.dtype.size_bytes()
    }

    /// Every batch norm whose statistics the forward pass forms, and where: `[splits][3][c]`.
    pub fn statistics(&self) -> impl Iterator<Item = (&BatchNorm, NormId, TensorId)> {
        self.forward.iter().filter_map(StepOp::statistics)
    }

    /// Sets the lifetime of every storage from the ops. Logits, result and batch statistics live to the end of the step:
    /// they are read after it.
    fn find_lifetimes(&mut self) {
        let end = self.forward.len() + self.backward.len();
        let mut used: Vec<(TensorId, usize)> = vec![(self.logits, end), (self.result, end)];
        for (i, op) in self.ops().enumerate() {
            op.visit(&mut |access| used.push((access.tensor(), i)));
            if let Some((.., stats)) = op.statistics() {
                used.push((stats, end));
            }
        }
        for (tensor, i) in used {
            if let Place::Arena { storage, .. } = self.tensors[tensor].place {
                let storage = &mut self.storages[storage];
                (storage.first_op, storage.last_op) = (storage.first_op.min(i), storage.last_op.max(i));
            }
        }
    }
}

fn check_shape(model: &Model, shape: StepShape) -> Result<()> {
    let refuse = |message: String| Err(Error::shape("plan", message));
    if shape.clips == 0 || shape.frames == 0 || shape.height_px == 0 || shape.width_px == 0 {
        return refuse(format!("grid {shape}: clips, frames and crop must be at least 1"));
    }
    if shape.splits == 0 {
        return refuse(format!("grid {shape}: expected at least 1 batch-norm split, got 0"));
    }
    for pathway in 0..model.num_pathways() {
        let ratio = model.config.frame_ratio(pathway);
        if !shape.frames.is_multiple_of(ratio) {
            return refuse(format!("grid {shape}: {} frames are no multiple of SLOWFAST.ALPHA {ratio}", shape.frames));
        }
    }
    Ok(())
}

/// What is planned.
#[derive(Clone, Copy)]
struct Request {
    shape: StepShape,
    mode: Mode,
    input_pitch_c: usize,
    lowering: Lowering,
    part: Option<Part>,
    clips: usize,
}

impl Request {
    /// All clips of a step.
    fn whole(shape: StepShape, mode: Mode, input_pitch_c: usize, lowering: Lowering) -> Request {
        let part = (mode == Mode::Train).then(|| Part::whole(shape.clips, shape.splits));
        Request { shape, mode, input_pitch_c, lowering, part, clips: shape.clips }
    }
}

/// Builds a plan; one method set per pass in `forward.rs` and `backward.rs`.
struct Planner<'a> {
    model: &'a Model,
    plan: Plan,
    /// Layers that read each value.
    num_readers: Vec<usize>,
    /// Value that a value is a part of (concatenation), and its first channel there.
    part_of: Vec<Option<(ValueId, usize)>>,
    /// Shape of each value.
    shapes: Vec<ActivationShape>,
    /// Shape of each value at the grid whose maps the head averages over, where that is another one.
    head_shapes: Option<Vec<ActivationShape>>,
    /// Gradient of each value, once it has a place.
    grads: Vec<Option<TensorId>>,
    /// Whether something was written to the gradient of each value, so that the next writer must add.
    is_grad_written: Vec<bool>,
}

impl<'a> Planner<'a> {
    fn new(model: &'a Model, request: &Request) -> Planner<'a> {
        let Request { shape, mode, input_pitch_c, lowering, part, clips } = *request;
        let plan = Plan {
            shape,
            part,
            clips,
            mode,
            lowering,
            tensors: vec![],
            storages: vec![],
            forward: vec![],
            backward: vec![],
            inputs: vec![],
            values: vec![],
            logits: 0,
            result: 0,
            arena_bytes: 0,
            workspace_bytes: 0,
            forward_macs: 0,
            backward_macs: 0,
        };
        let num_values = model.values.len();
        let mut planner = Planner {
            model,
            plan,
            num_readers: vec![0; num_values],
            part_of: vec![None; num_values],
            shapes: vec![],
            head_shapes: None,
            grads: vec![None; num_values],
            is_grad_written: vec![false; num_values],
        };
        for input in model.layers.iter().flat_map(|l| &l.inputs) {
            planner.num_readers[*input] += 1;
        }
        for pathway in 0..model.num_pathways() {
            let t = shape.frames / model.config.frame_ratio(pathway);
            let c = model.values[pathway].c;
            let sizes = ActivationShape::new(clips, t, shape.height_px, shape.width_px, c.max(input_pitch_c));
            planner.shapes.push(sizes.with_channels(c));
            let id = planner.tensor(format!("input.{pathway}"), sizes, lowering.dtype(), Place::Input(pathway));
            planner.plan.inputs.push(id);
        }
        planner
    }

    fn tensor(&mut self, name: String, shape: ActivationShape, dtype: DType, place: Place) -> TensorId {
        self.plan.tensors.push(PlannedTensor { name, shape, dtype, place });
        self.plan.tensors.len() - 1
    }

    /// A tensor with a storage of its own, without gaps.
    fn dense(&mut self, name: String, shape: ActivationShape, dtype: DType) -> TensorId {
        self.plan.storages.push(Storage::new(shape.num_elements() * dtype.size_bytes()));
        let storage = self.plan.storages.len() - 1;
        self.tensor(name, shape, dtype, Place::Arena { storage, offset_c: 0, pitch_c: shape.c })
    }

    /// Whether the positions of `tensor` begin, and follow each other, in chunks of 8 channels.
    fn has_chunks(&self, tensor: TensorId) -> bool {
        match self.plan.tensors[tensor].place {
            Place::Arena { offset_c, pitch_c, .. } => offset_c.is_multiple_of(8) && pitch_c.is_multiple_of(8),
            Place::Input(_) => false,
        }
    }

    /// A tensor whose positions are taken as those of `shape`, of which there are as many.
    fn viewed(&mut self, tensor: TensorId, shape: ActivationShape) -> TensorId {
        let PlannedTensor { ref name, shape: now, .. } = self.plan.tensors[tensor];
        if now == shape {
            return tensor;
        }
        debug_assert_eq!((now.num_positions(), now.c), (shape.num_positions(), shape.c), "{name}");
        let name = name.clone();
        self.channels_of(name, shape, tensor, 0)
    }

    /// Channels `start .. start + shape.c` of another tensor.
    fn channels_of(&mut self, name: String, shape: ActivationShape, whole: TensorId, start: usize) -> TensorId {
        let PlannedTensor { dtype, place, .. } = self.plan.tensors[whole];
        let place = match place {
            Place::Arena { storage, offset_c, pitch_c } => {
                Place::Arena { storage, offset_c: offset_c + start, pitch_c }
            }
            input => input,
        };
        self.tensor(name, shape, dtype, place)
    }
}
