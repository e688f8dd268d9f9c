//! Statistics, and the pass that normalises, joins and rectifies.

use super::{Repeated, blocks, fold_lanes};
use crate::device::cpu::scratch::{self, Scratch};
use crate::device::{ActMut, ActRef};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::rows::{self, PerBlock, Strip, StripMut, Walk};

/// Mean, inverse standard deviation and unbiased variance of each split: `stats` `[splits][3][c]`.
pub(in super::super) fn statistics(op: &BatchNorm, x: ActRef<'_>, stats: &mut [f32], workspace: &mut [f32]) {
    let c = op.shape.c;
    let blocks = blocks(op);
    let partials = &mut workspace[..blocks.len() * 2 * c];
    let together = rows::rows_together(c, &[x.pitch_c]);
    rows::for_each(blocks, PerBlock::new(partials, 2 * c), |block, partial| {
        let walk = Walk::new(block.rows.len(), c, together);
        let mut sums = BlockSums::new(&walk);
        rows::vectorized(
            #[inline(always)]
            || sums.add(Strip::new(x, &block.rows), walk),
        );
        sums.moments(block.rows.len(), origin(op, x, block.group), partial.data);
    });
    let mut moments = scratch::take(2 * c);
    for split in 0..op.splits_used() {
        let of_split = blocks.iter().zip(partials.chunks(2 * c)).filter(|(block, _)| block.group == split);
        let count = merge(c, of_split.map(|(block, partial)| (block.rows.len(), partial)), &mut moments);
        let (mean, m2) = moments.split_at(c);
        let origin = origin(op, x, split);
        let (to_mean, rest) = stats[split * 3 * c..][..3 * c].split_at_mut(c);
        let (to_inv_std, to_var) = rest.split_at_mut(c);
        for ch in 0..c {
            to_mean[ch] = (f64::from(origin[ch]) + mean[ch]) as f32;
            to_inv_std[ch] = (1.0 / (m2[ch] / count + f64::from(op.eps)).sqrt()) as f32;
            to_var[ch] = (m2[ch] / (count - 1.0)) as f32;
        }
    }
}

/// The first row of a split: block means are kept relative to it, so that a mean which is large against the deviation costs
/// no digits.
fn origin<'a>(op: &BatchNorm, x: ActRef<'a>, split: usize) -> &'a [f32] {
    let row = op.clips_of_split(split).start * op.shape.t * op.shape.h * op.shape.w;
    &x.data[row * x.pitch_c..][..op.shape.c]
}

/// Rows whose mean is taken as a first estimate of a block's mean.
const ESTIMATE_ROWS: usize = 16;

/// A first estimate of the mean, and sums over a block of the deviations from it and of their squares, `[lanes][c]`. Near
/// the mean the sums are small: nothing cancels.
struct BlockSums {
    shift: Scratch<f32>, // as many times as rows are walked together
    sum: Scratch<f32>,
    square: Scratch<f32>,
}

impl BlockSums {
    fn new(walk: &Walk) -> BlockSums {
        let sums = || scratch::filled(walk.sums_len(), 0.0);
        BlockSums { shift: scratch::filled(walk.width(), 0.0), sum: sums(), square: sums() }
    }

    #[inline(always)]
    fn add(&mut self, x: Strip<'_>, walk: Walk) {
        let c = walk.channels();
        let (shift, copies) = self.shift.split_at_mut(c);
        let rows = walk.rows().min(ESTIMATE_ROWS);
        for row in 0..rows {
            let x = &x.data[row * x.pitch..][..c];
            shift.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
        }
        shift.iter_mut().for_each(|sum| *sum /= rows as f32);
        copies.chunks_mut(c).for_each(|copy| copy.copy_from_slice(shift));
        let (shifts, sum, square) = (&self.shift[..], &mut self.sum[..], &mut self.square[..]);
        for (k, width) in walk.steps() {
            let (x, shift, to) = (x.row(&walk, k, width), &shifts[..width], walk.sums(k, width));
            let (sum, square) = (&mut sum[to.clone()], &mut square[to]);
            for i in 0..width {
                let d = x[i] - shift[i];
                sum[i] += d;
                square[i] += d * d;
            }
        }
    }

    /// Mean relative to `origin`, and sum of squared deviations from it, `partial` `[2][c]`.
    fn moments(&self, count: usize, origin: &[f32], partial: &mut [f32]) {
        let c = origin.len();
        let (mean, m2) = partial.split_at_mut(c);
        for ch in 0..c {
            let (sum, square) = (fold_lanes(&self.sum, c, ch), fold_lanes(&self.square, c, ch));
            let from_shift = sum / count as f64;
            mean[ch] = (f64::from(self.shift[ch]) - f64::from(origin[ch]) + from_shift) as f32;
            m2[ch] = (square - sum * from_shift).max(0.0) as f32;
        }
    }
}

/// Joins (count, mean, sum of squared deviations) of blocks in order, by the formula of Chan, Golub and LeVeque: `moments` becomes
/// `[2][c]`.
fn merge<'a>(c: usize, blocks: impl Iterator<Item = (usize, &'a [f32])>, moments: &mut [f64]) -> f64 {
    moments.fill(0.0);
    let (mut count, (mean, m2)) = (0.0, moments.split_at_mut(c));
    for (block_count, partial) in blocks {
        let block_count = block_count as f64;
        let share = block_count / (count + block_count);
        let weight = count * share;
        let (block_mean, block_m2) = partial.split_at(c);
        for ch in 0..c {
            let delta = f64::from(block_mean[ch]) - mean[ch];
            mean[ch] += delta * share;
            m2[ch] += f64::from(block_m2[ch]) + delta * delta * weight;
        }
        count += block_count;
    }
    count
}

/// What [`normalise`] takes, `[splits][3][c]`: mean, scale, shift of `y = (x - mean) * scale + shift`.
pub(in super::super) fn affine_of_statistics(
    op: &BatchNorm,
    stats: &[f32],
    gamma: &[f32],
    beta: &[f32],
) -> Scratch<f32> {
    let c = op.shape.c;
    let mut affine = scratch::take(op.splits_used() * 3 * c);
    for (stats, to) in stats.chunks(3 * c).zip(affine.chunks_mut(3 * c)) {
        to[..c].copy_from_slice(&stats[..c]);
        (0..c).for_each(|ch| to[c + ch] = gamma[ch] * stats[c + ch]);
        to[2 * c..].copy_from_slice(beta);
    }
    affine
}

/// The same with running statistics, for one split.
pub(in super::super) fn affine_of_running(
    op: &BatchNorm,
    mean: &[f32],
    var: &[f32],
    gamma: &[f32],
    beta: &[f32],
) -> Scratch<f32> {
    let c = op.shape.c;
    let inv_std = |v: f32| 1.0 / (f64::from(v) + f64::from(op.eps)).sqrt();
    let mut affine = scratch::take(3 * c);
    affine[..c].copy_from_slice(mean);
    (0..c).for_each(|ch| affine[c + ch] = (f64::from(gamma[ch]) * inv_std(var[ch])) as f32);
    affine[2 * c..].copy_from_slice(beta);
    affine
}

/// `y = relu(affine(x) + residual)`, where asked for; `x` is `None` where it lies in `y`.
pub(in super::super) fn normalise(
    op: &BatchNorm,
    x: Option<ActRef<'_>>,
    affine: &[f32],
    residual: Option<ActRef<'_>>,
    y: ActMut<'_>,
) {
    let c = op.shape.c;
    let pitch_of = |a: Option<ActRef<'_>>| a.map_or(y.pitch_c, |a| a.pitch_c);
    let together = rows::rows_together(c, &[y.pitch_c, pitch_of(x), pitch_of(residual)]);
    let affine = Repeated::<3>::new(affine, c, together);
    let affine = affine.view();
    let floor = if op.relu { 0.0 } else { f32::NEG_INFINITY };
    rows::for_each(blocks(op), StripMut::new(y), |block, y| {
        let (walk, affine) = (Walk::new(block.rows.len(), c, together), affine.of_split(block.group));
        let x = x.map(|x| Strip::new(x, &block.rows));
        let residual = residual.map(|r| Strip::new(r, &block.rows));
        rows::vectorized(
            #[inline(always)]
            || match (x, residual) {
                (Some(x), None) => normalise_block(affine, walk, x, floor, y),
                (Some(x), Some(r)) => normalise_block_joined(affine, walk, x, r, floor, y),
                (None, r) => normalise_block_in_place(affine, walk, r, floor, y),
            },
        );
    });
}

/// A comparison and no `max`: a NaN must stay one, so that the step is noticed and skipped.
#[inline(always)]
fn rectified(v: f32, floor: f32) -> f32 {
    if v < floor { floor } else { v }
}

#[inline(always)]
fn normalise_block([mean, scale, shift]: [&[f32]; 3], walk: Walk, x: Strip<'_>, floor: f32, mut y: StripMut<'_>) {
    for (k, width) in walk.steps() {
        let (x, y) = (x.row(&walk, k, width), y.row(&walk, k, width));
        let (mean, scale, shift) = (&mean[..width], &scale[..width], &shift[..width]);
        for i in 0..width {
            y[i] = rectified((x[i] - mean[i]) * scale[i] + shift[i], floor);
        }
    }
}

#[inline(always)]
fn normalise_block_joined(
    [mean, scale, shift]: [&[f32]; 3],
    walk: Walk,
    x: Strip<'_>,
    residual: Strip<'_>,
    floor: f32,
    mut y: StripMut<'_>,
) {
    for (k, width) in walk.steps() {
        let (x, r, y) = (x.row(&walk, k, width), residual.row(&walk, k, width), y.row(&walk, k, width));
        let (mean, scale, shift) = (&mean[..width], &scale[..width], &shift[..width]);
        for i in 0..width {
            y[i] = rectified((x[i] - mean[i]) * scale[i] + shift[i] + r[i], floor);
        }
    }
}

#[inline(always)]
fn normalise_block_in_place(
    [mean, scale, shift]: [&[f32]; 3],
    walk: Walk,
    residual: Option<Strip<'_>>,
    floor: f32,
    mut y: StripMut<'_>,
) {
    for (k, width) in walk.steps() {
        let y = y.row(&walk, k, width);
        let (mean, scale, shift) = (&mean[..width], &scale[..width], &shift[..width]);
        match residual.map(|r| r.row(&walk, k, width)) {
            None => {
                for i in 0..width {
                    y[i] = rectified((y[i] - mean[i]) * scale[i] + shift[i], floor);
                }
            }
            Some(r) => {
                for i in 0..width {
                    y[i] = rectified((y[i] - mean[i]) * scale[i] + shift[i] + r[i], floor);
                }
            }
        }
    }
}

/// See [`crate::ops::batch_norm::update_running`].
pub(in super::super) fn update_running(
    op: &BatchNorm,
    stats: &[f32],
    momentum: f32,
    mean: &mut [f32],
    var: &mut [f32],
) {
    let (c, splits, momentum) = (op.shape.c, op.splits_used(), f64::from(momentum));
    let average = |row: usize, ch: usize| {
        (0..splits).map(|s| f64::from(stats[(s * 3 + row) * c + ch])).sum::<f64>() / splits as f64
    };
    for (row, running) in [(0, mean), (2, var)] {
        for (ch, running) in running.iter_mut().enumerate() {
            *running = ((1.0 - momentum) * f64::from(*running) + momentum * average(row, ch)) as f32;
        }
    }
}
