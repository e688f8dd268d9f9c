//! Native CPU. Sums are formed per block of rows (which depend on sizes alone), then joined in block order: the bits do not
//! depend on the number of threads.

mod backward;
mod forward;
mod tables;

use std::ops::Range;

pub(super) use backward::{GradAt, Slope, gradient, gradient_sums};
pub(super) use forward::{Affine, normalise, statistics, update_running};
pub(in crate::ops) use tables::scale_shift;
pub(super) use tables::{grad_table, running_scale_shift};

use super::BatchNorm;
use crate::ops::rows;

/// The blocks of each split, which follow one another.
struct Blocks {
    rows: Vec<Range<usize>>,
    /// The split of each block.
    splits: Vec<usize>,
}

impl Blocks {
    fn new(op: &BatchNorm) -> Blocks {
        let clip_rows = op.shape.t * op.shape.h * op.shape.w;
        let mut blocks = Blocks { rows: vec![], splits: vec![] };
        for split in 0..op.splits_used() {
            let clips = op.clips_of_split(split);
            blocks.rows.extend(rows::blocks(clips.start * clip_rows..clips.end * clip_rows, op.shape.c));
            blocks.splits.resize(blocks.rows.len(), split);
        }
        blocks
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    /// Split and rows of each block.
    fn iter(&self) -> impl Iterator<Item = (usize, &Range<usize>)> {
        self.splits.iter().copied().zip(&self.rows)
    }
}

/// f32 elements of the partial sums: `[blocks][2][c]`.
pub(super) fn partials_len(op: &BatchNorm) -> usize {
    Blocks::new(op).len() * 2 * op.shape.c
}

/// Sums over lanes that belong to one channel, in f64: `lanes` holds several times `c` values.
fn fold_lanes(lanes: &[f32], c: usize, ch: usize) -> f64 {
    lanes[ch..].iter().step_by(c).map(|&v| f64::from(v)).sum()
}
