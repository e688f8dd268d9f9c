//! Native CPU. Sums are formed per block of rows (which depend on sizes alone), then joined in block order: the bits do not
//! depend on the number of threads.

use std::ops::Range;

use super::BatchNorm;
use crate::device::{ActMut, ActRef};
use crate::ops::rows;

/// Rows of one task, all of one split.
#[derive(Clone, Debug)]
struct Block {
    split: usize,
    rows: Range<usize>,
}

fn blocks(op: &BatchNorm) -> Vec<Block> {
    let clip_rows = op.shape.t * op.shape.h * op.shape.w;
    (0..op.splits_used())
        .flat_map(|split| {
            let clips = op.clips_of_split(split);
            rows::blocks(clips.start * clip_rows..clips.end * clip_rows, op.shape.c)
                .map(move |rows| Block { split, rows })
        })
        .collect()
}

fn block_rows(blocks: &[Block]) -> Vec<Range<usize>> {
    blocks.iter().map(|b| b.rows.clone()).collect()
}

/// f32 elements of the partial sums: `[blocks][2][c]`.
pub(super) fn partials_len(op: &BatchNorm) -> usize {
    blocks(op).len() * 2 * op.shape.c
}

/// Mean, inverse standard deviation and unbiased variance of each split: `stats` `[splits][3][c]`.
pub(super) fn statistics(op: &BatchNorm, x: ActRef<'_>, stats: &mut [f32], workspace: &mut [f32]) {
    let c = op.shape.c;
    let blocks = blocks(op);
    let partials = &mut workspace[..blocks.len() * 2 * c];
    let tasks: Vec<_> = blocks.iter().zip(partials.chunks_mut(2 * c)).collect();
    rows::for_each(tasks, |(block, partial)| {
        let (mean, m2) = partial.split_at_mut(c);
        let data = &x.data[rows::part(x.data, x.pitch_c, &block.rows)];
        rows::vectorized(
            #[inline(always)]
            || block_moments(data, x.pitch_c, block.rows.len(), mean, m2),
        );
    });
    for split in 0..op.splits_used() {
        let of_split = blocks.iter().zip(partials.chunks(2 * c)).filter(|(b, _)| b.split == split);
        let (count, mean, m2) = merge(c, of_split.map(|(b, partial)| (b.rows.len(), partial)));
        let [to_mean, to_inv_std, to_var] = thirds(&mut stats[split * 3 * c..][..3 * c]);
        for ch in 0..c {
            to_mean[ch] = mean[ch] as f32;
            to_inv_std[ch] = (1.0 / (m2[ch] / count + f64::from(op.eps)).sqrt()) as f32;
            to_var[ch] = (m2[ch] / (count - 1.0)) as f32;
        }
    }
}

/// Mean and sum of squared deviations of each channel of a block. Deviations are taken from the block's first row, so that
/// a mean which is large against the deviation costs no digits.
#[inline(always)]
fn block_moments(x: &[f32], pitch: usize, count: usize, mean: &mut [f32], m2: &mut [f32]) {
    let c = mean.len();
    let together = rows::rows_together(c, &[pitch]);
    let width = together * c;
    let shift = x[..c].repeat(together);
    let (mut sum, mut square) = (vec![0f32; width], vec![0f32; width]);
    for row in x.chunks(together * pitch) {
        let width = width.min(row.len());
        let lanes = row[..width].iter().zip(&shift[..width]).zip(&mut sum[..width]).zip(&mut square[..width]);
        for (((x, shift), sum), square) in lanes {
            let d = x - shift;
            *sum += d;
            *square += d * d;
        }
    }
    for ch in 0..c {
        let lanes = (0..together).map(|k| k * c + ch);
        let s: f64 = lanes.clone().map(|i| f64::from(sum[i])).sum();
        let q: f64 = lanes.map(|i| f64::from(square[i])).sum();
        mean[ch] = (f64::from(shift[ch]) + s / count as f64) as f32;
        m2[ch] = (q - s * s / count as f64).max(0.0) as f32;
    }
}

/// Joins (count, mean, sum of squared deviations) of blocks in order, by Chan, Golub and LeVeque's formula.
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

fn thirds(values: &mut [f32]) -> [&mut [f32]; 3] {
    let (a, rest) = values.split_at_mut(values.len() / 3);
    let (b, c) = rest.split_at_mut(rest.len() / 2);
    [a, b, c]
}

/// `y = (x - mean) * scale + shift`, one value a channel.
pub(super) struct Affine {
    mean: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    /// One for each split.
    pub(super) fn of_statistics(op: &BatchNorm, stats: &[f32], gamma: &[f32], beta: &[f32]) -> Vec<Affine> {
        let c = op.shape.c;
        let of_split = |stats: &[f32]| Affine {
            mean: stats[..c].to_vec(),
            scale: gamma.iter().zip(&stats[c..2 * c]).map(|(g, i)| g * i).collect(),
            shift: beta.to_vec(),
        };
        stats.chunks(3 * c).take(op.splits_used()).map(of_split).collect()
    }

    /// With running statistics.
    pub(super) fn of_running(op: &BatchNorm, mean: &[f32], var: &[f32], gamma: &[f32], beta: &[f32]) -> Affine {
        let inv_std = |v: f32| 1.0 / (f64::from(v) + f64::from(op.eps)).sqrt();
        let scale = gamma.iter().zip(var).map(|(&g, &v)| (f64::from(g) * inv_std(v)) as f32);
        Affine { mean: mean.to_vec(), scale: scale.collect(), shift: beta.to_vec() }
    }

    fn repeated(&self, times: usize) -> Affine {
        Affine { mean: self.mean.repeat(times), scale: self.scale.repeat(times), shift: self.shift.repeat(times) }
    }
}

/// `y = relu(affine(x) + residual)`, where asked for; `x` is `None` where it lies in `y`.
pub(super) fn normalise(
    op: &BatchNorm,
    x: Option<ActRef<'_>>,
    per_split: &[Affine],
    residual: Option<ActRef<'_>>,
    y: ActMut<'_>,
) {
    let c = op.shape.c;
    let pitch = y.pitch_c;
    let pitches = [pitch, x.map_or(pitch, |x| x.pitch_c), residual.map_or(pitch, |r| r.pitch_c)];
    let together = if pitches[1..].iter().all(|&p| p == pitch) { rows::rows_together(c, &pitches) } else { 1 };
    let affines: Vec<Affine> = per_split.iter().map(|a| a.repeated(together)).collect();
    let floor = if op.relu { 0.0 } else { f32::NEG_INFINITY };
    let blocks = blocks(op);
    let parts = rows::split(y.data, pitch, &block_rows(&blocks));
    rows::for_each(blocks.into_iter().zip(parts).collect(), |(block, y)| {
        let rows_of = |a: ActRef<'_>| rows::part(a.data, a.pitch_c, &block.rows);
        let x = x.map(|x| (&x.data[rows_of(x)], x.pitch_c));
        let residual = residual.map(|r| (&r.data[rows_of(r)], r.pitch_c));
        rows::vectorized(
            #[inline(always)]
            || normalise_block(&affines[block.split], together, x, residual, floor, y, pitch),
        );
    });
}

#[inline(always)]
fn normalise_block(
    affine: &Affine,
    together: usize,
    x: Option<(&[f32], usize)>,
    residual: Option<(&[f32], usize)>,
    floor: f32,
    y: &mut [f32],
    pitch: usize,
) {
    for (row, y) in y.chunks_mut(together * pitch).enumerate() {
        let width = affine.mean.len().min(y.len());
        let y = &mut y[..width];
        let (mean, scale, shift) = (&affine.mean[..width], &affine.scale[..width], &affine.shift[..width]);
        if let Some((x, pitch)) = x {
            y.copy_from_slice(&x[row * together * pitch..][..width]);
        }
        // A comparison and no `max`: a NaN must stay one, so that the step is noticed and skipped.
        let relu = |v: f32| if v < floor { floor } else { v };
        match residual {
            None => {
                for i in 0..width {
                    y[i] = relu((y[i] - mean[i]) * scale[i] + shift[i]);
                }
            }
            Some((r, pitch)) => {
                let r = &r[row * together * pitch..][..width];
                for i in 0..width {
                    y[i] = relu((y[i] - mean[i]) * scale[i] + shift[i] + r[i]);
                }
            }
        }
    }
}

/// See [`super::update_running`].
pub(super) fn update_running(op: &BatchNorm, stats: &[f32], momentum: f32, mean: &mut [f32], var: &mut [f32]) {
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

/// `g` where the ReLU was open.
#[inline(always)]
fn masked(g: f32, y: f32) -> f32 {
    if y <= 0.0 { 0.0 } else { g }
}

/// Sums of each split, `[splits][2][c]`: of the masked gradient, and of its product with the normalised input. Also writes
/// the gradients of gamma and beta.
#[allow(clippy::too_many_arguments)]
pub(super) fn gradient_sums(
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
    let blocks = blocks(op);
    let partials = &mut workspace[..blocks.len() * 2 * c];
    rows::for_each(blocks.iter().zip(partials.chunks_mut(2 * c)).collect(), |(block, partial)| {
        let mean = &stats[block.split * 3 * c..][..c];
        partial.fill(0.0);
        let (sum, product) = partial.split_at_mut(c);
        rows::vectorized(
            #[inline(always)]
            || {
                for row in block.rows.clone() {
                    let x = &x.data[row * x.pitch_c..][..c];
                    let g = &g.data[row * g.pitch_c..][..c];
                    let y = y.map_or(g, |y| &y.data[row * y.pitch_c..][..c]);
                    let has_mask = op.relu;
                    for i in 0..c {
                        let g = if has_mask { masked(g[i], y[i]) } else { g[i] };
                        sum[i] += g;
                        product[i] += g * (x[i] - mean[i]);
                    }
                }
            },
        );
    });
    let mut sums = vec![0f64; op.splits_used() * 2 * c];
    for (block, partial) in blocks.iter().zip(partials.chunks(2 * c)) {
        let of_split = &mut sums[block.split * 2 * c..][..2 * c];
        of_split.iter_mut().zip(partial).for_each(|(sum, p)| *sum += f64::from(*p));
    }
    for (split, sums) in sums.chunks_mut(2 * c).enumerate() {
        let inv_std = &stats[(split * 3 + 1) * c..][..c];
        sums[c..].iter_mut().zip(inv_std).for_each(|(sum, i)| *sum *= f64::from(*i));
    }
    let total = |i: usize| sums.chunks(2 * c).map(|s| s[i]).sum::<f64>() as f32;
    grad_beta.iter_mut().enumerate().for_each(|(ch, to)| *to = total(ch));
    grad_gamma.iter_mut().enumerate().for_each(|(ch, to)| *to = total(c + ch));
    sums
}

/// `dx = slope * (g - offset - (x - mean) * tilt)`, one value a channel.
pub(super) struct Slope {
    mean: Vec<f32>,
    slope: Vec<f32>,
    offset: Vec<f32>,
    tilt: Vec<f32>,
}

impl Slope {
    /// One for each split, from the sums of [`gradient_sums`].
    pub(super) fn of(op: &BatchNorm, stats: &[f32], gamma: &[f32], sums: &[f64]) -> Vec<Slope> {
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
}

/// Where `grad_output` lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GradAt {
    /// In memory of its own.
    Own,
    /// In the memory of the gradient of the input.
    Input,
    /// In the memory of the gradient of the residual.
    Residual,
}

/// Gradient of the input, and the masked gradient for the residual.
#[allow(clippy::too_many_arguments)]
pub(super) fn gradient(
    op: &BatchNorm,
    x: ActRef<'_>,
    y: Option<ActRef<'_>>,
    g: Option<ActRef<'_>>,
    source: GradAt,
    slopes: &[Slope],
    dx: ActMut<'_>,
    residual: Option<(ActMut<'_>, bool)>,
) {
    let c = op.shape.c;
    let blocks = blocks(op);
    let ranges = block_rows(&blocks);
    let pitch = dx.pitch_c;
    let dxs = rows::split(dx.data, pitch, &ranges);
    let (residual_pitch, accumulate, residuals): (usize, bool, Vec<Option<&mut [f32]>>) = match residual {
        Some((r, accumulate)) => {
            (r.pitch_c, accumulate, rows::split(r.data, r.pitch_c, &ranges).into_iter().map(Some).collect())
        }
        None => (0, false, blocks.iter().map(|_| None).collect()),
    };
    rows::for_each(blocks.into_iter().zip(dxs).zip(residuals).collect(), |((block, dx), mut residual)| {
        let Slope { mean, slope, offset, tilt } = &slopes[block.split];
        let (mean, slope, offset, tilt) = (&mean[..c], &slope[..c], &offset[..c], &tilt[..c]);
        let mut masked_g = vec![0f32; c];
        rows::vectorized(
            #[inline(always)]
            || {
                for (i, row) in block.rows.clone().enumerate() {
                    let dx = &mut dx[i * pitch..][..c];
                    let mut dr = residual.as_mut().map(|r| &mut r[i * residual_pitch..][..c]);
                    let masked_g = &mut masked_g[..c];
                    match (source, g, &dr) {
                        (GradAt::Own, Some(g), _) => masked_g.copy_from_slice(&g.data[row * g.pitch_c..][..c]),
                        (GradAt::Residual, _, Some(dr)) => masked_g.copy_from_slice(dr),
                        _ => masked_g.copy_from_slice(dx),
                    }
                    if let Some(y) = y {
                        let y = &y.data[row * y.pitch_c..][..c];
                        masked_g.iter_mut().zip(y).for_each(|(g, y)| *g = masked(*g, *y));
                    }
                    match &mut dr {
                        Some(dr) if accumulate => dr.iter_mut().zip(&*masked_g).for_each(|(dr, g)| *dr += g),
                        Some(dr) => dr.copy_from_slice(masked_g),
                        None => {}
                    }
                    let x = &x.data[row * x.pitch_c..][..c];
                    for i in 0..c {
                        dx[i] = slope[i] * (masked_g[i] - offset[i] - (x[i] - mean[i]) * tilt[i]);
                    }
                }
            },
        );
    });
}
