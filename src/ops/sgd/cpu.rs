//! Native CPU: one pass over the three arrays, blocks in parallel.

use half::{bf16, f16};
use rayon::prelude::*;

use super::{Arrays, Guard, ParamRange, Sgd, State};
use crate::device::{DType, with_host};
use crate::error::Result;
use crate::ops::rows::{self, BLOCK_ELEMENTS};

/// See [`super::step_all`].
pub(super) fn step_all(op: &Sgd, ranges: &[ParamRange], arrays: &Arrays<'_>, guard: Option<&Guard<'_>>) -> Result<()> {
    let state = guard.map(|guard| check(op, ranges, arrays, guard)).transpose()?;
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
        clipped_step(&op, clipping, ranges, p.into_mut()?, g.get()?, m.into_mut()?);
        Ok(())
    })?;
    let Some(copy) = arrays.copy else { return Ok(()) };
    with_host([arrays.params], [copy], |[p], [to]| match copy.dtype() {
        DType::Bf16 => round(ranges, p.get()?, to.into_mut()?, bf16::from_f32),
        _ => round(ranges, p.get()?, to.into_mut()?, f16::from_f32),
    })
}

fn round<T: Send>(ranges: &[ParamRange], from: &[f32], to: &mut [T], round: fn(f32) -> T) -> Result<()> {
    for range in ranges {
        let all = range.start..range.start + range.len;
        let parts = to[all.clone()].chunks_mut(BLOCK_ELEMENTS).zip(from[all].chunks(BLOCK_ELEMENTS));
        rows::for_each(parts.collect(), |(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to = round(*from)));
    }
    Ok(())
}

/// Forms the norm of the gradients, decides on the step and leaves the new state, which is also returned.
fn check(op: &Sgd, ranges: &[ParamRange], arrays: &Arrays<'_>, guard: &Guard<'_>) -> Result<State> {
    let is_flagged = match guard.skip_flag {
        None => false,
        Some(flag) => with_host([], [flag], |[], [flag]| Ok(std::mem::take(&mut flag.into_mut::<u32>()?[0]) != 0))?,
    };
    with_host([arrays.grads], [guard.state], |[g], [state]| {
        let (g, state) = (g.get::<f32>()?, bytemuck::cast_slice_mut::<u32, State>(state.into_mut()?));
        let parts: Vec<&[f32]> =
            ranges.iter().flat_map(|r| g[r.start..r.start + r.len].chunks(BLOCK_ELEMENTS)).collect();
        let factor = 1.0 / state[0].loss_scale;
        let sums: Vec<f64> = parts.into_par_iter().map(|part| sum_of_squares(part, factor)).collect();
        guard.decide(&mut state[0], sums.iter().sum(), is_flagged, op.first_step);
        Ok(state[0])
    })
}

/// Sum of the squares of `factor * g`; NaN where one is not finite.
fn sum_of_squares(grads: &[f32], factor: f32) -> f64 {
    let square = |g: &f32| f64::from(g * factor) * f64::from(g * factor);
    if grads.iter().all(|g| g.is_finite()) { grads.iter().map(square).sum() } else { f64::NAN }
}

/// See [`super::step`]. The ranges are in order and do not overlap.
pub(super) fn step(op: &Sgd, ranges: &[ParamRange], params: &mut [f32], grads: &[f32], momentum: &mut [f32]) {
    clipped_step(op, Clipping { factor: 1.0, max_value: f32::INFINITY }, ranges, params, grads, momentum);
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
    ranges: &[ParamRange],
    mut params: &mut [f32],
    grads: &[f32],
    mut momentum: &mut [f32],
) {
    let mut blocks = Vec::with_capacity(ranges.len() + params.len() / BLOCK_ELEMENTS);
    let mut done = 0;
    for range in ranges {
        let (p, rest_p) = params[range.start - done..].split_at_mut(range.len);
        let (m, rest_m) = momentum[range.start - done..].split_at_mut(range.len);
        let g = &grads[range.start..][..range.len];
        let parts = p.chunks_mut(BLOCK_ELEMENTS).zip(m.chunks_mut(BLOCK_ELEMENTS)).zip(g.chunks(BLOCK_ELEMENTS));
        blocks.extend(parts.map(|part| (range.weight_decay, part)));
        (params, momentum, done) = (rest_p, rest_m, range.start + range.len);
    }
    rows::for_each(blocks, |(weight_decay, ((p, m), g))| {
        rows::vectorized(
            #[inline(always)]
            || block(op, clipping, weight_decay, p, g, m),
        );
    });
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
