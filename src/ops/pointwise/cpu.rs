//! Native CPU: one pass over rows, blocks in parallel.

use crate::device::{ActMut, ActRef};
use crate::ops::rows;

/// `y = f(x, y)`.
pub(super) fn zip(x: ActRef<'_>, y: ActMut<'_>, f: impl Fn(f32, f32) -> f32 + Sync + Send + Copy) {
    let c = y.shape.c;
    let blocks: Vec<_> = rows::blocks(0..y.shape.num_positions(), c).collect();
    let together = rows::rows_together(c, &[x.pitch_c, y.pitch_c]);
    let (width, step_x, step_y) = (together * c, together * x.pitch_c, together * y.pitch_c);
    let parts = rows::split(y.data, y.pitch_c, &blocks);
    rows::for_each(blocks.into_iter().zip(parts).collect(), |(block, y)| {
        let x = &x.data[rows::part(x.data, x.pitch_c, &block)];
        rows::vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.chunks(step_x).zip(y.chunks_mut(step_y)) {
                    let width = width.min(y.len());
                    for (x, y) in x[..width].iter().zip(&mut y[..width]) {
                        *y = f(*x, *y);
                    }
                }
            },
        );
    });
}

/// `y = f(y)`.
pub(super) fn map(y: ActMut<'_>, f: impl Fn(f32) -> f32 + Sync + Send + Copy) {
    let c = y.shape.c;
    let blocks: Vec<_> = rows::blocks(0..y.shape.num_positions(), c).collect();
    let together = rows::rows_together(c, &[y.pitch_c]);
    let (width, step) = (together * c, together * y.pitch_c);
    rows::for_each(rows::split(y.data, y.pitch_c, &blocks), |y| {
        rows::vectorized(
            #[inline(always)]
            || {
                for y in y.chunks_mut(step) {
                    let width = width.min(y.len());
                    y[..width].iter_mut().for_each(|y| *y = f(*y));
                }
            },
        );
    });
}
