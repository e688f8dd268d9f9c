//! Native CPU: one pass, blocks of rows in parallel.

use super::{Dropout, draw};
use crate::device::{ActMut, ActRef};
use crate::ops::rows::{self, Blocks, StripMut};

/// `output = mask * scale * input`; `input` is `None` where it is the output's own memory.
pub(super) fn apply(op: &Dropout, input: Option<ActRef<'_>>, output: ActMut<'_>) {
    let shape = output.shape;
    let clip_rows = shape.t * shape.h * shape.w;
    let blocks = Blocks::new(shape.num_positions(), clip_rows, shape.c);
    let (threshold, scale, pitch) = (op.threshold(), op.scale(), output.pitch_c);
    rows::for_each(blocks, StripMut::new(output), |block, part| {
        let clip = block.group;
        let key = op.key(op.first_clip + clip);
        rows::vectorized(
            #[inline(always)]
            || {
                for (row, y) in block.rows.zip(part.data.chunks_mut(pitch)) {
                    let first = ((row - clip * clip_rows) * shape.c) as u64;
                    let factor = |i: usize| if draw(key, first + i as u64) >= threshold { scale } else { 0.0 };
                    let y = &mut y[..shape.c];
                    match input {
                        Some(x) => {
                            let x = &x.data[row * x.pitch_c..][..shape.c];
                            y.iter_mut().zip(x).enumerate().for_each(|(i, (y, x))| *y = x * factor(i));
                        }
                        None => y.iter_mut().enumerate().for_each(|(i, y)| *y *= factor(i)),
                    }
                }
            },
        );
    });
}
