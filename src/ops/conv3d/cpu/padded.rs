//! A copy of activations with zeros to the left and right of each row, so that all taps of a filter's row are one
//! contiguous run of values. Worth it where there are few channels: a run of 3 or 8 values is too short to be fast.

use rayon::prelude::*;

use super::taps::AxisTaps;
use crate::device::ActRef;
use crate::shape::ActivationShape;

/// Most channels for which rows are copied.
const MAX_CHANNELS: usize = 16;

/// Sizes of the copy.
pub(super) struct PaddedRows {
    /// Zeros before the first column.
    pub left: usize,
    shape: ActivationShape,
}

impl PaddedRows {
    /// For activations of shape `from` that are read as the non-empty ones of `all_taps` (of the w axis) say; `None` where
    /// rows should be read where they lie.
    pub fn plan(
        groups: usize,
        from: ActivationShape,
        all_taps: impl Iterator<Item = AxisTaps> + Clone,
    ) -> Option<PaddedRows> {
        let read = || all_taps.clone().filter(|a| !a.taps.is_empty());
        if groups > 1 || from.c > MAX_CHANNELS {
            return None;
        }
        let has_runs = read().any(|a| a.taps.len() > 1) && read().all(|a| a.is_contiguous());
        if !has_runs {
            return None;
        }
        let first = read().map(|a| a.taps[0].1).min()?;
        let last = |a: AxisTaps| ((a.count - 1) * a.from_step) as isize + a.taps[a.taps.len() - 1].1;
        let last = read().map(last).max()?;
        let left = (-first).max(0) as usize;
        let w = (last + 1).max(1) as usize + left;
        Some(PaddedRows { left, shape: ActivationShape { w, ..from } })
    }

    /// Floats of the copy.
    pub fn len(&self) -> usize {
        self.shape.num_elements()
    }

    /// Copies `from` to the front of `memory`. Columns that no tap reads are left out.
    pub fn fill<'a>(&self, from: ActRef, memory: &'a mut [f32]) -> ActRef<'a> {
        let (c, memory) = (self.shape.c, &mut memory[..self.len()]);
        memory.par_chunks_mut(self.shape.w * c).enumerate().for_each(|(row, to)| {
            to.fill(0.0);
            let first = row * from.shape.w * from.pitch_c;
            for (w, to) in to.chunks_mut(c).skip(self.left).take(from.shape.w).enumerate() {
                to.copy_from_slice(&from.data[first + w * from.pitch_c..][..c]);
            }
        });
        ActRef::dense(memory, self.shape)
    }
}
