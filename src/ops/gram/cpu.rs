//! Native CPU form: the Gram matrix by the outer products that filter gradients use, in f32 over a slab of positions and in f64
//! over slabs; the variances from a product of filter and covariance that is a convolution.

use std::ops::Range;

use rayon::prelude::*;

use super::Gram;
use crate::device::cpu::scratch::List;
use crate::device::cpu::{Isa, OuterSum, Run};
use crate::device::{ActMut, ActRef};
use crate::ops::conv3d::{Conv3d, Direction, cpu as conv};
use crate::ops::rows::vectorized;
use crate::shape::ActivationShape;

/// Positions whose products are summed in f32.
const SLAB_ROWS: usize = 512;
/// Positions of a chunk: a block of their columns fits the first-level cache.
const CHUNK_ROWS: usize = 256;
/// Columns that are joined at a time.
const BLOCK: usize = 64;

/// The slabs of each split, one split after the other; and how many each split has.
fn slabs(op: &Gram) -> (Vec<Range<usize>>, Vec<usize>) {
    let of_split = |split| {
        let rows = op.rows_of_split(split);
        rows.clone().step_by(SLAB_ROWS).map(move |start| start..(start + SLAB_ROWS).min(rows.end))
    };
    let splits: Vec<Vec<_>> = (0..op.norm.splits_used()).map(|split| of_split(split).collect()).collect();
    let counts = splits.iter().map(Vec::len).collect();
    (splits.concat(), counts)
}

/// `T = Cov W'`: the rows of the covariance are positions, the filter is the convolution's own.
fn product(op: &Gram) -> Conv3d {
    Conv3d { input: ActivationShape::new(1, 1, 1, op.c_in, op.c_in), part: None, ..op.conv() }
}

/// f32 elements of scratch memory.
pub(super) fn workspace_len(isa: Isa, op: &Gram) -> usize {
    let of_moments = slabs(op).0.len() * op.c_in * op.c_in;
    let of_statistics = op.c_in * op.norm.shape.c + conv::workspace_len(isa, &product(op), Direction::Forward);
    of_moments.max(of_statistics)
}

pub(super) fn moments(isa: Isa, op: &Gram, x: ActRef, moments: &mut [f32], scratch: &mut [f32]) {
    let (slabs, per_split) = slabs(op);
    let grams = &mut scratch[..slabs.len() * op.c_in * op.c_in];
    grams_of_slabs(isa, op, x, &slabs, grams);
    let sums: Vec<Vec<f64>> = slabs.par_iter().map(|rows| column_sums(x, rows.clone())).collect();
    let mut first = 0;
    for (split, to) in moments.chunks_mut(op.moments_of_split()).take(per_split.len()).enumerate() {
        let of_split = first..first + per_split[split];
        let grams = &grams[of_split.start * op.c_in * op.c_in..of_split.end * op.c_in * op.c_in];
        join(op, op.rows_of_split(split).len(), &sums[of_split.clone()], grams, to);
        first = of_split.end;
    }
}

/// `[slab][c][c]`: sums of products.
fn grams_of_slabs(isa: Isa, op: &Gram, x: ActRef, slabs: &[Range<usize>], to: &mut [f32]) {
    let runs = |rows: Range<usize>, _: usize, runs: &mut List<Run>| {
        runs.clear();
        runs.push(Run { x: rows.start * x.pitch_c, position: rows.start, count: rows.len() });
    };
    let sum = OuterSum {
        isa,
        x: x.data,
        x_step: x.pitch_c,
        dy: x.data,
        dy_step: x.pitch_c,
        rows: op.c_in,
        columns: op.c_in,
        taps: 1,
        line: 1,
        num_splits: slabs.len(),
        lines: &|slab| slabs[slab].clone(),
        chunk_positions: CHUNK_ROWS,
        goes_on: false,
        column_tasks: 1,
        runs: &runs,
    };
    sum.run(to);
}

/// Sums over a slab: f32 over a chunk, then f64.
fn column_sums(x: ActRef, rows: Range<usize>) -> Vec<f64> {
    let c = x.shape.c;
    let (mut sums, mut chunk) = (vec![0f64; c], vec![0f32; c]);
    for start in rows.clone().step_by(CHUNK_ROWS) {
        let end = (start + CHUNK_ROWS).min(rows.end);
        chunk.fill(0.0);
        vectorized(
            #[inline(always)]
            || {
                for row in start..end {
                    chunk.iter_mut().zip(&x.data[row * x.pitch_c..][..c]).for_each(|(sum, v)| *sum += v);
                }
            },
        );
        sums.iter_mut().zip(&chunk).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    sums
}

/// The moments of a split from the sums of its slabs, in f64.
fn join(op: &Gram, rows: usize, sums: &[Vec<f64>], grams: &[f32], to: &mut [f32]) {
    let (c, count) = (op.c_in, rows as f64);
    let mean: Vec<f64> = (0..c).map(|ch| sums.iter().map(|slab| slab[ch]).sum::<f64>() / count).collect();
    let (to_mean, to_cov) = to.split_at_mut(c);
    to_mean.iter_mut().zip(&mean).for_each(|(to, mean)| *to = *mean as f32);
    to_cov.par_chunks_mut(c).enumerate().for_each(|(i, row)| {
        for (block, to) in row.chunks_mut(BLOCK).enumerate() {
            let mut sum = [0f64; BLOCK];
            for gram in grams.chunks(c * c) {
                sum.iter_mut().zip(&gram[i * c + block * BLOCK..][..to.len()]).for_each(|(s, v)| *s += f64::from(*v));
            }
            for (k, to) in to.iter_mut().enumerate() {
                *to = (sum[k] / count - mean[i] * mean[block * BLOCK + k]) as f32;
            }
        }
    });
}

/// Mean, inverse deviation and unbiased variance of each split and output channel.
pub(super) fn statistics(isa: Isa, op: &Gram, moments: &[f32], filter: &[f32], stats: &mut [f32], scratch: &mut [f32]) {
    let (c_in, c_out) = (op.c_in, op.norm.shape.c);
    let (product_op, (t, scratch)) = (product(op), scratch.split_at_mut(c_in * c_out));
    let splits = moments.chunks(op.moments_of_split()).zip(stats.chunks_mut(3 * c_out)).take(op.norm.splits_used());
    for (split, (moments, to)) in splits.enumerate() {
        let (mean, cov) = moments.split_at(c_in);
        let (from, into) = (ActRef::dense(cov, product_op.input), ActMut::dense(t, product_op.output()));
        conv::forward(isa, &product_op, from, filter, None, into, scratch);
        let count = op.rows_of_split(split).len() as f64;
        let (to_mean, rest) = to.split_at_mut(c_out);
        let (to_inv_std, to_var) = rest.split_at_mut(c_out);
        for (o, w) in filter.chunks(c_in).enumerate() {
            let weighted = |values: &mut dyn Iterator<Item = f32>| {
                w.iter().zip(values).map(|(w, v)| f64::from(*w) * f64::from(v)).sum::<f64>()
            };
            let var = weighted(&mut (0..c_in).map(|j| t[j * c_out + o]));
            // Not below 0; a NaN stays one.
            let var = if var < 0.0 { 0.0 } else { var };
            to_mean[o] = weighted(&mut mean.iter().copied()) as f32;
            to_inv_std[o] = (1.0 / (var + f64::from(op.norm.eps)).sqrt()) as f32;
            to_var[o] = (var * count / (count - 1.0)) as f32;
        }
    }
}
