//! Native CPU: one pass over the three arrays, blocks in parallel.

use super::{ParamRange, Sgd};
use crate::ops::rows::{self, BLOCK_ELEMENTS};

/// See [`super::step`]. The ranges are in order and do not overlap.
pub(super) fn step(op: &Sgd, ranges: &[ParamRange], mut params: &mut [f32], grads: &[f32], mut momentum: &mut [f32]) {
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
            || block(op, weight_decay, p, g, m),
        );
    });
}

#[inline(always)]
fn block(op: &Sgd, weight_decay: f32, params: &mut [f32], grads: &[f32], momentum: &mut [f32]) {
    let Sgd { lr, momentum: mu, .. } = *op;
    let all = params.iter_mut().zip(grads).zip(momentum);
    if mu == 0.0 {
        return all.for_each(|((p, g), _)| *p -= lr * (g + weight_decay * *p));
    }
    let take = 1.0 - op.dampening;
    // d = from_g * g + from_m * m
    let (from_g, from_m) = if op.nesterov { (1.0, mu) } else { (0.0, 1.0) };
    for ((p, g), m) in all {
        let g = g + weight_decay * *p;
        // A choice, not a product with zero: what the buffer held before the first step may be anything.
        let new = if op.first_step { g } else { mu * *m + take * g };
        *m = new;
        *p -= lr * (from_g * g + from_m * new);
    }
}
