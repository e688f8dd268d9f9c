//! Sums of the gradient, and the pass that writes the gradients of input and residual.

use super::{Repeated, blocks, fold_lanes};
use crate::device::cpu::scratch::{self, Scratch};
use crate::device::{ActMut, ActRef};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::rows::{self, PerBlock, Strip, StripMut, Walk};

/// `g` where the ReLU was open.
#[inline(always)]
fn masked(g: f32, y: f32) -> f32 {
    if y <= 0.0 { 0.0 } else { g }
}

/// Sums of each split, `[splits][2][c]`: of the masked gradient, and of its product with the normalised input. Also writes
/// the gradients of gamma and beta, or adds to them, as [`BatchNorm::part`] says.
#[allow(clippy::too_many_arguments)]
pub(in super::super) fn gradient_sums(
    op: &BatchNorm,
    x: ActRef<'_>,
    y: Option<ActRef<'_>>,
    g: ActRef<'_>,
    stats: &[f32],
    grad_gamma: &mut [f32],
    grad_beta: &mut [f32],
    workspace: &mut [f32],
) -> Scratch<f64> {
    let c = op.shape.c;
    let blocks = blocks(op);
    let partials = &mut workspace[..blocks.len() * 2 * c];
    let together = rows::rows_together(c, &[x.pitch_c, g.pitch_c, y.map_or(g.pitch_c, |y| y.pitch_c)]);
    let table = Repeated::<3>::new(&stats[..op.splits_used() * 3 * c], c, together);
    let table = table.view();
    rows::for_each(blocks, PerBlock::new(partials, 2 * c), |block, partial| {
        let (walk, [mean, ..]) = (Walk::new(block.rows.len(), c, together), table.of_split(block.group));
        let (x, g) = (Strip::new(x, &block.rows), Strip::new(g, &block.rows));
        let y = y.map(|y| Strip::new(y, &block.rows));
        let (mut sum, mut product) = (scratch::filled(walk.sums_len(), 0.0), scratch::filled(walk.sums_len(), 0.0));
        rows::vectorized(
            #[inline(always)]
            || block_sums(walk, x, y, g, mean, [&mut sum, &mut product]),
        );
        for ch in 0..c {
            partial.data[ch] = fold_lanes(&sum, c, ch) as f32;
            partial.data[c + ch] = fold_lanes(&product, c, ch) as f32;
        }
    });
    let mut sums = scratch::filled(op.splits_used() * 2 * c, 0f64);
    for (block, partial) in blocks.iter().zip(partials.chunks(2 * c)) {
        let of_split = &mut sums[block.group * 2 * c..][..2 * c];
        of_split.iter_mut().zip(partial).for_each(|(sum, p)| *sum += f64::from(*p));
    }
    for (split, sums) in sums.chunks_mut(2 * c).enumerate() {
        let inv_std = &stats[(split * 3 + 1) * c..][..c];
        sums[c..].iter_mut().zip(inv_std).for_each(|(sum, i)| *sum *= f64::from(*i));
    }
    // Rounded after each split, so that splits may come in several calls.
    let goes_on = op.part.is_some_and(|part| part.accumulates());
    let total = |i: usize, before: f32| {
        sums.chunks(2 * c).fold(if goes_on { before } else { 0.0 }, |sum, s| (f64::from(sum) + s[i]) as f32)
    };
    grad_beta.iter_mut().enumerate().for_each(|(ch, to)| *to = total(ch, *to));
    grad_gamma.iter_mut().enumerate().for_each(|(ch, to)| *to = total(c + ch, *to));
    sums
}

/// Sums over a block, lane by lane: of the masked gradient, and of its product with the input's distance from the mean.
#[inline(always)]
fn block_sums(
    walk: Walk,
    x: Strip<'_>,
    y: Option<Strip<'_>>,
    g: Strip<'_>,
    mean: &[f32],
    [sum, product]: [&mut [f32]; 2],
) {
    for (k, width) in walk.steps() {
        let (x, g, mean) = (x.row(&walk, k, width), g.row(&walk, k, width), &mean[..width]);
        let to = walk.sums(k, width);
        let (sum, product) = (&mut sum[to.clone()], &mut product[to]);
        match y.map(|y| y.row(&walk, k, width)) {
            Some(y) => {
                for i in 0..width {
                    let g = masked(g[i], y[i]);
                    sum[i] += g;
                    product[i] += g * (x[i] - mean[i]);
                }
            }
            None => {
                for i in 0..width {
                    sum[i] += g[i];
                    product[i] += g[i] * (x[i] - mean[i]);
                }
            }
        }
    }
}

/// What [`gradient`] takes, `[splits][4][c]`: mean, slope, offset, tilt of `dx = slope * (g - offset - (x - mean) * tilt)`, from the
/// sums of [`gradient_sums`].
pub(in super::super) fn slopes(op: &BatchNorm, stats: &[f32], gamma: &[f32], sums: &[f64]) -> Scratch<f32> {
    let c = op.shape.c;
    let clip_rows = op.shape.t * op.shape.h * op.shape.w;
    let mut slopes = scratch::take(op.splits_used() * 4 * c);
    for (split, to) in slopes.chunks_mut(4 * c).enumerate() {
        let (stats, sums) = (&stats[split * 3 * c..][..2 * c], &sums[split * 2 * c..][..2 * c]);
        let count = (op.clips_of_split(split).len() * clip_rows) as f64;
        for ch in 0..c {
            let inv_std = stats[c + ch];
            to[ch] = stats[ch];
            to[c + ch] = gamma[ch] * inv_std;
            to[2 * c + ch] = (sums[ch] / count) as f32;
            to[3 * c + ch] = (sums[c + ch] / count * f64::from(inv_std)) as f32;
        }
    }
    slopes
}

/// Where `grad_output` lies.
#[derive(Clone, Copy)]
pub(in super::super) enum GradAt<'a> {
    /// In memory of its own.
    Own(ActRef<'a>),
    /// In the memory of the gradient of the input.
    Input,
    /// In the memory of the gradient of the residual.
    Residual,
}

/// Gradient of the input, and the masked gradient for the residual (added to it where the flag is set).
pub(in super::super) fn gradient(
    op: &BatchNorm,
    x: ActRef<'_>,
    y: Option<ActRef<'_>>,
    g: GradAt<'_>,
    slopes: &[f32],
    dx: ActMut<'_>,
    residual: Option<(ActMut<'_>, bool)>,
) {
    let c = op.shape.c;
    let pitch_of = |pitch: Option<usize>| pitch.unwrap_or(x.pitch_c);
    let own = if let GradAt::Own(g) = g { Some(g.pitch_c) } else { None };
    let others = [y.map(|y| y.pitch_c), residual.as_ref().map(|(r, _)| r.pitch_c), own].map(pitch_of);
    let together = rows::rows_together(c, &[x.pitch_c, dx.pitch_c, others[0], others[1], others[2]]);
    let slopes = Repeated::<4>::new(slopes, c, together);
    let slopes = slopes.view();
    let accumulate = residual.as_ref().is_some_and(|(_, accumulate)| *accumulate);
    let parts = (StripMut::new(dx), residual.map(|(r, _)| StripMut::new(r)));
    rows::for_each(blocks(op), parts, |block, (dx, residual)| {
        let walk = Walk::new(block.rows.len(), c, together);
        let g = match g {
            GradAt::Own(g) => BlockGrad::Own(Strip::new(g, &block.rows)),
            GradAt::Input => BlockGrad::Input,
            GradAt::Residual => BlockGrad::Residual,
        };
        let (x, y) = (Strip::new(x, &block.rows), y.map(|y| Strip::new(y, &block.rows)));
        let mut row = scratch::take(walk.width());
        rows::vectorized(
            #[inline(always)]
            || gradient_block(walk, x, y, g, slopes.of_split(block.group), &mut row, dx, residual, accumulate),
        );
    });
}

#[derive(Clone, Copy)]
enum BlockGrad<'a> {
    Own(Strip<'a>),
    Input,
    Residual,
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn gradient_block(
    walk: Walk,
    x: Strip<'_>,
    y: Option<Strip<'_>>,
    g: BlockGrad<'_>,
    [mean, slope, offset, tilt]: [&[f32]; 4],
    row: &mut [f32],
    mut dx: StripMut<'_>,
    mut residual: Option<StripMut<'_>>,
    accumulate: bool,
) {
    // The masked gradient of a row passes through `row`: it stays in the L1 cache, and each of the arrangements of memory
    // needs no loop of its own.
    for (k, width) in walk.steps() {
        let (x, dx, row) = (x.row(&walk, k, width), dx.row(&walk, k, width), &mut row[..width]);
        let mut dr = residual.as_mut().map(|r| r.row(&walk, k, width));
        let from = match (g, &dr) {
            (BlockGrad::Own(g), _) => g.row(&walk, k, width),
            (BlockGrad::Residual, Some(dr)) => dr,
            _ => dx,
        };
        match y.map(|y| y.row(&walk, k, width)) {
            Some(y) => (0..width).for_each(|i| row[i] = masked(from[i], y[i])),
            None => row.copy_from_slice(from),
        }
        match &mut dr {
            Some(dr) if accumulate => (0..width).for_each(|i| dr[i] += row[i]),
            Some(dr) => dr.copy_from_slice(row),
            None => {}
        }
        let (mean, offset) = (&mean[..width], &offset[..width]);
        let (slope, tilt) = (&slope[..width], &tilt[..width]);
        for i in 0..width {
            dx[i] = slope[i] * (row[i] - offset[i] - (x[i] - mean[i]) * tilt[i]);
        }
    }
}
