//! Mixup and CutMix on the clips of a batch, in place: each clip is blended with the one that stands as far from the batch's end as
//! it does from its beginning (`slowfast/datasets/mixup.py`).

mod launch;
pub mod reference;

use std::ops::Range;

use rayon::prelude::*;

use crate::device::{ActMut, Device, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;

/// What is blended.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixup {
    /// A clip's own share, in 0..=1; its partner has the rest. 0 for CutMix, which exchanges the pixels.
    pub keep: f32,
    /// Rows of every frame that are blended; all of them for mixup.
    pub rows: Range<usize>,
    /// Columns, likewise.
    pub columns: Range<usize>,
}

const OP: &str = "mixup";

/// `clip = keep * clip + (1 - keep) * partner` for all clips of `clips` `[n][t][h][w][c]` at once; clip `i` and clip `n - 1 - i` are
/// partners. f32 on the CPU; f32, bf16 or f16 elsewhere.
///
/// # Errors
/// A share outside of [0, 1], a box that does not lie in the frame, tensors of other types.
pub fn blend(stream: &Stream, op: &Mixup, clips: &Tensor) -> Result<()> {
    let shape = clips.shape();
    check::tensor_of(OP, "clips", clips, shape, check::activation_dtype(OP, stream, "clips", clips)?)?;
    if !(0.0..=1.0).contains(&op.keep) {
        return Err(Error::shape(OP, format!("keep must be in [0, 1], got {}", op.keep)));
    }
    for (name, range, size) in [("rows", &op.rows, shape.h), ("columns", &op.columns, shape.w)] {
        if range.start > range.end || range.end > size {
            return Err(Error::shape(OP, format!("{name} must lie in 0..{size}, got {range:?}")));
        }
    }
    if op.rows.is_empty() || op.columns.is_empty() || shape.n < 2 {
        return Ok(());
    }
    if *stream.device() != Device::Cpu {
        return launch::blend(stream, op, clips);
    }
    with_host([], [clips.memory()], |[], [y]| {
        on_cpu(op, clips.view_mut(y.into_mut()?));
        Ok(())
    })
}

/// Pairs of clips in parallel.
fn on_cpu(op: &Mixup, clips: ActMut<'_>) {
    let (shape, pitch) = (clips.shape, clips.pitch_c);
    let clip_len = shape.t * shape.h * shape.w * pitch;
    let mut parts: Vec<&mut [f32]> = clips.data.chunks_mut(clip_len).collect();
    let partners = parts.split_off(shape.n.div_ceil(2));
    let owns = parts.into_iter().take(shape.n / 2);
    owns.zip(partners.into_iter().rev()).collect::<Vec<_>>().into_par_iter().for_each(|(own, partner)| {
        for row in (0..shape.t).flat_map(|t| op.rows.clone().map(move |h| t * shape.h + h)) {
            for column in op.columns.clone() {
                let at = (row * shape.w + column) * pitch;
                for (a, b) in own[at..at + shape.c].iter_mut().zip(&mut partner[at..at + shape.c]) {
                    (*a, *b) = (op.keep * *a + (1.0 - op.keep) * *b, op.keep * *b + (1.0 - op.keep) * *a);
                }
            }
        }
    });
}
