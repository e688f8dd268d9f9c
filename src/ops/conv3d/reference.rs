//! The meaning of the convolution: slow, plain, f64, dense `[n][t][h][w][c]` arrays. For tests and benches only.

mod fused;

pub use fused::*;

use super::Conv3d;

/// One product of the sum: which input, filter and output elements meet.
pub struct Term {
    /// Input element.
    pub x: usize,
    /// Filter element.
    pub w: usize,
    /// Output element.
    pub y: usize,
}

/// Calls `f` for every product of the convolution that reads inside the input.
pub fn for_each_term(op: &Conv3d, mut f: impl FnMut(Term)) {
    let (i, o) = (op.input, op.output());
    let (g_in, g_out) = (i.c / op.groups, op.c_out / op.groups);
    let [ft, fh, fw] = op.filter;
    let at = |axis: usize, out: usize, tap: usize, size: usize| {
        (out * op.stride[axis] + tap * op.dilation[axis]).checked_sub(op.padding[axis]).filter(|&at| at < size)
    };
    for p in 0..o.num_positions() {
        let (n, to, ho, wo) = (p / (o.t * o.h * o.w), p / (o.h * o.w) % o.t, p / o.w % o.h, p % o.w);
        for tap in 0..ft * fh * fw {
            let (kt, kh, kw) = (tap / (fh * fw), tap / fw % fh, tap % fw);
            let inside = (at(0, to, kt, i.t), at(1, ho, kh, i.h), at(2, wo, kw, i.w));
            let (Some(ti), Some(hi), Some(wi)) = inside else { continue };
            let position = ((n * i.t + ti) * i.h + hi) * i.w + wi;
            for co in 0..op.c_out {
                for k in 0..g_in {
                    f(Term {
                        x: position * i.c + co / g_out * g_in + k,
                        w: (co * ft * fh * fw + tap) * g_in + k,
                        y: p * op.c_out + co,
                    });
                }
            }
        }
    }
}

/// `y[p][co] = bias[co] + sum of x w`.
pub fn forward(op: &Conv3d, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let mut y = vec![0.0; op.output().num_elements()];
    if let Some(bias) = bias {
        y.chunks_mut(op.c_out).for_each(|position| position.copy_from_slice(bias));
    }
    for_each_term(op, |t| y[t.y] += x[t.x] * w[t.w]);
    y
}

/// `dx = sum of dy w`.
pub fn grad_input(op: &Conv3d, dy: &[f64], w: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; op.input.num_elements()];
    for_each_term(op, |t| dx[t.x] += dy[t.y] * w[t.w]);
    dx
}

/// `dw = sum of dy x`.
pub fn grad_filter(op: &Conv3d, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let mut dw = vec![0.0; op.filter_len()];
    for_each_term(op, |t| dw[t.w] += dy[t.y] * x[t.x]);
    dw
}

/// Sum of `dy` over positions.
pub fn grad_bias(op: &Conv3d, dy: &[f64]) -> Vec<f64> {
    let mut db = vec![0.0; op.c_out];
    for position in dy.chunks(op.c_out) {
        db.iter_mut().zip(position).for_each(|(b, v)| *b += v);
    }
    db
}
