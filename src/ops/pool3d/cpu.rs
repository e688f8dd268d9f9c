//! Native CPU: rows of channels, blocks of output (forward) or input (backward) positions in parallel.

use std::ops::Range;

use super::Pool3d;
use crate::device::{ActMut, ActRef};
use crate::ops::rows;
use crate::shape::ActivationShape;

/// (clip, t, h, w) of a position.
fn position(shape: &ActivationShape, p: usize) -> [usize; 4] {
    let (hw, thw) = (shape.h * shape.w, shape.t * shape.h * shape.w);
    [p / thw, p % thw / hw, p % hw / shape.w, p % shape.w]
}

/// Along one axis: the input positions of window `o`, and the window's index of the first.
fn window(op: &Pool3d, axis: usize, size: usize, o: usize) -> (Range<usize>, usize) {
    let start = o * op.stride[axis];
    let skip = op.padding[axis].saturating_sub(start);
    let first = start + skip - op.padding[axis];
    (first..(start + op.kernel[axis] - op.padding[axis]).min(size), skip)
}

/// Along one axis: the windows that hold input position `i`.
fn windows_of(op: &Pool3d, axis: usize, windows: usize, i: usize) -> Range<usize> {
    let (kernel, stride, at) = (op.kernel[axis], op.stride[axis], i + op.padding[axis]);
    (at + 1).saturating_sub(kernel).div_ceil(stride)..(at / stride + 1).min(windows)
}

/// Calls `visit(input position, index in the window)` for each valid tap of the window at `[n, t, h, w]`, in t-major order.
#[inline(always)]
fn taps(op: &Pool3d, [n, t, h, w]: [usize; 4], mut visit: impl FnMut(usize, u32)) {
    let input = &op.input;
    let (ts, t_skip) = window(op, 0, input.t, t);
    let (hs, h_skip) = window(op, 1, input.h, h);
    let (ws, w_skip) = window(op, 2, input.w, w);
    for (it, kt) in ts.zip(t_skip..) {
        for (ih, kh) in hs.clone().zip(h_skip..) {
            let first = ((n * input.t + it) * input.h + ih) * input.w;
            for (iw, kw) in ws.clone().zip(w_skip..) {
                visit(first + iw, ((kt * op.kernel[1] + kh) * op.kernel[2] + kw) as u32);
            }
        }
    }
}

/// Calls `visit(output position, index of this input position in that window)` for each window that holds the input
/// position `[n, t, h, w]`, in order of the output.
#[inline(always)]
fn holders(op: &Pool3d, output: &ActivationShape, [n, t, h, w]: [usize; 4], mut visit: impl FnMut(usize, u32)) {
    let index = |axis: usize, o: usize, i: usize| i + op.padding[axis] - o * op.stride[axis];
    for ot in windows_of(op, 0, output.t, t) {
        for oh in windows_of(op, 1, output.h, h) {
            for ow in windows_of(op, 2, output.w, w) {
                let (kt, kh, kw) = (index(0, ot, t), index(1, oh, h), index(2, ow, w));
                let position = ((n * output.t + ot) * output.h + oh) * output.w + ow;
                visit(position, ((kt * op.kernel[1] + kh) * op.kernel[2] + kw) as u32);
            }
        }
    }
}

/// Largest value of each window, and where it was.
pub(super) fn forward_max(op: &Pool3d, input: ActRef<'_>, output: ActMut<'_>, indices: Option<&mut [u32]>) {
    let (shape, c, pitch) = (output.shape, output.shape.c, output.pitch_c);
    let blocks: Vec<_> = rows::blocks(0..shape.num_positions(), c).collect();
    let outputs = rows::split(output.data, pitch, &blocks);
    let indices: Vec<Option<&mut [u32]>> = match indices {
        Some(all) => rows::split(all, c, &blocks).into_iter().map(Some).collect(),
        None => blocks.iter().map(|_| None).collect(),
    };
    rows::for_each(blocks.into_iter().zip(outputs).zip(indices).collect(), |((block, y), mut indices)| {
        let mut unused = vec![0; if indices.is_some() { 0 } else { c }];
        rows::vectorized(
            #[inline(always)]
            || {
                for (i, p) in block.enumerate() {
                    let y = &mut y[i * pitch..][..c];
                    let winner = match &mut indices {
                        Some(indices) => &mut indices[i * c..][..c],
                        None => &mut unused[..],
                    };
                    let mut is_first = true;
                    taps(op, position(&shape, p), |at, tap| {
                        let x = &input.data[at * input.pitch_c..][..c];
                        if std::mem::take(&mut is_first) {
                            y.copy_from_slice(x);
                            winner.fill(tap);
                        } else {
                            max_with(y, winner, x, tap);
                        }
                    });
                }
            },
        );
    });
}

/// The first of equal values wins, and a NaN wins over all.
#[inline(always)]
fn max_with(y: &mut [f32], winner: &mut [u32], x: &[f32], tap: u32) {
    for ((y, winner), x) in y.iter_mut().zip(winner).zip(x) {
        let wins = *x > *y || x.is_nan();
        *winner = if wins { tap } else { *winner };
        *y = if wins { *x } else { *y };
    }
}

/// Mean of each window.
pub(super) fn forward_average(op: &Pool3d, input: ActRef<'_>, output: ActMut<'_>) {
    let (shape, c, pitch) = (output.shape, output.shape.c, output.pitch_c);
    let scale = 1.0 / op.kernel.iter().product::<usize>() as f32;
    let blocks: Vec<_> = rows::blocks(0..shape.num_positions(), c).collect();
    let outputs = rows::split(output.data, pitch, &blocks);
    rows::for_each(blocks.into_iter().zip(outputs).collect(), |(block, y)| {
        rows::vectorized(
            #[inline(always)]
            || {
                for (i, p) in block.enumerate() {
                    let y = &mut y[i * pitch..][..c];
                    y.fill(0.0);
                    taps(op, position(&shape, p), |at, _| {
                        let x = &input.data[at * input.pitch_c..][..c];
                        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                    });
                    y.iter_mut().for_each(|y| *y *= scale);
                }
            },
        );
    });
}

/// Gradient of the input of max pooling: each input position asks the windows that hold it.
pub(super) fn grad_input_max(
    op: &Pool3d,
    grad_output: ActRef<'_>,
    indices: &[u32],
    grad_input: ActMut<'_>,
    accumulate: bool,
) {
    gather(op, grad_input, accumulate, |dx, at, tap| {
        let dy = &grad_output.data[at * grad_output.pitch_c..][..dx.len()];
        let winner = &indices[at * dx.len()..][..dx.len()];
        for ((dx, dy), winner) in dx.iter_mut().zip(dy).zip(winner) {
            *dx += if *winner == tap { *dy } else { 0.0 };
        }
    });
}

/// Gradient of the input of average pooling.
pub(super) fn grad_input_average(op: &Pool3d, grad_output: ActRef<'_>, grad_input: ActMut<'_>, accumulate: bool) {
    let scale = 1.0 / op.kernel.iter().product::<usize>() as f32;
    gather(op, grad_input, accumulate, |dx, at, _| {
        let dy = &grad_output.data[at * grad_output.pitch_c..][..dx.len()];
        dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy * scale);
    });
}

/// Calls `add(grad_input row, output position, index in the window)` for each input position and window that holds it.
#[inline(always)]
fn gather(op: &Pool3d, grad_input: ActMut<'_>, accumulate: bool, add: impl Fn(&mut [f32], usize, u32) + Sync) {
    let (shape, c, pitch, output) = (grad_input.shape, grad_input.shape.c, grad_input.pitch_c, op.output());
    let blocks: Vec<_> = rows::blocks(0..shape.num_positions(), c).collect();
    let parts = rows::split(grad_input.data, pitch, &blocks);
    rows::for_each(blocks.into_iter().zip(parts).collect(), |(block, dx)| {
        rows::vectorized(
            #[inline(always)]
            || {
                for (i, p) in block.enumerate() {
                    let dx = &mut dx[i * pitch..][..c];
                    if !accumulate {
                        dx.fill(0.0);
                    }
                    holders(op, &output, position(&shape, p), |at, tap| add(dx, at, tap));
                }
            },
        );
    });
}
