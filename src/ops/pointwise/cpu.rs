//! Native CPU: one pass over rows, blocks in parallel.

use crate::device::{ActMut, ActRef};
use crate::ops::rows::{self, Blocks, StripMut};

/// `y = f(x, y)`.
pub(super) fn zip(x: ActRef<'_>, y: ActMut<'_>, f: impl Fn(f32, f32) -> f32 + Sync + Send + Copy) {
    let c = y.shape.c;
    let positions = y.shape.num_positions();
    let blocks = Blocks::new(positions, positions, c);
    let together = rows::rows_together(c, &[x.pitch_c, y.pitch_c]);
    let (width, step_x, step_y) = (together * c, together * x.pitch_c, together * y.pitch_c);
    rows::for_each(blocks, StripMut::new(y), |block, y| {
        let x = &x.data[rows::part(x.data, x.pitch_c, &block.rows)];
        rows::vectorized(
            #[inline(always)]
            || {
                for (x, y) in x.chunks(step_x).zip(y.data.chunks_mut(step_y)) {
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
    let positions = y.shape.num_positions();
    let blocks = Blocks::new(positions, positions, c);
    let together = rows::rows_together(c, &[y.pitch_c]);
    let (width, step) = (together * c, together * y.pitch_c);
    rows::for_each(blocks, StripMut::new(y), |_, y| {
        rows::vectorized(
            #[inline(always)]
            || {
                for y in y.data.chunks_mut(step) {
                    let width = width.min(y.len());
                    y[..width].iter_mut().for_each(|y| *y = f(*y));
                }
            },
        );
    });
}
