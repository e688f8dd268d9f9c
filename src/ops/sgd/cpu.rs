//! Native CPU: one pass over the three arrays, blocks in parallel.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Arrays, Guard, ParamRange, Sgd, State};
use crate::device::cpu::scratch;
use crate::device::{DType, with_host};
use crate::error::Result;
use crate::ops::rows::{self, BLOCK_ELEMENTS, Parts, StripMut};

/// The ranges cut into the tasks of a step.
pub(super) fn blocks(ranges: &[ParamRange]) -> impl Iterator<Item = ParamRange> + '_ {
    ranges.iter().flat_map(|range| {
        let starts = (0..range.len).step_by(BLOCK_ELEMENTS);
        starts.map(|first| ParamRange {
            start: range.start + first,
            len: BLOCK_ELEMENTS.min(range.len - first),
            ..*range
        })
    })
}

/// See [`super::step_all`], with ranges cut into [`blocks`].
pub(super) fn step_all(op: &Sgd, blocks: &[ParamRange], arrays: &Arrays<'_>, guard: Option<&Guard<'_>>) -> Result<()> {
    let state = guard.map(|guard| check(op, blocks, arrays, guard)).transpose()?;
    if state.is_some_and(|state| state.skipped != 0) {
        return Ok(());
    }
    let mut op = *op;
    if let Some(lr) = arrays.lr {
        op.lr = with_host([lr], [], |[lr], []| Ok(lr.get::<f32>()?[0]))?;
    }
    op.first_step = state.map_or(op.first_step, |state| state.first_step != 0);
    let clipping = Clipping {
        factor: state.map_or(1.0, |state| state.factor),
        max_value: guard.map_or(f32::INFINITY, |guard| guard.max_grad_value),
    };
    with_host([arrays.grads], [arrays.params, arrays.momentum], |[g], [p, m]| {
        clipped_step(&op, clipping, blocks, p.into_mut()?, g.get()?, m.into_mut()?);
        Ok(())
    })?;
    let Some(copy) = arrays.copy else { return Ok(()) };
    with_host([arrays.params], [copy], |[p], [to]| match copy.dtype() {
        DType::Bf16 => round(blocks, p.get()?, to.into_mut()?, bf16::from_f32),
        _ => round(blocks, p.get()?, to.into_mut()?, f16::from_f32),
    })
}

fn round<T: Send>(blocks: &[ParamRange], from: &[f32], to: &mut [T], round: fn(f32) -> T) -> Result<()> {
    for_each(blocks, 0, all(to), &|block, to| {
        to.data.iter_mut().zip(&from[block.start..]).for_each(|(to, from)| *to = round(*from));
    });
    Ok(())
}

/// Forms the norm of the gradients, decides on the step and leaves the new state, which is also returned.
fn check(op: &Sgd, blocks: &[ParamRange], arrays: &Arrays<'_>, guard: &Guard<'_>) -> Result<State> {
    let is_flagged = match guard.skip_flag {
        None => false,
        Some(flag) => with_host([], [flag], |[], [flag]| Ok(std::mem::take(&mut flag.into_mut::<u32>()?[0]) != 0))?,
    };
    with_host([arrays.grads], [guard.state], |[g], [state]| {
        let (g, state) = (g.get::<f32>()?, bytemuck::cast_slice_mut::<u32, State>(state.into_mut()?));
        let factor = 1.0 / state[0].loss_scale;
        let mut sums = scratch::take::<f64>(blocks.len());
        sums.par_iter_mut().zip(blocks).for_each(|(sum, block)| {
            *sum = sum_of_squares(&g[block.start..][..block.len], factor);
        });
        guard.decide(&mut state[0], sums.iter().sum(), is_flagged, op.first_step);
        Ok(state[0])
    })
}

/// Sum of the squares of `factor * g`; NaN where one is not finite.
fn sum_of_squares(grads: &[f32], factor: f32) -> f64 {
    let square = |g: &f32| f64::from(g * factor) * f64::from(g * factor);
    if grads.iter().all(|g| g.is_finite()) { grads.iter().map(square).sum() } else { f64::NAN }
}

/// See [`super::step`], with ranges cut into [`blocks`]: in order, without overlap.
pub(super) fn step(op: &Sgd, blocks: &[ParamRange], params: &mut [f32], grads: &[f32], momentum: &mut [f32]) {
    clipped_step(op, Clipping { factor: 1.0, max_value: f32::INFINITY }, blocks, params, grads, momentum);
}

/// What becomes of a gradient before the step.
#[derive(Clone, Copy)]
struct Clipping {
    factor: f32,
    max_value: f32,
}

impl Clipping {
    /// A factor of 1 and no largest value change no bit; a NaN stays one.
    #[inline(always)]
    fn apply(self, g: f32) -> f32 {
        let g = self.factor * g;
        if g > self.max_value {
            self.max_value
        } else if g < -self.max_value {
            -self.max_value
        } else {
            g
        }
    }
}

/// The same with clipped gradients.
fn clipped_step(
    op: &Sgd,
    clipping: Clipping,
    blocks: &[ParamRange],
    params: &mut [f32],
    grads: &[f32],
    momentum: &mut [f32],
) {
    for_each(blocks, 0, (all(params), all(momentum)), &|range, (p, m)| {
        let g = &grads[range.start..][..range.len];
        rows::vectorized(
            #[inline(always)]
            || block(op, clipping, range.weight_decay, p.data, g, m.data),
        );
    });
}

/// Elements of an array from some one on.
fn all<T>(data: &mut [T]) -> StripMut<'_, T> {
    StripMut { data, pitch: 1 }
}

/// Runs `work` for each block with its part of `arrays`, which begin with element `first`, in parallel.
fn for_each<A: Parts>(blocks: &[ParamRange], first: usize, arrays: A, work: &(impl Fn(&ParamRange, A) + Sync)) {
    match blocks {
        [] => {}
        [block] => work(block, arrays.cut(0, block.start - first).1.cut(1, block.len).0),
        _ => {
            let (left, right) = blocks.split_at(blocks.len() / 2);
            let (of_left, of_right) = arrays.cut(left.len(), right[0].start - first);
            rayon::join(|| for_each(left, first, of_left, work), || for_each(right, right[0].start, of_right, work));
        }
    }
}

#[inline(always)]
fn block(op: &Sgd, clipping: Clipping, weight_decay: f32, params: &mut [f32], grads: &[f32], momentum: &mut [f32]) {
    let Sgd { lr, momentum: mu, .. } = *op;
    let all = params.iter_mut().zip(grads).zip(momentum);
    if mu == 0.0 {
        return all.for_each(|((p, g), _)| *p -= lr * (clipping.apply(*g) + weight_decay * *p));
    }
    let take = 1.0 - op.dampening;
    // d = from_g * g + from_m * m
    let (from_g, from_m) = if op.nesterov { (1.0, mu) } else { (0.0, 1.0) };
    for ((p, g), m) in all {
        let g = clipping.apply(*g) + weight_decay * *p;
        // A choice, not a product with zero: what the buffer held before the first step may be anything.
        let new = if op.first_step { g } else { mu * *m + take * g };
        *m = new;
        *p -= lr * (from_g * g + from_m * new);
    }
}
