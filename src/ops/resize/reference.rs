//! What `resize` means, slowly and in f64. Tests compare every executor with it.

use crate::shape::ActivationShape;

/// Weight of input element `j` in output sample `i`.
fn weight(align_corners: bool, size: usize, resized: usize, i: usize, j: usize, round: Round) -> f64 {
    let position = match (align_corners, resized) {
        (true, 1) => 0.0,
        (true, _) => round(i as f64 * round((size - 1) as f64 / (resized - 1) as f64)),
        (false, _) => round(round((i as f64 + 0.5) * round(size as f64 / resized as f64)) - 0.5),
    };
    round(1.0 - round(position.clamp(0.0, (size - 1) as f64) - j as f64).abs()).max(0.0)
}

/// Calls `visit` with every pair of an input and an output position that has a weight, and with the weight.
fn for_each_pair(
    shapes: [ActivationShape; 2],
    align_corners: bool,
    round: Round,
    mut visit: impl FnMut(usize, usize, f64),
) {
    let [input, output] = shapes;
    let pairs = |size: usize, resized: usize| -> Vec<(usize, usize, f64)> {
        let all = (0..resized).flat_map(|i| (0..size).map(move |j| (i, j)));
        all.map(|(i, j)| (i, j, weight(align_corners, size, resized, i, j, round))).filter(|p| p.2 > 0.0).collect()
    };
    let (t, h, w) = (pairs(input.t, output.t), pairs(input.h, output.h), pairs(input.w, output.w));
    for n in 0..input.n {
        for &(to, ti, wt) in &t {
            for &(ho, hi, wh) in &h {
                for &(wo, wi, ww) in &w {
                    let from = ((n * input.t + ti) * input.h + hi) * input.w + wi;
                    let to = ((n * output.t + to) * output.h + ho) * output.w + wo;
                    visit(from, to, round(round(wt * wh) * ww));
                }
            }
        }
    }
}

/// What happens to every result of an arithmetic operation: the identity gives the meaning of the op, rounding to f32
/// what plain f32 makes of it.
pub type Round = fn(f64) -> f64;

/// `values` of shape `shapes[0]`, `[n][t][h][w][c]`, resized to `shapes[1]`.
pub fn forward(shapes: [ActivationShape; 2], align_corners: bool, values: &[f64], round: Round) -> Vec<f64> {
    let c = shapes[0].c;
    let mut result = vec![0.0; shapes[1].num_elements()];
    for_each_pair(shapes, align_corners, round, |from, to, weight| {
        for ch in 0..c {
            let sum = &mut result[to * c + ch];
            *sum = round(*sum + round(weight * values[from * c + ch]));
        }
    });
    result
}

/// Gradient of the input of shape `shapes[0]`, from that of the output of shape `shapes[1]`.
pub fn grad_input(shapes: [ActivationShape; 2], align_corners: bool, grad_output: &[f64], round: Round) -> Vec<f64> {
    let c = shapes[0].c;
    let mut result = vec![0.0; shapes[0].num_elements()];
    for_each_pair(shapes, align_corners, round, |from, to, weight| {
        for ch in 0..c {
            let sum = &mut result[from * c + ch];
            *sum = round(*sum + round(weight * grad_output[to * c + ch]));
        }
    });
    result
}
