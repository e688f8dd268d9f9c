//! Plans every shape of a run and allocates the memory that the largest of them needs.

use super::block::StepBlock;
use super::graphs::Repeated;
use super::{Network, PathwayInput, flat};
use crate::device::{Buffer, Slice, Tensor};
use crate::error::{Error, Result};
use crate::model::layers::NormId;
use crate::model::pathways::slow_pathway_indices;
use crate::model::plan::{Mode, Place, Plan, TensorId, fit_memory};
use crate::ops::batch_norm::{BatchNorm, RunningNorm, RunningTable};
use crate::ops::sgd::State;
use crate::shape::{ActivationShape, StepShape};

/// A plan whose tensors have memory. Those of a step's micro-batches follow one another.
pub(super) struct PreparedStep {
    pub plan: Plan,
    pub tensors: Vec<Tensor>,
    /// Of the whole step.
    pub inputs: Vec<PathwayInput>,
    /// Every batch norm of the whole step whose statistics it forms, and these.
    pub statistics: Vec<(BatchNorm, NormId, Slice)>,
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
        if !train.is_empty() {
            self.refuse_ill_conditioned()?;
        }
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
        let plans = match self.memory_limit {
            Some(limit) => fit_memory(&self.stream, &self.model, plans, limit)?,
            None => plans,
        };
        self.prepare_plans(plans)
    }

    /// Keeps what the network allocates below so many bytes, from the next [`Network::prepare`] on: training steps that would need more
    /// run in micro-batches of whole batch-norm splits, with the same bits, and what fits in no way is an error. At first there is no limit.
    pub fn limit_memory(&mut self, bytes: usize) {
        self.memory_limit = Some(bytes);
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
        let kept = flat(&device, largest(&|p| if p.is_micro_batch() { p.statistics_bytes() / 4 } else { 0 }))?;
        for plan in plans {
            let step = self.bind(plan, &arena, &inputs, &kept)?;
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
    fn bind(&self, plan: Plan, arena: &Buffer, inputs: &[Buffer], kept: &Slice) -> Result<PreparedStep> {
        let first = plan.part.map_or(0, |part| part.first_clip);
        let outside = self.outside_arena(&plan, kept)?;
        let place_of = |storage| {
            let is = |id: usize| matches!(plan.tensors[id].place, Place::Arena { storage: of, .. } if of == storage);
            outside.iter().find(|(id, _)| is(*id)).map(|(_, memory)| memory.clone())
        };
        let tensors = plan
            .tensors
            .iter()
            .map(|t| {
                let (memory, pitch_c) = match t.place {
                    Place::Input(pathway) => {
                        let stored = plan.tensors[plan.inputs[pathway]].shape;
                        let start = stored.num_elements() / plan.clips * first * t.dtype.size_bytes();
                        (inputs[pathway].slice_of(t.dtype, start, stored.num_elements())?, stored.c)
                    }
                    Place::Arena { storage, offset_c, pitch_c } => {
                        let memory = match place_of(storage) {
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
        let inputs = self.inputs_of_step(&plan, inputs)?;
        let of_batch = plan.statistics().zip(plan.statistics_of_batch());
        let statistics = of_batch.map(|((_, _, stats), (op, norm, start))| match plan.is_micro_batch() {
            true => Ok((op, norm, kept.part(start, op.stats_len())?)),
            false => Ok((op, norm, tensors[stats].memory().clone())),
        });
        let statistics = statistics.collect::<Result<Vec<_>>>()?;
        let (labels, targets) = self.labels_and_targets(&plan)?;
        let running = self.running_table(&plan, &statistics)?;
        Ok(PreparedStep { plan, tensors, inputs, statistics, labels, targets, running, graphs: Default::default() })
    }

    /// The inputs of all clips of the step that `plan` belongs to.
    fn inputs_of_step(&self, plan: &Plan, memory: &[Buffer]) -> Result<Vec<PathwayInput>> {
        let input = |(pathway, memory): (usize, &Buffer)| {
            let stored = &plan.tensors[plan.inputs[pathway]];
            let shape = ActivationShape { n: plan.shape.clips, ..stored.shape };
            let memory = memory.slice_of(stored.dtype, 0, shape.num_elements())?;
            let frame_indices = slow_pathway_indices(plan.shape.frames, self.model.config.frame_ratio(pathway));
            Ok(PathwayInput { tensor: Tensor::new(memory, shape, shape.c)?, frame_indices })
        };
        memory.iter().enumerate().map(input).collect()
    }

    /// What of a training step does not lie in the arena: results in one piece, for the host; of micro-batches the statistics, for their
    /// step.
    fn outside_arena(&self, plan: &Plan, kept: &Slice) -> Result<Vec<(TensorId, Slice)>> {
        let Some(part) = plan.part else { return Ok(vec![]) };
        let (first, clips, classes) = (part.first_clip, plan.clips, self.model.config.num_classes);
        let [losses, logits] = self.block.losses_and_logits(plan.shape.clips, classes)?;
        let results =
            [(plan.result, losses.part(first, clips)?), (plan.logits, logits.part(first * classes, clips * classes)?)];
        let of_batch = plan.statistics().zip(plan.statistics_of_batch()).filter(|_| plan.is_micro_batch());
        let statistics = of_batch.map(|((op, _, stats), (_, _, start))| {
            Ok((stats, kept.part(start + part.splits_of(first) * 3 * op.shape.c, op.stats_len())?))
        });
        results.into_iter().map(Ok).chain(statistics).collect()
    }

    /// Those of the clips of a training step's plan.
    fn labels_and_targets(&self, plan: &Plan) -> Result<(Slice, Tensor)> {
        let (first, clips) = plan.part.map_or((0, 0), |part| (part.first_clip, plan.clips));
        let (of_step, classes) = (plan.part.map_or(0, |part| part.batch_clips), self.model.config.num_classes);
        let targets = self.block.targets(of_step, classes)?;
        let memory = targets.memory().part(first * classes, clips * classes)?;
        let targets = Tensor::new(memory, ActivationShape { n: clips, ..targets.shape() }, classes)?;
        Ok((self.block.labels(of_step)?.part(first, clips)?, targets))
    }

    /// The running pairs that a step moves: none where they are fixed (MODEL.FROZEN_BN), none in evaluation.
    fn running_table(&self, plan: &Plan, statistics: &[(BatchNorm, NormId, Slice)]) -> Result<RunningTable> {
        let moved = statistics.iter().filter(|_| plan.mode == Mode::Train && !self.model.config.frozen_bn);
        let norm = |(op, norm, stats): &(BatchNorm, NormId, Slice)| {
            let (mean, var) = &self.arrays.norm[*norm];
            RunningNorm { op: *op, stats: stats.clone(), running: [mean.clone(), var.clone()] }
        };
        RunningTable::new(self.device(), moved.map(norm).collect())
    }
}
