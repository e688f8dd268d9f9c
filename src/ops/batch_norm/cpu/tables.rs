//! The tables that prologues and epilogues of other ops read.

use crate::device::cpu::scratch::{self, Scratch};
use crate::ops::batch_norm::BatchNorm;

/// What [`normalise`](super::normalise) takes, from `[splits][2][c]`: scale, shift.
pub(in super::super) fn affine_of_table(op: &BatchNorm, table: &[f32]) -> Scratch<f32> {
    let c = op.shape.c;
    let mut affine = scratch::filled(op.splits_used() * 3 * c, 0.0);
    for (rows, to) in table.chunks(2 * c).zip(affine.chunks_mut(3 * c)) {
        to[c..].copy_from_slice(rows);
    }
    affine
}

/// The shift that makes `mean` normalise to `beta` with the rounded `scale`.
fn shift(mean: f32, scale: f32, beta: f32) -> f32 {
    (f64::from(beta) - f64::from(mean) * f64::from(scale)) as f32
}

/// `[splits][2][c]` from stats.
pub(in crate::ops) fn scale_shift(op: &BatchNorm, stats: &[f32], gamma: &[f32], beta: &[f32], table: &mut [f32]) {
    let c = op.shape.c;
    for (stats, rows) in stats.chunks(3 * c).zip(table.chunks_mut(2 * c)).take(op.splits_used()) {
        for ch in 0..c {
            let scale = gamma[ch] * stats[c + ch];
            rows[ch] = scale;
            rows[c + ch] = shift(stats[ch], scale, beta[ch]);
        }
    }
}

/// `[1][2][c]` from the running pair.
pub(in super::super) fn running_scale_shift(op: &BatchNorm, [mean, var, gamma, beta]: [&[f32]; 4], table: &mut [f32]) {
    let c = op.shape.c;
    for ch in 0..c {
        let scale = (f64::from(gamma[ch]) / (f64::from(var[ch]) + f64::from(op.eps)).sqrt()) as f32;
        table[ch] = scale;
        table[c + ch] = shift(mean[ch], scale, beta[ch]);
    }
}

/// `[splits][3][c]`, A, B, C, from the sums `[splits][2][c]` of the gradient and of its product with the normalised input.
pub(in super::super) fn grad_table(op: &BatchNorm, stats: &[f32], gamma: &[f32], sums: &[f64], table: &mut [f32]) {
    let c = op.shape.c;
    let clip_rows = op.shape.t * op.shape.h * op.shape.w;
    for split in 0..op.splits_used() {
        let count = (op.clips_of_split(split).len() * clip_rows) as f64;
        let (stats, sums) = (&stats[split * 3 * c..][..3 * c], &sums[split * 2 * c..][..2 * c]);
        let rows = &mut table[split * 3 * c..][..3 * c];
        for ch in 0..c {
            let (mean, inv_std) = (f64::from(stats[ch]), f64::from(stats[c + ch]));
            let a = f64::from(gamma[ch]) * inv_std;
            let b = (-a * inv_std * (sums[c + ch] / count)) as f32;
            rows[ch] = a as f32;
            rows[c + ch] = b;
            rows[2 * c + ch] = (-a * (sums[ch] / count) - f64::from(b) * mean) as f32;
        }
    }
}
