//! Plans every shape of a run and allocates the memory that the largest of them needs.

use super::block::StepBlock;
use super::graphs::Repeated;
use super::{Network, PathwayInput, flat};
use crate::device::{Buffer, Slice, Tensor};
use crate::error::{Error, Result};
use crate::model::pathways::slow_pathway_indices;
use crate::model::plan::{Mode, Place, Plan};
use crate::ops::batch_norm::{BatchNorm, RunningNorm, RunningTable};
use crate::ops::sgd::State;
use crate::shape::StepShape;

/// A plan whose tensors have memory.
pub(super) struct PreparedStep {
    pub plan: Plan,
    pub tensors: Vec<Tensor>,
    pub inputs: Vec<PathwayInput>,
    /// One class a clip, for cross-entropy.
    pub labels: Slice,
    /// 1 for every class of a clip, otherwise 0: `[n][1][1][1][classes]`, for binary cross-entropy.
    pub targets: Tensor,
    /// The running statistics that it moves.
    pub running: RunningTable,
    /// Of a training step with labels, and with targets shared among classes; of a forward pass alone.
    pub graphs: [Repeated; 3],
}

/// The memory for the largest of `plans` is not to be had.
fn too_large(plans: &[Plan], error: &Error) -> Error {
    let bytes = |p: &Plan| p.arena_bytes + p.workspace_bytes;
    let largest = plans.iter().max_by_key(|p| bytes(p)).map_or(String::new(), |p| {
        let gib = bytes(p) as f64 / (1u64 << 30) as f64;
        format!(": {:?} at {} (clips x frames x crop) needs {gib:.1} GiB", p.mode, p.shape)
    });
    let message = format!("{error}{largest}; choose a smaller batch, crop or clip length");
    Error::Driver { op: "network".into(), message }
}

impl Network {
    /// Plans all shapes that the run will train and evaluate at, and allocates: one arena and one workspace as large as
    /// the largest of them needs, gradients and momenta if anything is trained. May be called again with other shapes.
    pub fn prepare(&mut self, train: &[StepShape], eval: &[StepShape]) -> Result<()> {
        let mut plans: Vec<Plan> = vec![];
        for (mode, shapes) in [(Mode::Train, train), (Mode::Eval, eval)] {
            for &shape in shapes {
                if plans.iter().any(|p| p.mode == mode && p.shape == shape) {
                    continue;
                }
                let (stored, lowering) = (self.stored_channels(), self.lowering);
                let plan = Plan::with_lowering(&self.stream, &self.model, shape, mode, stored, lowering)?;
                tracing::debug!("{}", plan.summary());
                plans.push(plan);
            }
        }
        self.prepare_plans(plans)
    }

    /// [`Network::prepare`] with plans of this network's model on its device; for tests of plans.
    #[doc(hidden)]
    pub fn prepare_plans(&mut self, plans: Vec<Plan>) -> Result<()> {
        if plans.iter().any(|p| p.mode == Mode::Train) && self.arrays.grads.is_empty() {
            self.allocate_training_arrays()?;
        }
        let device = self.device().clone();
        let largest = |bytes: &dyn Fn(&Plan) -> usize| plans.iter().map(bytes).max().unwrap_or(0);
        // The old memory goes first, so that both are never held at once.
        self.steps.clear();
        self.workspace = flat(&device, 0)?;
        let too_large = |error| too_large(&plans, &error);
        self.workspace = flat(&device, largest(&|p| p.workspace_bytes.div_ceil(4))).map_err(&too_large)?;
        let arena = Buffer::zeroed(&device, largest(&|p| p.arena_bytes)).map_err(&too_large)?;
        let clips = plans.iter().filter(|p| p.mode == Mode::Train).map(|p| p.shape.clips).max().unwrap_or(0);
        let (tracked, state) = (self.count_batches_tracked()?, State::read(&self.block.state)?);
        self.pending.clear();
        self.batches_tracked = tracked;
        self.block = StepBlock::new(&device, clips, self.model.config.num_classes, &state)?;
        let inputs = (0..self.model.num_pathways())
            .map(|i| Buffer::zeroed(&device, largest(&|p| p.input_bytes(i))))
            .collect::<Result<Vec<_>>>()?;
        for plan in plans {
            let step = self.bind(plan, &arena, &inputs)?;
            self.steps.push(step);
        }
        Ok(())
    }

    fn allocate_training_arrays(&mut self) -> Result<()> {
        let device = self.device().clone();
        self.arrays.grads = flat(&device, self.model.params_len)?;
        self.arrays.momentum = flat(&device, self.model.params_len)?;
        let grads = &self.arrays.grads;
        self.arrays.grad =
            self.model.params.iter().map(|p| grads.part(p.offset, p.stored_len())).collect::<Result<Vec<_>>>()?;
        Ok(())
    }

    /// Gives the tensors of `plan` their memory.
    fn bind(&self, plan: Plan, arena: &Buffer, inputs: &[Buffer]) -> Result<PreparedStep> {
        let (clips, classes) = (plan.shape.clips, self.model.config.num_classes);
        let is_train = plan.mode == Mode::Train;
        // Of training steps: what the host reads lies in one piece, and not in the arena.
        let read_back = match is_train {
            true => [plan.result, plan.logits].into_iter().zip(self.block.losses_and_logits(clips, classes)?).collect(),
            false => vec![],
        };
        let read_back_of = |storage| {
            let is = |id: usize| matches!(plan.tensors[id].place, Place::Arena { storage: of, .. } if of == storage);
            read_back.iter().find(|(id, _)| is(*id)).map(|(_, memory)| memory.clone())
        };
        let tensors = plan
            .tensors
            .iter()
            .map(|t| {
                let (memory, pitch_c) = match t.place {
                    Place::Input(pathway) => {
                        let stored = plan.tensors[plan.inputs[pathway]].shape;
                        (inputs[pathway].slice_of(t.dtype, 0, stored.num_elements())?, stored.c)
                    }
                    Place::Arena { storage, offset_c, pitch_c } => {
                        let memory = match read_back_of(storage) {
                            Some(memory) => memory.part(offset_c, memory.len() - offset_c)?,
                            None => {
                                let (storage, size) = (&plan.storages[storage], t.dtype.size_bytes());
                                let len = storage.len_bytes / size - offset_c;
                                arena.slice_of(t.dtype, storage.offset_bytes + offset_c * size, len)?
                            }
                        };
                        (memory, pitch_c)
                    }
                };
                Tensor::new(memory, t.shape, pitch_c)
            })
            .collect::<Result<Vec<_>>>()?;
        let inputs = (0..self.model.num_pathways())
            .map(|pathway| PathwayInput {
                tensor: tensors[plan.inputs[pathway]].clone(),
                frame_indices: slow_pathway_indices(plan.shape.frames, self.model.config.frame_ratio(pathway)),
            })
            .collect();
        let clips = if is_train { clips } else { 0 };
        let (labels, targets) = (self.block.labels(clips)?, self.block.targets(clips, classes)?);
        let running = self.running_table(&plan, &tensors)?;
        Ok(PreparedStep { plan, tensors, inputs, labels, targets, running, graphs: Default::default() })
    }

    /// The running pairs that a step moves: none where they are fixed (MODEL.FROZEN_BN), none in evaluation.
    fn running_table(&self, plan: &Plan, tensors: &[Tensor]) -> Result<RunningTable> {
        let moved = plan.statistics().filter(|_| plan.mode == Mode::Train && !self.model.config.frozen_bn);
        let norm = |(op, norm, stats): (&BatchNorm, usize, usize)| {
            let (mean, var) = &self.arrays.norm[norm];
            RunningNorm { op: *op, stats: tensors[stats].memory().clone(), running: [mean.clone(), var.clone()] }
        };
        RunningTable::new(self.device(), moved.map(norm).collect())
    }
}
