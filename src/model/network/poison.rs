//! NaN in all memory that an op may not read: whoever reads it all the same, or writes over what is still needed, is seen in the
//! result. For tests of plans and of the ops' contracts.

use super::Network;
use crate::device::{Buffer, DType};
use crate::error::Result;
use crate::model::plan::{Lowering, Place, Plan};
use crate::ops::TICKET_BYTES;

impl Network {
    /// From now on, before each op, every byte of the arena that holds nothing which was written and is still to be read, and all
    /// scratch memory but the tickets, is filled with 0xFF: NaN in every float type. A step gives the same bits with and without,
    /// only slower.
    #[doc(hidden)]
    pub fn poison_dead_memory(&mut self, is_poisoned: bool) {
        self.is_poisoned = is_poisoned;
    }

    /// Before op number `op` of the step, or after its last.
    pub(super) fn poison(&self, step: usize, op: usize) -> Result<()> {
        if !self.is_poisoned {
            return Ok(());
        }
        let step = &self.steps[step];
        let in_arena = |t: &usize| matches!(step.plan.tensors[*t].place, Place::Arena { .. });
        if let Some(tensor) = (0..step.tensors.len()).find(in_arena) {
            let arena = step.tensors[tensor].memory().buffer();
            let mut end = 0;
            for (start, stop) in live_ranges(&step.plan, op) {
                fill(arena, end, start)?;
                end = end.max(stop);
            }
            fill(arena, end, arena.len_bytes())?;
        }
        let tickets = if step.plan.lowering == Lowering::Plain { 0 } else { TICKET_BYTES };
        fill(self.workspace.buffer(), tickets, self.workspace.len_bytes())
    }
}

/// Bytes of the arena that an op before `op` wrote and that `op` or one after it reads, in order. What `op` itself is the first to
/// write may hold anything.
fn live_ranges(plan: &Plan, op: usize) -> Vec<(usize, usize)> {
    let live = plan.storages.iter().filter(|s| s.first_op < op && op <= s.last_op);
    let mut ranges: Vec<(usize, usize)> = live.map(|s| (s.offset_bytes, s.offset_bytes + s.len_bytes)).collect();
    ranges.sort_unstable();
    ranges
}

fn fill(buffer: &Buffer, start: usize, stop: usize) -> Result<()> {
    if start >= stop {
        return Ok(());
    }
    buffer.slice_of(DType::U8, start, stop - start)?.write(&vec![0xFFu8; stop - start])
}
