//! The meaning of pooling: slow, plain, dense `[n][t][h][w][c]` arrays. For tests and benches only.

use super::{Pool3d, PoolKind};

/// Calls `f(input position, output position, index of the tap in the window)` for each window, taps in t-major order.
fn for_each_tap(op: &Pool3d, mut f: impl FnMut(usize, usize, u32)) {
    let (i, o, [kt, kh, kw]) = (op.input, op.output(), op.kernel);
    let at = |axis: usize, out: usize, tap: usize, size: usize| {
        (out * op.stride[axis] + tap).checked_sub(op.padding[axis]).filter(|&at| at < size)
    };
    for p in 0..o.num_positions() {
        let (n, to, ho, wo) = (p / (o.t * o.h * o.w), p / (o.h * o.w) % o.t, p / o.w % o.h, p % o.w);
        for tap in 0..kt * kh * kw {
            let t = at(0, to, tap / (kh * kw), i.t);
            let h = at(1, ho, tap / kw % kh, i.h);
            let w = at(2, wo, tap % kw, i.w);
            if let (Some(t), Some(h), Some(w)) = (t, h, w) {
                f(((n * i.t + t) * i.h + h) * i.w + w, p, tap as u32);
            }
        }
    }
}

/// Output, and for `Max` the winning tap of each output element. `round` is applied to every intermediate result.
pub fn forward(op: &Pool3d, round: fn(f64) -> f64, x: &[f64]) -> (Vec<f64>, Vec<u32>) {
    let (c, len) = (op.input.c, op.output().num_elements());
    match op.kind {
        PoolKind::Max => {
            let (mut y, mut winner) = (vec![f64::NAN; len], vec![u32::MAX; len]);
            for_each_tap(op, |input, output, tap| {
                for ch in 0..c {
                    let (value, at) = (x[input * c + ch], output * c + ch);
                    if winner[at] == u32::MAX || value > y[at] || value.is_nan() {
                        (y[at], winner[at]) = (value, tap);
                    }
                }
            });
            (y, winner)
        }
        PoolKind::Average => {
            let (mut y, count) = (vec![0.0; len], op.kernel.iter().product::<usize>() as f64);
            for_each_tap(op, |input, output, _| {
                for ch in 0..c {
                    let at = output * c + ch;
                    y[at] = round(y[at] + x[input * c + ch]);
                }
            });
            y.iter_mut().for_each(|y| *y = round(*y / count));
            (y, vec![])
        }
    }
}

/// Gradient of the input, added to `dx`; `winner` as [`forward`] gives it.
pub fn grad_input(op: &Pool3d, round: fn(f64) -> f64, dy: &[f64], winner: &[u32], mut dx: Vec<f64>) -> Vec<f64> {
    let (c, count) = (op.input.c, op.kernel.iter().product::<usize>() as f64);
    for_each_tap(op, |input, output, tap| {
        for ch in 0..c {
            let (to, from) = (input * c + ch, output * c + ch);
            let share = match op.kind {
                PoolKind::Max => f64::from(u8::from(winner[from] == tap)) * dy[from],
                PoolKind::Average => round(dy[from] / count),
            };
            dx[to] = round(dx[to] + share);
        }
    });
    dx
}
