//! The native form. Rows of the output are made in parallel, each sum in one fixed order.

use half::bf16;
use rayon::prelude::*;

use crate::device::{DType, Element, Tensor, with_host};
use crate::error::Result;

pub(super) fn forward(input: &Tensor, output: &Tensor) -> Result<()> {
    match input.dtype() {
        DType::Bf16 => forward_as(input, output, bf16::to_f32, bf16::from_f32),
        _ => forward_as(input, output, |v: f32| v, |v| v),
    }
}

fn forward_as<T: Element>(input: &Tensor, output: &Tensor, load: fn(T) -> f32, round: fn(f32) -> T) -> Result<()> {
    let (from, to, pitch_c) = (input.shape(), output.shape(), input.pitch_c());
    if to.num_elements() == 0 {
        return Ok(());
    }
    with_host([input.memory()], [output.memory()], |[source], [target]| {
        let source = source.get::<T>()?;
        target.into_mut::<T>()?.par_chunks_mut(to.w * output.pitch_c()).enumerate().for_each(|(row, target)| {
            let (frame, yo) = (row / to.h, row % to.h);
            let at = |y: usize, x: usize, c: usize| {
                load(source[((frame * from.h + y.min(from.h - 1)) * from.w + x.min(from.w - 1)) * pitch_c + c])
            };
            let tap = |o: usize, i: usize, size: usize| (2 * o + i).saturating_sub(1).min(size - 1);
            for (xo, out) in target.chunks_mut(output.pitch_c()).enumerate() {
                for (c, out) in out[..to.c].iter_mut().enumerate() {
                    let mut sum = 0f32;
                    for k in 0..9 {
                        let (y, x) = (tap(yo, k / 3, from.h), tap(xo, k % 3, from.w));
                        let all = [at(y, x, c), at(y, x + 1, c), at(y + 1, x, c), at(y + 1, x + 1, c)];
                        let is_larger = |max: f32, v: f32| if v > max || v.is_nan() { v } else { max };
                        let largest = all.into_iter().fold(f32::NEG_INFINITY, is_larger);
                        sum += [0.25, 0.5, 0.25][k / 3] * [0.25, 0.5, 0.25][k % 3] * largest;
                    }
                    *out = round(sum);
                }
            }
        });
        Ok(())
    })
}
