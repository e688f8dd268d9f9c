//! The meaning of batch norm: slow, plain, dense `[n][t][h][w][c]` arrays. For tests and benches only.
//!
//! `round` is applied to every intermediate result: the identity gives f64, `|v| v as f32 as f64` what plain code in f32
//! would give. The comparison rule of the tests needs both.

use super::BatchNorm;

/// What forward computes.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Normalised, joined, rectified.
    pub y: Vec<f64>,
    /// `[splits][3][c]` as [`BatchNorm::stats_len`] says.
    pub stats: Vec<f64>,
}

/// What backward computes.
#[derive(Clone, Debug)]
pub struct Backward {
    /// Gradient of the input.
    pub dx: Vec<f64>,
    /// Gradient of the residual: `grad_output` where the ReLU was open.
    pub dr: Vec<f64>,
    /// Gradient of gamma.
    pub dgamma: Vec<f64>,
    /// Gradient of beta.
    pub dbeta: Vec<f64>,
}

/// Elements of channel `ch` in split `split`.
fn elements(op: &BatchNorm, split: usize, ch: usize) -> impl Iterator<Item = usize> + Clone + use<> {
    let (c, per_clip, clips) = (op.shape.c, op.shape.num_elements() / op.shape.n, op.clips_of_split(split));
    (clips.start * per_clip + ch..clips.end * per_clip).step_by(c)
}

/// Sum of the terms, rounded after each addition.
fn sum(round: fn(f64) -> f64, terms: impl Iterator<Item = f64>) -> f64 {
    terms.fold(0.0, |sum, term| round(sum + round(term)))
}

/// Training: statistics of each split, then the output.
pub fn forward(
    op: &BatchNorm,
    round: fn(f64) -> f64,
    x: &[f64],
    gamma: &[f64],
    beta: &[f64],
    residual: Option<&[f64]>,
) -> Forward {
    let c = op.shape.c;
    let mut out = Forward { y: vec![0.0; x.len()], stats: vec![0.0; op.stats_len()] };
    for split in 0..op.splits_used() {
        for ch in 0..c {
            let all = elements(op, split, ch);
            let count = all.clone().count() as f64;
            let mean = round(sum(round, all.clone().map(|i| x[i])) / count);
            let m2 = sum(round, all.clone().map(|i| round(x[i] - mean).powi(2)));
            let inv_std = round(1.0 / round(round(round(m2 / count) + f64::from(op.eps)).sqrt()));
            let values = [mean, inv_std, round(m2 / (count - 1.0))];
            (0..3).for_each(|row| out.stats[(split * 3 + row) * c + ch] = values[row]);
            for i in all {
                let joined = residual.map_or(0.0, |r| r[i]);
                out.y[i] = point(op, round, x[i], mean, inv_std, gamma[ch], beta[ch], joined);
            }
        }
    }
    out
}

/// Evaluation, with running statistics.
pub fn forward_eval(
    op: &BatchNorm,
    round: fn(f64) -> f64,
    x: &[f64],
    [gamma, beta, mean, var]: [&[f64]; 4],
    residual: Option<&[f64]>,
) -> Vec<f64> {
    let inv_std = |ch: usize| round(1.0 / round(round(var[ch] + f64::from(op.eps)).sqrt()));
    let at = |i: usize| {
        let ch = i % op.shape.c;
        point(op, round, x[i], mean[ch], inv_std(ch), gamma[ch], beta[ch], residual.map_or(0.0, |r| r[i]))
    };
    (0..x.len()).map(at).collect()
}

#[allow(clippy::too_many_arguments)]
fn point(
    op: &BatchNorm,
    round: fn(f64) -> f64,
    x: f64,
    mean: f64,
    inv_std: f64,
    gamma: f64,
    beta: f64,
    residual: f64,
) -> f64 {
    let normalised = round(round(x - mean) * inv_std);
    let y = round(round(round(normalised * gamma) + beta) + residual);
    if op.relu && y < 0.0 { 0.0 } else { y }
}

/// Gradients of [`forward`], whose output `y` and `stats` are given.
pub fn backward(
    op: &BatchNorm,
    round: fn(f64) -> f64,
    x: &[f64],
    gamma: &[f64],
    forward: &Forward,
    grad_output: &[f64],
) -> Backward {
    let c = op.shape.c;
    let open = |i: usize| !op.relu || forward.y[i] > 0.0;
    let dr: Vec<f64> = (0..x.len()).map(|i| if open(i) { grad_output[i] } else { 0.0 }).collect();
    let mut out = Backward { dx: vec![0.0; x.len()], dgamma: vec![0.0; c], dbeta: vec![0.0; c], dr };
    for split in 0..op.splits_used() {
        for (ch, gamma) in gamma.iter().enumerate() {
            let all = elements(op, split, ch);
            let count = all.clone().count() as f64;
            let (mean, inv_std) = (forward.stats[split * 3 * c + ch], forward.stats[(split * 3 + 1) * c + ch]);
            let normalised = |i: usize| round(round(x[i] - mean) * inv_std);
            let sum_g = sum(round, all.clone().map(|i| out.dr[i]));
            let sum_product = sum(round, all.clone().map(|i| out.dr[i] * normalised(i)));
            out.dbeta[ch] = round(out.dbeta[ch] + sum_g);
            out.dgamma[ch] = round(out.dgamma[ch] + sum_product);
            let (mean_g, mean_product) = (round(sum_g / count), round(sum_product / count));
            let slope = round(gamma * inv_std);
            for i in all {
                let centred = round(round(out.dr[i] - mean_g) - round(normalised(i) * mean_product));
                out.dx[i] = round(slope * centred);
            }
        }
    }
    out
}

/// `[splits][2][c]` from `stats`: scale and shift.
pub fn scale_shift(op: &BatchNorm, round: fn(f64) -> f64, stats: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let c = op.shape.c;
    let mut table = vec![0.0; op.scale_shift_len()];
    for i in 0..op.splits_used() * c {
        let (split, ch) = (i / c, i % c);
        let scale = round(gamma[ch] * stats[(split * 3 + 1) * c + ch]);
        table[split * 2 * c + ch] = scale;
        table[(split * 2 + 1) * c + ch] = round(beta[ch] - round(stats[split * 3 * c + ch] * scale));
    }
    table
}

/// Calls `visit(element, split, channel)` for each element.
fn for_each_element(op: &BatchNorm, mut visit: impl FnMut(usize, usize, usize)) {
    for split in 0..op.splits_used() {
        (0..op.shape.c).for_each(|ch| elements(op, split, ch).for_each(|i| visit(i, split, ch)));
    }
}

/// `scale x + shift`, joined with `second` (which may have a table of its own), rectified.
pub fn apply(
    op: &BatchNorm,
    round: fn(f64) -> f64,
    x: &[f64],
    table: &[f64],
    second: Option<(&[f64], Option<&[f64]>)>,
) -> Vec<f64> {
    let c = op.shape.c;
    let mut y = vec![0.0; x.len()];
    for_each_element(op, |i, split, ch| {
        let affine =
            |x: f64, table: &[f64]| round(round(x * table[split * 2 * c + ch]) + table[(split * 2 + 1) * c + ch]);
        let joined = second.map_or(0.0, |(r, table)| table.map_or(r[i], |table| affine(r[i], table)));
        let sum = round(affine(x[i], table) + joined);
        y[i] = if op.relu && sum < 0.0 { 0.0 } else { sum };
    });
    y
}

/// `[splits][3][c]`, A, B, C of `dx = A g + B x + C`, and the gradients of gamma and beta, for a gradient `g` behind the ReLU.
pub fn gradient_tables(
    op: &BatchNorm,
    round: fn(f64) -> f64,
    x: &[f64],
    g: &[f64],
    gamma: &[f64],
    stats: &[f64],
) -> [Vec<f64>; 3] {
    let c = op.shape.c;
    let (mut table, mut dgamma, mut dbeta) = (vec![0.0; op.grad_table_len()], vec![0.0; c], vec![0.0; c]);
    for split in 0..op.splits_used() {
        for (ch, gamma) in gamma.iter().enumerate() {
            let all = elements(op, split, ch);
            let count = all.clone().count() as f64;
            let (mean, inv_std) = (stats[split * 3 * c + ch], stats[(split * 3 + 1) * c + ch]);
            let sum_g = sum(round, all.clone().map(|i| g[i]));
            let sum_product = round(sum(round, all.map(|i| g[i] * round(x[i] - mean))) * inv_std);
            dbeta[ch] = round(dbeta[ch] + sum_g);
            dgamma[ch] = round(dgamma[ch] + sum_product);
            let a = round(gamma * inv_std);
            let b = -round(round(a * inv_std) * round(sum_product / count));
            let rows = [a, b, round(-round(a * round(sum_g / count)) - round(b * mean))];
            (0..3).for_each(|row| table[(split * 3 + row) * c + ch] = rows[row]);
        }
    }
    [table, dgamma, dbeta]
}

/// `A g + B x + C`.
pub fn gradient(op: &BatchNorm, round: fn(f64) -> f64, x: &[f64], g: &[f64], table: &[f64]) -> Vec<f64> {
    let c = op.shape.c;
    let mut dx = vec![0.0; x.len()];
    for_each_element(op, |i, split, ch| {
        let at = |row: usize| table[(split * 3 + row) * c + ch];
        dx[i] = round(round(round(at(0) * g[i]) + round(at(1) * x[i])) + at(2));
    });
    dx
}
