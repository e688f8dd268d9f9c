//! Input gradient: a convolution of `dy` for each class of input positions that the same taps reach.

use rayon::prelude::*;

use super::super::Conv3d;
use super::pack::{FilterColumns, Operand};
use super::padded::PaddedRows;
use super::taps::{self, AxisTaps};
use crate::device::cpu::{Init, Isa, Panels, add_taps};
use crate::device::{ActMut, ActRef};

fn padded(op: &Conv3d) -> Option<PaddedRows> {
    PaddedRows::plan(op.groups, op.output(), classes(op, 2))
}

fn classes(op: &Conv3d, axis: usize) -> impl Iterator<Item = AxisTaps> + Clone {
    (0..AxisTaps::num_classes(op, axis)).map(move |class| AxisTaps::grad_input(op, axis, class))
}

pub(super) fn workspace_len(isa: Isa, op: &Conv3d) -> usize {
    // Classes are packed one after the other: none has more than all taps, or more rows of taps than the filter.
    packed_len(isa, op) + padded(op).map_or(0, |p| p.len())
}

fn packed_len(isa: Isa, op: &Conv3d) -> usize {
    let (panels, g_out) = (Panels::new(isa, op.input.c / op.groups), op.c_out / op.groups);
    panels.packed_len(op.filter_taps(), g_out)
}

/// `dx = conv^T(dy, w)`, or added to it.
pub(in crate::ops) fn grad_input(
    isa: Isa,
    op: &Conv3d,
    dy: ActRef,
    w: &[f32],
    dx: ActMut,
    accumulate: bool,
    scratch: &mut [f32],
) {
    let (g_in, g_out) = (op.input.c / op.groups, op.c_out / op.groups);
    let panels = Panels::new(isa, g_in);
    let (packed, rest) = scratch.split_at_mut(packed_len(isa, op));
    let padded = padded(op);
    let dy = match &padded {
        Some(padded) => padded.fill(dy, rest),
        None => dy,
    };
    let has_unread = (0..3).any(|axis| classes(op, axis).any(|class| class.taps.is_empty()));
    if has_unread && !accumulate {
        dx.data.par_chunks_mut(dx.pitch_c).for_each(|position| position[..op.input.c].fill(0.0));
    }
    let init = if accumulate { Init::Add } else { Init::Zero };
    for t in classes(op, 0) {
        for h in classes(op, 1) {
            for w_class in classes(op, 2) {
                let axes = [t.clone(), h.clone(), w_class];
                if axes.iter().any(|axis| axis.taps.is_empty()) {
                    continue;
                }
                let (grid, k) = taps::grid(&axes, dy, g_out, dx.shape, dx.pitch_c, padded.as_ref());
                for group in 0..op.groups {
                    let filter = FilterColumns::new(isa, op, group, w, &axes, Operand::GradInput);
                    let (dy, dx) = (&dy.data[group * g_out..], &mut dx.data[group * g_in..]);
                    add_taps(&grid, &panels, dy, k, &filter, packed, dx, init);
                }
            }
        }
    }
}
