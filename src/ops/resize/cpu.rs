//! The native form. Both directions are the same gather: an element of the result is a weighted sum over a small box of
//! elements of the other tensor. Rows of the result are made in parallel, each sum in one fixed order.

use half::{bf16, f16};
use rayon::prelude::*;

use super::Axis;
use crate::device::{DType, Element, Tensor, with_host};
use crate::error::Result;

/// For every element of an axis of the result: what it reads, and with which weight.
type Gather = Vec<Vec<(usize, f32)>>;

pub(super) fn forward(axes: &[Axis; 3], input: &Tensor, output: &Tensor) -> Result<()> {
    let gathers = [0, 1, 2].map(|a| {
        let pair = |i| {
            let p = axes[a].pair(i);
            match p.fraction > 0.0 {
                true => vec![(p.first, 1.0 - p.fraction), (p.second, p.fraction)],
                false => vec![(p.first, 1.0)],
            }
        };
        (0..axes[a].resized).map(pair).collect::<Gather>()
    });
    gather(&gathers, input, output)
}

pub(super) fn grad_input(axes: &[Axis; 3], grad_output: &Tensor, grad_input: &Tensor) -> Result<()> {
    gather(&[0, 1, 2].map(|a| axes[a].readers()), grad_output, grad_input)
}

fn gather(gathers: &[Gather; 3], from: &Tensor, to: &Tensor) -> Result<()> {
    match from.dtype() {
        DType::Bf16 => gather_as(gathers, from, to, bf16::to_f32, bf16::from_f32),
        DType::F16 => gather_as(gathers, from, to, f16::to_f32, f16::from_f32),
        _ => gather_as(gathers, from, to, |v: f32| v, |v| v),
    }
}

fn gather_as<T: Element>(
    gathers: &[Gather; 3],
    from: &Tensor,
    to: &Tensor,
    load: fn(T) -> f32,
    round: fn(f32) -> T,
) -> Result<()> {
    let (shape, source, pitch_c) = (to.shape(), from.shape(), from.pitch_c());
    let row_len = shape.w * to.pitch_c();
    if shape.num_elements() == 0 {
        return Ok(());
    }
    with_host([from.memory()], [to.memory()], |[from], [target]| {
        let from = from.get::<T>()?;
        target.into_mut::<T>()?.par_chunks_mut(row_len).enumerate().for_each(|(row, target)| {
            let (n, t, y) = (row / (shape.t * shape.h), row / shape.h % shape.t, row % shape.h);
            let mut sums = vec![0f32; shape.c];
            for (x, out) in target.chunks_mut(to.pitch_c()).enumerate() {
                sums.fill(0.0);
                for &(ts, wt) in &gathers[0][t] {
                    for &(ys, wy) in &gathers[1][y] {
                        for &(xs, wx) in &gathers[2][x] {
                            let at = (((n * source.t + ts) * source.h + ys) * source.w + xs) * pitch_c;
                            let weight = wt * wy * wx;
                            sums.iter_mut().zip(&from[at..at + shape.c]).for_each(|(s, v)| *s += weight * load(*v));
                        }
                    }
                }
                out.iter_mut().zip(&sums).for_each(|(o, s)| *o = round(*s));
            }
        });
        Ok(())
    })
}
