//! Input gradient: a convolution of `dy` for each class of input positions that the same taps reach.

use rayon::prelude::*;

use super::super::Conv3d;
use super::pack::{FilterColumns, Operand};
use super::padded::PaddedRows;
use super::taps::{self, AxisTaps};
use crate::device::cpu::{Init, Isa, Panels, add_taps};
use crate::device::{ActMut, ActRef};

fn padded(op: &Conv3d, classes: &[Vec<AxisTaps>; 3]) -> Option<PaddedRows> {
    PaddedRows::plan(op.groups, op.output(), &classes[2].iter().collect::<Vec<_>>())
}

pub(super) fn workspace_len(isa: Isa, op: &Conv3d) -> usize {
    // Classes are packed one after the other: none has more than all taps, or more rows of taps than the filter.
    packed_len(isa, op) + padded(op, &AxisTaps::grad_input(op)).map_or(0, |p| p.len())
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
    let classes = AxisTaps::grad_input(op);
    let panels = Panels::new(isa, g_in);
    let (packed, rest) = scratch.split_at_mut(packed_len(isa, op));
    let padded = padded(op, &classes);
    let dy = match &padded {
        Some(padded) => padded.fill(dy, rest),
        None => dy,
    };
    let has_unread = classes.iter().flatten().any(|class| class.taps.is_empty());
    if has_unread && !accumulate {
        dx.data.par_chunks_mut(dx.pitch_c).for_each(|position| position[..op.input.c].fill(0.0));
    }
    let [t, h, w_classes] = classes;
    let all = t.into_iter().flat_map(|t| h.iter().map(move |h| (t.clone(), h.clone())));
    for (t, h) in all {
        for w_class in &w_classes {
            let axes = [t.clone(), h.clone(), w_class.clone()];
            if axes.iter().any(|axis| axis.taps.is_empty()) {
                continue;
            }
            let (grid, k) = taps::grid(&axes, dy, g_out, dx.shape, dx.pitch_c, padded.as_ref());
            for group in 0..op.groups {
                let filter = FilterColumns::new(isa, op, group, w, &axes, Operand::GradInput);
                let init = if accumulate { Init::Add } else { Init::Zero };
                let (dy, dx) = (&dy.data[group * g_out..], &mut dx.data[group * g_in..]);
                add_taps(&grid, &panels, dy, k, &filter, packed, dx, init);
            }
        }
    }
}
