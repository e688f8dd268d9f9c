//! Statistics, and the pass that normalises, joins and rectifies.

use super::{Blocks, fold_lanes};
use crate::device::{ActMut, ActRef};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::rows::{self, Strip, StripMut, Walk};

/// Mean, inverse standard deviation and unbiased variance of each split: `stats` `[splits][3][c]`.
pub(in super::super) fn statistics(op: &BatchNorm, x: ActRef<'_>, stats: &mut [f32], workspace: &mut [f32]) {
    let c = op.shape.c;
    let blocks = Blocks::new(op);
    let partials = &mut workspace[..blocks.len() * 2 * c];
    let together = rows::rows_together(c, &[x.pitch_c]);
    rows::for_each(blocks.iter().zip(partials.chunks_mut(2 * c)).collect(), |((split, rows), partial)| {
        let walk = Walk::new(rows.len(), c, together);
        let (shift, sums) = rows::vectorized(
            #[inline(always)]
            || block_sums(Strip::new(x, rows), walk),
        );
        block_moments(&shift, &sums, rows.len(), origin(op, x, split), partial);
    });
    for split in 0..op.splits_used() {
        let of_split = blocks.iter().zip(partials.chunks(2 * c)).filter(|((s, _), _)| *s == split);
        let (count, mean, m2) = merge(c, of_split.map(|((_, rows), partial)| (rows.len(), partial)));
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
#[inline(always)]
fn block_sums(x: Strip<'_>, walk: Walk) -> (Vec<f32>, [Vec<f32>; 2]) {
    let c = walk.channels();
    let mut shift = vec![0f32; c];
    let rows = walk.rows().min(ESTIMATE_ROWS);
    for row in 0..rows {
        let x = &x.data[row * x.pitch..][..c];
        shift.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
    shift.iter_mut().for_each(|sum| *sum /= rows as f32);
    let (mut sum, mut square) = (walk.zeroed_sums(), walk.zeroed_sums());
    let shifts = shift.repeat(walk.width() / c);
    for (k, width) in walk.steps() {
        let (x, shift, to) = (x.row(&walk, k, width), &shifts[..width], walk.sums(k, width));
        let (sum, square) = (&mut sum[to.clone()], &mut square[to]);
        for i in 0..width {
            let d = x[i] - shift[i];
            sum[i] += d;
            square[i] += d * d;
        }
    }
    (shift, [sum, square])
}

/// Mean relative to `origin`, and sum of squared deviations from it, `partial` `[2][c]`, from the sums of [`block_sums`].
fn block_moments(shift: &[f32], [sum, square]: &[Vec<f32>; 2], count: usize, origin: &[f32], partial: &mut [f32]) {
    let c = origin.len();
    let (mean, m2) = partial.split_at_mut(c);
    for ch in 0..c {
        let (sum, square) = (fold_lanes(sum, c, ch), fold_lanes(square, c, ch));
        let from_shift = sum / count as f64;
        mean[ch] = (f64::from(shift[ch]) - f64::from(origin[ch]) + from_shift) as f32;
        m2[ch] = (square - sum * from_shift).max(0.0) as f32;
    }
}

/// Joins (count, mean, sum of squared deviations) of blocks in order, by the formula of Chan, Golub and LeVeque.
fn merge<'a>(c: usize, blocks: impl Iterator<Item = (usize, &'a [f32])>) -> (f64, Vec<f64>, Vec<f64>) {
    let (mut count, mut mean, mut m2) = (0.0, vec![0f64; c], vec![0f64; c]);
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
    (count, mean, m2)
}

/// `y = (x - mean) * scale + shift`, one value a channel.
pub(in super::super) struct Affine {
    mean: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    pub(super) fn new(mean: Vec<f32>, scale: Vec<f32>, shift: Vec<f32>) -> Affine {
        Affine { mean, scale, shift }
    }

    /// One for each split.
    pub(in super::super) fn of_statistics(op: &BatchNorm, stats: &[f32], gamma: &[f32], beta: &[f32]) -> Vec<Affine> {
        let c = op.shape.c;
        let of_split = |stats: &[f32]| Affine {
            mean: stats[..c].to_vec(),
            scale: gamma.iter().zip(&stats[c..2 * c]).map(|(g, i)| g * i).collect(),
            shift: beta.to_vec(),
        };
        stats.chunks(3 * c).take(op.splits_used()).map(of_split).collect()
    }

    /// With running statistics.
    pub(in super::super) fn of_running(
        op: &BatchNorm,
        mean: &[f32],
        var: &[f32],
        gamma: &[f32],
        beta: &[f32],
    ) -> Affine {
        let inv_std = |v: f32| 1.0 / (f64::from(v) + f64::from(op.eps)).sqrt();
        let scale = gamma.iter().zip(var).map(|(&g, &v)| (f64::from(g) * inv_std(v)) as f32);
        Affine { mean: mean.to_vec(), scale: scale.collect(), shift: beta.to_vec() }
    }

    fn repeated(&self, times: usize) -> Affine {
        Affine { mean: self.mean.repeat(times), scale: self.scale.repeat(times), shift: self.shift.repeat(times) }
    }
}

/// `y = relu(affine(x) + residual)`, where asked for; `x` is `None` where it lies in `y`.
pub(in super::super) fn normalise(
    op: &BatchNorm,
    x: Option<ActRef<'_>>,
    per_split: &[Affine],
    residual: Option<ActRef<'_>>,
    y: ActMut<'_>,
) {
    let c = op.shape.c;
    let pitch_of = |a: Option<ActRef<'_>>| a.map_or(y.pitch_c, |a| a.pitch_c);
    let together = rows::rows_together(c, &[y.pitch_c, pitch_of(x), pitch_of(residual)]);
    let affines: Vec<Affine> = per_split.iter().map(|a| a.repeated(together)).collect();
    let floor = if op.relu { 0.0 } else { f32::NEG_INFINITY };
    let blocks = Blocks::new(op);
    let ys = rows::strips(y, &blocks.rows);
    rows::for_each(blocks.iter().zip(ys).collect(), |((split, rows), y)| {
        let walk = Walk::new(rows.len(), c, together);
        let (x, residual) = (x.map(|x| Strip::new(x, rows)), residual.map(|r| Strip::new(r, rows)));
        rows::vectorized(
            #[inline(always)]
            || match (x, residual) {
                (Some(x), None) => normalise_block(&affines[split], walk, x, floor, y),
                (Some(x), Some(r)) => normalise_block_joined(&affines[split], walk, x, r, floor, y),
                (None, r) => normalise_block_in_place(&affines[split], walk, r, floor, y),
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
fn normalise_block(affine: &Affine, walk: Walk, x: Strip<'_>, floor: f32, mut y: StripMut<'_>) {
    for (k, width) in walk.steps() {
        let (x, y) = (x.row(&walk, k, width), y.row(&walk, k, width));
        let (mean, scale, shift) = (&affine.mean[..width], &affine.scale[..width], &affine.shift[..width]);
        for i in 0..width {
            y[i] = rectified((x[i] - mean[i]) * scale[i] + shift[i], floor);
        }
    }
}

#[inline(always)]
fn normalise_block_joined(
    affine: &Affine,
    walk: Walk,
    x: Strip<'_>,
    residual: Strip<'_>,
    floor: f32,
    mut y: StripMut<'_>,
) {
    for (k, width) in walk.steps() {
        let (x, r, y) = (x.row(&walk, k, width), residual.row(&walk, k, width), y.row(&walk, k, width));
        let (mean, scale, shift) = (&affine.mean[..width], &affine.scale[..width], &affine.shift[..width]);
        for i in 0..width {
            y[i] = rectified((x[i] - mean[i]) * scale[i] + shift[i] + r[i], floor);
        }
    }
}

#[inline(always)]
fn normalise_block_in_place(affine: &Affine, walk: Walk, residual: Option<Strip<'_>>, floor: f32, mut y: StripMut<'_>) {
    for (k, width) in walk.steps() {
        let y = y.row(&walk, k, width);
        let (mean, scale, shift) = (&affine.mean[..width], &affine.scale[..width], &affine.shift[..width]);
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
