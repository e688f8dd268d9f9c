//! The meaning of mixup: slow, plain, dense `[n][t][h][w][c]` arrays. For tests and benches only. `round` is applied to every
//! intermediate result.

use super::Mixup;
use crate::shape::ActivationShape;

/// See [`super::blend`].
pub fn blend(op: &Mixup, round: fn(f64) -> f64, shape: ActivationShape, clips: &[f64]) -> Vec<f64> {
    let clip_len = shape.num_elements() / shape.n;
    let (keep, rest) = (f64::from(op.keep), f64::from(1.0 - op.keep));
    let blended = |i: usize| {
        let (clip, place) = (i / clip_len, i % clip_len);
        let (column, row) = (place / shape.c % shape.w, place / shape.c / shape.w % shape.h);
        let partner = clips[(shape.n - 1 - clip) * clip_len + place];
        let is_alone = shape.n - 1 - clip == clip;
        match op.rows.contains(&row) && op.columns.contains(&column) && !is_alone {
            true => round(round(keep * clips[i]) + round(rest * partner)),
            false => clips[i],
        }
    };
    (0..clips.len()).map(blended).collect()
}
