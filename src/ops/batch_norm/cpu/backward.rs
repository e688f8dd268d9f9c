//! Sums of the gradient, and the pass that writes the gradients of input and residual.

use super::{Blocks, fold_lanes};
use crate::device::{ActMut, ActRef};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::rows::{self, Strip, StripMut, Walk};

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
) -> Vec<f64> {
    let c = op.shape.c;
    let blocks = Blocks::new(op);
    let partials = &mut workspace[..blocks.len() * 2 * c];
    let together = rows::rows_together(c, &[x.pitch_c, g.pitch_c, y.map_or(g.pitch_c, |y| y.pitch_c)]);
    let means: Vec<Vec<f32>> =
        stats.chunks(3 * c).take(op.splits_used()).map(|of_split| of_split[..c].repeat(together)).collect();
    rows::for_each(blocks.iter().zip(partials.chunks_mut(2 * c)).collect(), |((split, rows), partial)| {
        let walk = Walk::new(rows.len(), c, together);
        let (x, y, g) = (Strip::new(x, rows), y.map(|y| Strip::new(y, rows)), Strip::new(g, rows));
        let (sum, product) = rows::vectorized(
            #[inline(always)]
            || block_sums(walk, x, y, g, &means[split]),
        );
        for ch in 0..c {
            partial[ch] = fold_lanes(&sum, c, ch) as f32;
            partial[c + ch] = fold_lanes(&product, c, ch) as f32;
        }
    });
    let mut sums = vec![0f64; op.splits_used() * 2 * c];
    for ((split, _), partial) in blocks.iter().zip(partials.chunks(2 * c)) {
        let of_split = &mut sums[split * 2 * c..][..2 * c];
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
fn block_sums(walk: Walk, x: Strip<'_>, y: Option<Strip<'_>>, g: Strip<'_>, mean: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut sum, mut product) = (walk.zeroed_sums(), walk.zeroed_sums());
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
    (sum, product)
}

/// `dx = slope * (g - offset - (x - mean) * tilt)`, one value a channel.
pub(in super::super) struct Slope {
    mean: Vec<f32>,
    slope: Vec<f32>,
    offset: Vec<f32>,
    tilt: Vec<f32>,
}

impl Slope {
    /// One for each split, from the sums of [`gradient_sums`].
    pub(in super::super) fn of(op: &BatchNorm, stats: &[f32], gamma: &[f32], sums: &[f64]) -> Vec<Slope> {
        let c = op.shape.c;
        let clip_rows = op.shape.t * op.shape.h * op.shape.w;
        let of_split = |split: usize| {
            let (stats, sums) = (&stats[split * 3 * c..][..2 * c], &sums[split * 2 * c..][..2 * c]);
            let count = (op.clips_of_split(split).len() * clip_rows) as f64;
            let inv_std = &stats[c..];
            Slope {
                mean: stats[..c].to_vec(),
                slope: gamma.iter().zip(inv_std).map(|(g, i)| g * i).collect(),
                offset: sums[..c].iter().map(|s| (s / count) as f32).collect(),
                tilt: sums[c..].iter().zip(inv_std).map(|(s, &i)| (s / count * f64::from(i)) as f32).collect(),
            }
        };
        (0..op.splits_used()).map(of_split).collect()
    }

    fn repeated(&self, times: usize) -> Slope {
        Slope {
            mean: self.mean.repeat(times),
            slope: self.slope.repeat(times),
            offset: self.offset.repeat(times),
            tilt: self.tilt.repeat(times),
        }
    }
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
    slopes: &[Slope],
    dx: ActMut<'_>,
    residual: Option<(ActMut<'_>, bool)>,
) {
    let c = op.shape.c;
    let mut pitches = vec![x.pitch_c, dx.pitch_c];
    pitches.extend(y.map(|y| y.pitch_c));
    pitches.extend(residual.as_ref().map(|(r, _)| r.pitch_c));
    if let GradAt::Own(g) = g {
        pitches.push(g.pitch_c);
    }
    let together = rows::rows_together(c, &pitches);
    let slopes: Vec<Slope> = slopes.iter().map(|s| s.repeated(together)).collect();
    let blocks = Blocks::new(op);
    let dxs = rows::strips(dx, &blocks.rows);
    let (accumulate, residuals): (bool, Vec<Option<StripMut<'_>>>) = match residual {
        Some((r, accumulate)) => (accumulate, rows::strips(r, &blocks.rows).into_iter().map(Some).collect()),
        None => (false, blocks.rows.iter().map(|_| None).collect()),
    };
    rows::for_each(blocks.iter().zip(dxs).zip(residuals).collect(), |(((split, rows), dx), residual)| {
        let walk = Walk::new(rows.len(), c, together);
        let g = match g {
            GradAt::Own(g) => BlockGrad::Own(Strip::new(g, rows)),
            GradAt::Input => BlockGrad::Input,
            GradAt::Residual => BlockGrad::Residual,
        };
        let (x, y) = (Strip::new(x, rows), y.map(|y| Strip::new(y, rows)));
        rows::vectorized(
            #[inline(always)]
            || gradient_block(walk, x, y, g, &slopes[split], dx, residual, accumulate),
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
    slope: &Slope,
    mut dx: StripMut<'_>,
    mut residual: Option<StripMut<'_>>,
    accumulate: bool,
) {
    // The masked gradient of a row passes through here: it stays in the L1 cache, and each of the arrangements of memory
    // needs no loop of its own.
    let mut row = vec![0f32; walk.width()];
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
        let (mean, offset) = (&slope.mean[..width], &slope.offset[..width]);
        let (slope, tilt) = (&slope.slope[..width], &slope.tilt[..width]);
        for i in 0..width {
            dx[i] = slope[i] * (row[i] - offset[i] - (x[i] - mean[i]) * tilt[i]);
        }
    }
}
