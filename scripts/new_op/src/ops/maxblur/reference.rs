//! What `maxblur` means, slowly and in f64. Tests compare every executor with it.

use crate::shape::ActivationShape;

/// `values` of shape `input`, `[n][t][h][w][c]`, halved. Every result of an arithmetic operation goes through `round`: the
/// identity gives the meaning of the op, rounding to f32 what plain f32 makes of it.
pub fn forward(input: ActivationShape, values: &[f64], round: fn(f64) -> f64) -> Vec<f64> {
    let output = super::output_shape(input);
    let at = |frame: usize, y: usize, x: usize, c: usize| {
        values[((frame * input.h + y.min(input.h - 1)) * input.w + x.min(input.w - 1)) * input.c + c]
    };
    let largest = |frame: usize, y: usize, x: usize, c: usize| {
        let all = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(dy, dx)| at(frame, y + dy, x + dx, c));
        all.into_iter().fold(f64::NEG_INFINITY, |max, v| if v > max || v.is_nan() { v } else { max })
    };
    let tap = |o: usize, i: usize, size: usize| (2 * o + i).saturating_sub(1).min(size - 1);
    let mut result = Vec::with_capacity(output.num_elements());
    for position in 0..output.num_positions() {
        let (frame, yo, xo) = (position / output.w / output.h, position / output.w % output.h, position % output.w);
        for c in 0..output.c {
            let mut sum = 0.0;
            for (i, wy) in [0.25, 0.5, 0.25].into_iter().enumerate() {
                for (j, wx) in [0.25, 0.5, 0.25].into_iter().enumerate() {
                    let value = largest(frame, tap(yo, i, input.h), tap(xo, j, input.w), c);
                    sum = round(sum + round(wy * wx * value));
                }
            }
            result.push(sum);
        }
    }
    result
}
