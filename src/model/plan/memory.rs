//! The memory of a run, counted.

use super::{Mode, Plan};
use crate::model::layers::Model;

/// Device memory in bytes of a network that is prepared for some plans: each part is as large as the largest plan needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Activations and their gradients.
    pub arena: usize,
    /// Inputs of the pathways.
    pub inputs: usize,
    /// Scratch memory of the ops.
    pub workspace: usize,
    /// Parameters in f32, and running statistics.
    pub weights: usize,
    /// Batch statistics of steps in micro-batches, kept to the end of the step.
    pub statistics: usize,
    /// 16-bit copies of the parameters and tables of the running statistics, where kernels read them.
    pub copies: usize,
    /// Gradients of the parameters, where anything is trained.
    pub gradients: usize,
    /// Momenta, likewise.
    pub momenta: usize,
}

impl Memory {
    /// That of `plans`, all of `model` on one device. Labels, tables of addresses and counters, some kilobytes, are left out.
    pub fn of(model: &Model, plans: &[&Plan]) -> Memory {
        let largest = |bytes: &dyn Fn(&Plan) -> usize| plans.iter().map(|p| bytes(p)).max().unwrap_or(0);
        let trained = if plans.iter().any(|p| p.mode == Mode::Train) { 4 * model.params_len } else { 0 };
        // The plain form reads the parameters as they are.
        let copy = plans.first().map_or(4, |p| p.lowering.dtype().size_bytes());
        Memory {
            arena: largest(&|p| p.arena_bytes),
            inputs: (0..model.num_pathways()).map(|pathway| largest(&|p| p.input_bytes(pathway))).sum(),
            workspace: largest(&|p| p.workspace_bytes),
            statistics: largest(&|p| if p.is_micro_batch() { p.statistics_bytes() } else { 0 }),
            weights: 4 * (model.params_len + model.running_len),
            copies: if copy == 4 { 0 } else { copy * model.params_len + 4 * model.running_len },
            gradients: trained,
            momenta: trained,
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        let Memory { arena, inputs, workspace, statistics, weights, copies, gradients, momenta } = *self;
        arena + inputs + workspace + statistics + weights + copies + gradients + momenta
    }
}
