//! The meaning of what convolutions do on load and on store (`super::super::fused`). `round` is applied to every intermediate
//! result and `store` to what is kept in memory: the identity gives f64, rounding what plain code at that type would give.

use crate::shape::ActivationShape;

/// The roundings of arithmetic and of storage.
#[derive(Clone, Copy)]
pub struct Rounding {
    /// Of every arithmetic result.
    pub round: fn(f64) -> f64,
    /// Of every stored value.
    pub store: fn(f64) -> f64,
}

impl Rounding {
    /// None at all.
    pub const EXACT: Rounding = Rounding { round: |v| v, store: |v| v };
}

/// Clips of each split that has any: blocks of `ceil(n / splits)`.
pub fn splits_of(n: usize, splits: usize) -> Vec<std::ops::Range<usize>> {
    let per_split = n.div_ceil(splits);
    (0..n).step_by(per_split).map(|first| first..(first + per_split).min(n)).collect()
}

/// For each element of a tensor of this shape: its split and its channel.
fn places(shape: ActivationShape, splits: usize) -> impl Iterator<Item = (usize, usize)> {
    let per_split = shape.n.div_ceil(splits) * shape.num_elements() / shape.n;
    (0..shape.num_elements()).map(move |i| (i / per_split, i % shape.c))
}

fn relu(v: f64) -> f64 {
    if v < 0.0 { 0.0 } else { v }
}

/// `relu(s x + b)`, or with a residual and perhaps its own table `relu(s x + b + s2 r + b2)`: tables `[splits][2][c]`.
pub fn normalised(
    shape: ActivationShape,
    splits: usize,
    rounding: Rounding,
    x: &[f64],
    scale_shift: &[f64],
    residual: Option<(&[f64], Option<&[f64]>)>,
) -> Vec<f64> {
    let Rounding { round, store } = rounding;
    let c = shape.c;
    let affine = |table: &[f64], s: usize, ch: usize, v: f64| {
        round(round(table[s * 2 * c + ch] * v) + table[(s * 2 + 1) * c + ch])
    };
    let at = |(i, (s, ch)): (usize, (usize, usize))| {
        let mut v = affine(scale_shift, s, ch, x[i]);
        if let Some((r, table)) = residual {
            v = round(v + table.map_or(r[i], |table| affine(table, s, ch, r[i])));
        }
        store(relu(v))
    };
    places(shape, splits).enumerate().map(at).collect()
}

/// `A g + B y + C` with the table `[splits][3][c]`.
pub fn grad_of_table(
    shape: ActivationShape,
    splits: usize,
    rounding: Rounding,
    g: &[f64],
    y: &[f64],
    table: &[f64],
) -> Vec<f64> {
    let (Rounding { round, store }, c) = (rounding, shape.c);
    let at = |(i, (s, ch)): (usize, (usize, usize))| {
        let row = |r: usize| table[(s * 3 + r) * c + ch];
        store(round(round(round(row(0) * g[i]) + round(row(1) * y[i])) + row(2)))
    };
    places(shape, splits).enumerate().map(at).collect()
}

/// What the statistics of a tensor are used for.
#[derive(Clone, Debug)]
pub struct NormTables {
    /// `[splits][3][c]`: mean, inverse deviation, unbiased variance; NaN for splits without clips, here and below.
    pub stats: Vec<f64>,
    /// `[splits][2][c]`.
    pub scale_shift: Vec<f64>,
}

/// Statistics of the stored values `y`.
pub fn statistics(
    shape: ActivationShape,
    splits: usize,
    round: fn(f64) -> f64,
    eps: f64,
    y: &[f64],
    gamma: &[f64],
    beta: &[f64],
) -> NormTables {
    let (c, per_clip) = (shape.c, shape.num_elements() / shape.n);
    let mut out = NormTables { stats: vec![f64::NAN; splits * 3 * c], scale_shift: vec![f64::NAN; splits * 2 * c] };
    for (s, clips) in splits_of(shape.n, splits).into_iter().enumerate() {
        for ch in 0..c {
            let values = || y[clips.start * per_clip..clips.end * per_clip].iter().skip(ch).step_by(c);
            let count = values().count() as f64;
            let mean = round(values().fold(0.0, |sum, v| round(sum + v)) / count);
            let m2 = values().fold(0.0, |sum, v| round(sum + round((v - mean) * (v - mean))));
            let inv_std = round(1.0 / round(round(round(m2 / count) + eps).sqrt()));
            let scale = round(gamma[ch] * inv_std);
            [mean, inv_std, round(m2 / (count - 1.0))]
                .iter()
                .enumerate()
                .for_each(|(r, v)| out.stats[(s * 3 + r) * c + ch] = *v);
            out.scale_shift[s * 2 * c + ch] = scale;
            out.scale_shift[(s * 2 + 1) * c + ch] = round(beta[ch] - round(mean * scale));
        }
    }
    out
}

/// What the gradient of a batch norm needs.
#[derive(Clone, Debug)]
pub struct GradTables {
    /// `[splits][3][c]`: A, B, C; NaN for splits without clips.
    pub table: Vec<f64>,
    /// Gradient of gamma.
    pub dgamma: Vec<f64>,
    /// Gradient of beta.
    pub dbeta: Vec<f64>,
}

/// From the stored, masked gradient `g` and the normalised tensor `y` with its `stats`.
pub fn grad_tables(
    shape: ActivationShape,
    splits: usize,
    round: fn(f64) -> f64,
    g: &[f64],
    y: &[f64],
    stats: &[f64],
    gamma: &[f64],
) -> GradTables {
    let (c, per_clip) = (shape.c, shape.num_elements() / shape.n);
    let mut out = GradTables { table: vec![f64::NAN; splits * 3 * c], dgamma: vec![0.0; c], dbeta: vec![0.0; c] };
    for (s, clips) in splits_of(shape.n, splits).into_iter().enumerate() {
        for ch in 0..c {
            let elements = || (clips.start * per_clip + ch..clips.end * per_clip).step_by(c);
            let count = elements().count() as f64;
            let (mean, inv_std) = (stats[s * 3 * c + ch], stats[(s * 3 + 1) * c + ch]);
            let sum_g = elements().fold(0.0, |sum, i| round(sum + g[i]));
            let sum_gx = elements().fold(0.0, |sum, i| round(sum + round(g[i] * round(round(y[i] - mean) * inv_std))));
            let a = round(gamma[ch] * inv_std);
            let b = round(round(-a * inv_std) * round(sum_gx / count));
            let constant = round(round(-a * round(sum_g / count)) - round(b * mean));
            [a, b, constant].iter().enumerate().for_each(|(r, v)| out.table[(s * 3 + r) * c + ch] = *v);
            out.dgamma[ch] = round(out.dgamma[ch] + sum_gx);
            out.dbeta[ch] = round(out.dbeta[ch] + sum_g);
        }
    }
    out
}

/// The gradient behind the mask, as it is stored: `dx + add` where the ReLU was `open`.
pub fn masked(rounding: Rounding, dx: &[f64], add: Option<&[f64]>, open: impl Fn(usize) -> bool) -> Vec<f64> {
    let Rounding { round, store } = rounding;
    let at = |(i, &v): (usize, &f64)| {
        let v = add.map_or(v, |a| round(v + a[i]));
        store(if open(i) { v } else { 0.0 })
    };
    dx.iter().enumerate().map(at).collect()
}
