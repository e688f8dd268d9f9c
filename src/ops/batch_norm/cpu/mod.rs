//! Native CPU. Sums are formed per block of rows (which depend on sizes alone), then joined in block order: the bits do not
//! depend on the number of threads.

mod backward;
mod forward;
mod tables;

pub(super) use backward::{GradAt, gradient, gradient_sums, slopes};
pub(super) use forward::{affine_of_running, affine_of_statistics, normalise, statistics, update_running};
pub(in crate::ops) use tables::scale_shift;
pub(super) use tables::{affine_of_table, grad_table, running_scale_shift};

use super::BatchNorm;
use crate::device::cpu::scratch::{self, Scratch};
use crate::ops::rows::Blocks;

/// The blocks of each split.
fn blocks(op: &BatchNorm) -> Blocks {
    let (rows, of_split) = op.rows();
    Blocks::new(rows, of_split, op.shape.c)
}

/// f32 elements of the partial sums: `[blocks][2][c]`.
pub(super) fn partials_len(op: &BatchNorm) -> usize {
    blocks(op).len() * 2 * op.shape.c
}

/// A table of values a channel, `[splits][N][c]`, each row of which is repeated for rows of positions that are worked on together.
struct Repeated<const N: usize> {
    values: Scratch<f32>, // [splits][N][width]
    width: usize,
}

impl<const N: usize> Repeated<N> {
    fn new(table: &[f32], c: usize, times: usize) -> Self {
        let mut values = scratch::take(table.len() * times);
        for (row, to) in table.chunks(c).zip(values.chunks_mut(c * times)) {
            to.chunks_mut(c).for_each(|to| to.copy_from_slice(row));
        }
        Repeated { values, width: c * times }
    }

    fn view(&self) -> RepeatedRows<'_, N> {
        RepeatedRows { values: &self.values, width: self.width }
    }
}

/// [`Repeated`] for all threads to read.
#[derive(Clone, Copy)]
struct RepeatedRows<'a, const N: usize> {
    values: &'a [f32],
    width: usize,
}

impl<'a, const N: usize> RepeatedRows<'a, N> {
    fn of_split(&self, split: usize) -> [&'a [f32]; N] {
        std::array::from_fn(|row| &self.values[(split * N + row) * self.width..][..self.width])
    }
}

/// Sums over lanes that belong to one channel, in f64: `lanes` holds several times `c` values.
fn fold_lanes(lanes: &[f32], c: usize, ch: usize) -> f64 {
    lanes[ch..].iter().step_by(c).map(|&v| f64::from(v)).sum()
}
