//! The meaning of Gram batch norm, forward and backward: slow, plain, dense arrays. For tests and benches only.
//!
//! `round` is applied to every intermediate result: the identity gives f64, rounding to f32 what plain code in f32 would give. Both passes
//! are cut as kernels are: each function makes one table.
//!
//! Arrays: x `[positions][c_in]`, w `[c_out][c_in]`, g `[positions][c_out]`, the gradient of the normalised value behind the ReLU's mask;
//! moments `[splits][c_in + c_in * c_in]`, stats and grad_table `[splits][3][c_out]`, products `[splits][c_out][c_in + 1]`.

use super::Gram;

type Round = fn(f64) -> f64;

fn sum(round: Round, terms: impl Iterator<Item = f64>) -> f64 {
    terms.fold(0.0, |sum, term| round(sum + round(term)))
}

fn count(op: &Gram, split: usize) -> f64 {
    op.rows_of_split(split).len() as f64
}

/// Mean and biased covariance of each split, as they are defined.
pub fn moments(op: &Gram, round: Round, x: &[f64]) -> Vec<f64> {
    let c = op.c_in;
    let mut out = vec![0.0; op.moments_len()];
    for split in 0..op.norm.splits_used() {
        let (mean, cov) = out[split * op.moments_of_split()..][..op.moments_of_split()].split_at_mut(c);
        let column = |ch: usize| op.rows_of_split(split).map(move |row| x[row * c + ch]);
        for (ch, mean) in mean.iter_mut().enumerate() {
            *mean = round(sum(round, column(ch)) / count(op, split));
        }
        for (at, cov) in cov.iter_mut().enumerate() {
            let (i, j) = (at / c, at % c);
            let products = column(i).zip(column(j)).map(|(a, b)| round(a - mean[i]) * round(b - mean[j]));
            *cov = round(sum(round, products) / count(op, split));
        }
    }
    out
}

/// The same from sums of products, in one pass: what plain code computes.
pub fn moments_in_one_pass(op: &Gram, round: Round, x: &[f64]) -> Vec<f64> {
    let c = op.c_in;
    let mut out = vec![0.0; op.moments_len()];
    for split in 0..op.norm.splits_used() {
        let (mean, cov) = out[split * op.moments_of_split()..][..op.moments_of_split()].split_at_mut(c);
        let column = |ch: usize| op.rows_of_split(split).map(move |row| x[row * c + ch]);
        for (ch, mean) in mean.iter_mut().enumerate() {
            *mean = round(sum(round, column(ch)) / count(op, split));
        }
        for (at, cov) in cov.iter_mut().enumerate() {
            let (i, j) = (at / c, at % c);
            let square = round(sum(round, column(i).zip(column(j)).map(|(a, b)| a * b)) / count(op, split));
            *cov = round(square - round(mean[i] * mean[j]));
        }
    }
    out
}

/// `stats`: mean, inverse deviation, unbiased variance of `y = W x`.
pub fn statistics(op: &Gram, round: Round, moments: &[f64], w: &[f64]) -> Vec<f64> {
    let (c, c_out) = (op.c_in, op.norm.shape.c);
    let mut out = vec![0.0; op.norm.stats_len()];
    for split in 0..op.norm.splits_used() {
        let (mean, cov) = moments[split * op.moments_of_split()..][..op.moments_of_split()].split_at(c);
        for (o, w) in w.chunks(c).enumerate() {
            let of_column = |j: usize| sum(round, (0..c).map(|i| w[i] * cov[i * c + j]));
            let var = sum(round, (0..c).map(|j| of_column(j) * w[j])).max(0.0);
            let inv_std = round(1.0 / round(round(var + f64::from(op.norm.eps)).sqrt()));
            let unbiased = round(round(var * count(op, split)) / (count(op, split) - 1.0));
            let mean = sum(round, w.iter().zip(mean).map(|(w, m)| w * m));
            [mean, inv_std, unbiased].iter().enumerate().for_each(|(r, v)| out[(split * 3 + r) * c_out + o] = *v);
        }
    }
    out
}

/// What the variances of [`statistics`] may be off by, relative to variance + eps, where sums of products of x are off by `of_sums`
/// times the sum of their sizes, and everything later by `later`: `[splits][c_out]`. The bound of docs/gram_batch_norm.md.
pub fn error_bound(op: &Gram, moments: &[f64], w: &[f64], [of_sums, later]: [f64; 2]) -> Vec<f64> {
    let c = op.c_in;
    let mut bounds = vec![];
    for moments in moments.chunks(op.moments_of_split()).take(op.norm.splits_used()) {
        let (mean, cov) = moments.split_at(c);
        for w in w.chunks(c) {
            let pairs = || (0..c * c).map(|at| (at, w[at / c] * w[at % c]));
            let var: f64 = pairs().map(|(at, ww)| ww * cov[at]).sum();
            // The mean of |x_i x_j| is at most the root of the product of second moments.
            let second = |i: usize| (cov[i * c + i] + mean[i] * mean[i]).sqrt();
            let of_products: f64 = pairs().map(|(at, ww)| ww.abs() * second(at / c) * second(at % c)).sum();
            let of_cov: f64 = pairs().map(|(at, ww)| ww.abs() * cov[at].abs()).sum();
            bounds.push((of_sums * of_products + later * of_cov) / (var + f64::from(op.norm.eps)));
        }
    }
    bounds
}

/// `[splits][c_out][c_in + 1]`: `P_o = sum g_o (x - m)`, then `sum g_o`: all that backward needs of g and x together.
pub fn products(op: &Gram, round: Round, x: &[f64], g: &[f64], moments: &[f64]) -> Vec<f64> {
    let (c, c_out) = (op.c_in, op.norm.shape.c);
    let mut out = vec![0.0; op.norm.splits * c_out * (c + 1)];
    for split in 0..op.norm.splits_used() {
        let (rows, mean) = (op.rows_of_split(split), &moments[split * op.moments_of_split()..][..c]);
        for o in 0..c_out {
            let row = &mut out[(split * c_out + o) * (c + 1)..][..c + 1];
            for (i, mean) in mean.iter().enumerate() {
                row[i] = sum(round, rows.clone().map(|r| g[r * c_out + o] * round(x[r * c + i] - mean)));
            }
            row[c] = sum(round, rows.clone().map(|r| g[r * c_out + o]));
        }
    }
    out
}

/// `grad_table` (A, B, C of `dy = A g + B y + C`), dgamma and dbeta: `sum g (y - mean) = <w_o, P_o>`.
pub fn grad_tables(
    op: &Gram,
    round: Round,
    products: &[f64],
    w: &[f64],
    gamma: &[f64],
    stats: &[f64],
) -> [Vec<f64>; 3] {
    let (c, c_out) = (op.c_in, op.norm.shape.c);
    let (mut table, mut dgamma, mut dbeta) = (vec![0.0; op.norm.grad_table_len()], vec![0.0; c_out], vec![0.0; c_out]);
    for split in 0..op.norm.splits_used() {
        for (o, w) in w.chunks(c).enumerate() {
            let row = &products[(split * c_out + o) * (c + 1)..][..c + 1];
            let (mean, inv_std) = (stats[split * 3 * c_out + o], stats[(split * 3 + 1) * c_out + o]);
            let sum_normalised = round(sum(round, w.iter().zip(row).map(|(w, p)| w * p)) * inv_std);
            dgamma[o] = round(dgamma[o] + sum_normalised);
            dbeta[o] = round(dbeta[o] + row[c]);
            let a = round(gamma[o] * inv_std);
            let b = -round(round(a * inv_std) * round(sum_normalised / count(op, split)));
            let constant = round(-round(a * round(row[c] / count(op, split))) - round(b * mean));
            [a, b, constant].iter().enumerate().for_each(|(r, v)| table[(split * 3 + r) * c_out + o] = *v);
        }
    }
    [table, dgamma, dbeta]
}

/// `dW = sum over splits of diag(A) P + diag(B) N W Cov`. No C: dy sums to zero, so x may be centred.
pub fn grad_filter(op: &Gram, round: Round, products: &[f64], moments: &[f64], w: &[f64], table: &[f64]) -> Vec<f64> {
    let (c, c_out) = (op.c_in, op.norm.shape.c);
    let mut dw = vec![0.0; w.len()];
    for split in 0..op.norm.splits_used() {
        let cov = &moments[split * op.moments_of_split() + c..][..c * c];
        for (o, w) in w.chunks(c).enumerate() {
            let [a, b] = [0, 1].map(|row| table[(split * 3 + row) * c_out + o]);
            for j in 0..c {
                let of_cov = sum(round, (0..c).map(|i| w[i] * cov[i * c + j]));
                let of_y = round(round(b * count(op, split)) * of_cov);
                let term = round(round(a * products[(split * c_out + o) * (c + 1) + j]) + of_y);
                dw[o * c + j] = round(dw[o * c + j] + term);
            }
        }
    }
    dw
}

/// What [`grad_input`] multiplies with: `[splits]` of `A W` `[c_out][c_in]`, `W' diag(B) W` `[c_in][c_in]`, `C W` `[c_in]`.
pub fn input_factors(op: &Gram, round: Round, w: &[f64], table: &[f64]) -> Vec<[Vec<f64>; 3]> {
    let (c, c_out) = (op.c_in, op.norm.shape.c);
    let of_split = |split: usize| {
        let row = |row: usize, o: usize| table[(split * 3 + row) * c_out + o];
        let of_g = (0..w.len()).map(|at| round(row(0, at / c) * w[at])).collect();
        let of_x = (0..c * c)
            .map(|at| sum(round, (0..c_out).map(|o| round(w[o * c + at / c] * row(1, o)) * w[o * c + at % c])))
            .collect();
        let constant = (0..c).map(|j| sum(round, (0..c_out).map(|o| row(2, o) * w[o * c + j]))).collect();
        [of_g, of_x, constant]
    };
    (0..op.norm.splits_used()).map(of_split).collect()
}

/// `dx = g (A W) + x (W' diag(B) W) + C W`.
pub fn grad_input(op: &Gram, round: Round, x: &[f64], g: &[f64], factors: &[[Vec<f64>; 3]]) -> Vec<f64> {
    let (c, c_out) = (op.c_in, op.norm.shape.c);
    let mut dx = vec![0.0; x.len()];
    for (split, [of_g, of_x, constant]) in factors.iter().enumerate() {
        for row in op.rows_of_split(split) {
            let (x, g) = (&x[row * c..][..c], &g[row * c_out..][..c_out]);
            for j in 0..c {
                let from_g = sum(round, g.iter().enumerate().map(|(o, g)| g * of_g[o * c + j]));
                let from_x = sum(round, x.iter().enumerate().map(|(i, x)| x * of_x[i * c + j]));
                dx[row * c + j] = round(round(from_g + from_x) + constant[j]);
            }
        }
    }
    dx
}
