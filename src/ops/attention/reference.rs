//! The meaning of attention: slow, plain, one clip, dense arrays `query [queries][d]`, `key` and `value` `[keys][d]`. For tests and
//! benches only. `sum` is applied to every arithmetic result, `store` to what plain code keeps in memory: scores,
//! probabilities, their gradients, results.

use super::Instantiation;

/// The two roundings.
#[derive(Clone, Copy)]
pub struct Rounding {
    /// Of arithmetic.
    pub sum: fn(f64) -> f64,
    /// Of memory.
    pub store: fn(f64) -> f64,
}

impl Rounding {
    /// None: the definition.
    pub const NONE: Rounding = Rounding { sum: |v| v, store: |v| v };

    fn dot(self, a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).fold(0.0, |sum, (a, b)| (self.sum)(sum + (self.sum)(a * b)))
    }
}

/// Weights `[queries][keys]`, and of each query the base-2 logarithm of the sum of exponentials (softmax).
pub fn weights(r: Rounding, kind: Instantiation, depth: usize, query: &[f64], key: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let scale = f64::from(kind.scale(key.len() / depth, depth));
    let (mut all, mut logs) = (vec![], vec![]);
    for q in query.chunks(depth) {
        let scores: Vec<f64> = key.chunks(depth).map(|k| (r.store)((r.sum)((r.store)(r.dot(q, k)) * scale))).collect();
        if kind == Instantiation::DotProduct {
            all.extend(scores);
            continue;
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = scores.iter().map(|s| (r.sum)((r.sum)(s - largest).exp())).collect();
        let sum = e.iter().fold(0.0, |sum, e| (r.sum)(sum + e));
        logs.push((r.sum)((r.sum)(largest * std::f64::consts::LOG2_E) + (r.sum)(sum.log2())));
        all.extend(e.into_iter().map(|e| (r.store)((r.sum)(e / sum))));
    }
    (all, logs)
}

/// Output `[queries][d]`.
pub fn forward(r: Rounding, kind: Instantiation, depth: usize, query: &[f64], key: &[f64], value: &[f64]) -> Vec<f64> {
    let (weights, _) = weights(r, kind, depth, query, key);
    let keys = key.len() / depth;
    let mut output = vec![];
    for weights in weights.chunks(keys) {
        for c in 0..depth {
            let column: Vec<f64> = (0..keys).map(|k| value[k * depth + c]).collect();
            output.push((r.store)(r.dot(weights, &column)));
        }
    }
    output
}

/// Gradients of query, key and value. `output` is that of [`forward`].
pub fn backward(
    r: Rounding,
    kind: Instantiation,
    depth: usize,
    [query, key, value]: [&[f64]; 3],
    output: &[f64],
    grad_output: &[f64],
) -> [Vec<f64>; 3] {
    let (keys, scale) = (key.len() / depth, f64::from(kind.scale(key.len() / depth, depth)));
    let (p, _) = weights(r, kind, depth, query, key);
    let mut ds = vec![];
    for (q, (dy, y)) in grad_output.chunks(depth).zip(output.chunks(depth)).enumerate() {
        let delta = r.dot(dy, y);
        for (k, v) in value.chunks(depth).enumerate() {
            let dp = (r.store)(r.dot(dy, v));
            ds.push(match kind {
                Instantiation::Softmax => (r.store)((r.sum)(p[q * keys + k] * (r.sum)(dp - delta))),
                Instantiation::DotProduct => dp,
            });
        }
    }
    let queries = query.len() / depth;
    let sum_over = |n: usize, weight: &dyn Fn(usize) -> f64, rows: &[f64], c: usize| {
        (0..n).fold(0.0, |sum, i| (r.sum)(sum + (r.sum)(weight(i) * rows[i * depth + c])))
    };
    let (mut dq, mut dk, mut dv) = (vec![], vec![], vec![]);
    for q in 0..queries {
        dq.extend((0..depth).map(|c| (r.store)((r.sum)(scale * sum_over(keys, &|k| ds[q * keys + k], key, c)))));
    }
    for k in 0..keys {
        dk.extend((0..depth).map(|c| (r.store)((r.sum)(scale * sum_over(queries, &|q| ds[q * keys + k], query, c)))));
        dv.extend((0..depth).map(|c| (r.store)(sum_over(queries, &|q| p[q * keys + k], grad_output, c))));
    }
    [dq, dk, dv]
}
