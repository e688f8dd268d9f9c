//! What `resize` means, slowly and in f64. Tests compare every executor with it.

use crate::shape::ActivationShape;

/// Weight of input element `j` in output sample `i`.
fn weight(align_corners: bool, size: usize, resized: usize, i: usize, j: usize) -> f64 {
    let position = match (align_corners, resized) {
        (true, 1) => 0.0,
        (true, _) => i as f64 * (size - 1) as f64 / (resized - 1) as f64,
        (false, _) => ((i as f64 + 0.5) * size as f64 / resized as f64 - 0.5).clamp(0.0, (size - 1) as f64),
    };
    (1.0 - (position - j as f64).abs()).max(0.0)
}

/// `sum over (input, output) pairs` of `weight`: forward adds into the output, backward into the input.
fn for_each_pair(
    align_corners: bool,
    input: ActivationShape,
    output: ActivationShape,
    mut visit: impl FnMut(usize, usize, f64),
) {
    let pairs = |size: usize, resized: usize| -> Vec<(usize, usize, f64)> {
        let all = (0..resized).flat_map(|i| (0..size).map(move |j| (i, j)));
        all.map(|(i, j)| (i, j, weight(align_corners, size, resized, i, j))).filter(|p| p.2 > 0.0).collect()
    };
    let (t, h, w) = (pairs(input.t, output.t), pairs(input.h, output.h), pairs(input.w, output.w));
    for n in 0..input.n {
        for &(to, ti, wt) in &t {
            for &(ho, hi, wh) in &h {
                for &(wo, wi, ww) in &w {
                    let from = ((n * input.t + ti) * input.h + hi) * input.w + wi;
                    let to = ((n * output.t + to) * output.h + ho) * output.w + wo;
                    visit(from, to, wt * wh * ww);
                }
            }
        }
    }
}

/// `values` `[n][t][h][w][c]` resized to `output`'s t, h, w.
pub fn forward(align_corners: bool, input: ActivationShape, output: ActivationShape, values: &[f64]) -> Vec<f64> {
    let mut result = vec![0.0; output.num_elements()];
    for_each_pair(align_corners, input, output, |from, to, weight| {
        for c in 0..input.c {
            result[to * input.c + c] += weight * values[from * input.c + c];
        }
    });
    result
}

/// Gradient of the input, from `grad_output` `[n][to][ho][wo][c]`.
pub fn grad_input(
    align_corners: bool,
    input: ActivationShape,
    output: ActivationShape,
    grad_output: &[f64],
) -> Vec<f64> {
    let mut result = vec![0.0; input.num_elements()];
    for_each_pair(align_corners, input, output, |from, to, weight| {
        for c in 0..input.c {
            result[from * input.c + c] += weight * grad_output[to * input.c + c];
        }
    });
    result
}
