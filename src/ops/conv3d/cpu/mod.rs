//! Native CPU form: no im2col. The innermost sums run over contiguous channels of the positions that a filter tap meets;
//! filters are packed once per call. Few channels: the taps of one row are one run of values of a copy padded in w.

mod grad_filter;
mod grad_input;
mod pack;
mod padded;
mod taps;
#[cfg(test)]
mod tests;

use super::{Conv3d, Direction};
use crate::device::cpu::{Init, Isa, Panels, add_taps, scratch};
use crate::device::{ActMut, ActRef};
use crate::ops::rows::{self, Blocks, PerBlock, Strip};

pub(in crate::ops) use grad_filter::grad_filter;
pub(in crate::ops) use grad_input::grad_input;
use pack::{FilterColumns, Operand};
use padded::PaddedRows;
use taps::AxisTaps;

/// f32 elements of scratch memory.
pub(in crate::ops) fn workspace_len(isa: Isa, op: &Conv3d, direction: Direction) -> usize {
    match direction {
        Direction::Forward => {
            let axes = AxisTaps::forward(op);
            let padded = padded(op);
            packed_len(isa, op, &axes, padded.as_ref()) + padded.map_or(0, |p| p.len())
        }
        Direction::GradInput => grad_input::workspace_len(isa, op),
        Direction::GradFilter => grad_filter::workspace_len(isa, op),
    }
}

/// Of the input, for the forward and the filter gradient.
fn padded(op: &Conv3d) -> Option<PaddedRows> {
    let [_, _, w] = AxisTaps::forward(op);
    PaddedRows::plan(op.groups, op.input, std::iter::once(w))
}

/// Floats of the packed filter of one group.
fn packed_len(isa: Isa, op: &Conv3d, axes: &[AxisTaps; 3], padded: Option<&PaddedRows>) -> usize {
    let [t, h, w] = axes.each_ref().map(|axis| axis.taps.len());
    let g_in = op.input.c / op.groups;
    // With padded rows the taps of a filter's row are one.
    let (taps, k) = if padded.is_some() { (t * h, w * g_in) } else { (t * h * w, g_in) };
    Panels::new(isa, op.c_out / op.groups).packed_len(taps, k)
}

impl Conv3d {
    fn filter_taps(&self) -> usize {
        self.filter.iter().product()
    }
}

/// `y = conv(x, w) + bias`.
pub(in crate::ops) fn forward(
    isa: Isa,
    op: &Conv3d,
    x: ActRef,
    w: &[f32],
    bias: Option<&[f32]>,
    y: ActMut,
    scratch: &mut [f32],
) {
    let axes = AxisTaps::forward(op);
    let (g_in, g_out) = (op.input.c / op.groups, op.c_out / op.groups);
    let panels = Panels::new(isa, g_out);
    let padded = padded(op);
    let (packed, rest) = scratch.split_at_mut(packed_len(isa, op, &axes, padded.as_ref()));
    let x = match &padded {
        Some(padded) => padded.fill(x, rest),
        None => x,
    };
    let (grid, k) = taps::grid(&axes, x, g_in, y.shape, y.pitch_c, padded.as_ref());
    for group in 0..op.groups {
        let filter = FilterColumns::new(isa, op, group, w, &axes, Operand::Forward);
        let init = bias.map_or(Init::Zero, |b| Init::Columns(&b[group * g_out..][..g_out]));
        add_taps(&grid, &panels, &x.data[group * g_in..], k, &filter, packed, &mut y.data[group * g_out..], init);
    }
}

/// Positions whose bias gradients are summed by one task: the same for any number of threads.
const BIAS_POSITIONS: usize = 4096;

/// Sum over all positions, or added to, as [`Conv3d::part`] says.
pub(super) fn grad_bias(op: &Conv3d, dy: ActRef, db: &mut [f32]) {
    let (c, rows) = (dy.shape.c, dy.shape.t * dy.shape.h * dy.shape.w);
    let blocks = Blocks::of(dy.shape.n * rows, op.batch(1).clips_per_split() * rows, BIAS_POSITIONS);
    let mut partials = scratch::filled(blocks.len() * c, 0f32);
    rows::for_each(blocks, PerBlock::new(&mut partials, c), |block, sums| {
        for position in Strip::new(dy, &block.rows).data.chunks(dy.pitch_c) {
            sums.data.iter_mut().zip(position).for_each(|(b, v)| *b += v);
        }
    });
    if !op.part.is_some_and(|part| part.accumulates()) {
        db.fill(0.0);
    }
    for partial in partials.chunks(c) {
        db.iter_mut().zip(partial).for_each(|(b, v)| *b += v);
    }
}
