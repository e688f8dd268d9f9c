//! Input gradient: a convolution of `dy` for each class of input positions that the same taps reach.

use rayon::prelude::*;

use super::super::Conv3d;
use super::pack::{Operand, pack_filter};
use super::padded::PaddedRows;
use super::taps::{self, AxisTaps};
use crate::device::cpu::{Init, Isa, Panels, add_taps};
use crate::device::{ActMut, ActRef};

fn padded(op: &Conv3d, classes: &[Vec<AxisTaps>; 3]) -> Option<PaddedRows> {
    PaddedRows::plan(op.groups, op.output(), &classes[2].iter().collect::<Vec<_>>())
}

pub(super) fn workspace_len(isa: Isa, op: &Conv3d) -> usize {
    let panels = Panels::new(isa, op.input.c / op.groups);
    // Each tap belongs to one class of each axis, and classes are packed one after the other.
    panels.packed_len(op.filter_taps() * op.c_out / op.groups)
        + padded(op, &AxisTaps::grad_input(op)).map_or(0, |p| p.len())
}

/// `dx = conv^T(dy, w)`, or added to it.
pub(in super::super) fn grad_input(
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
    let (packed, rest) = scratch.split_at_mut(panels.packed_len(op.filter_taps() * g_out));
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
            let num_taps: usize = axes.iter().map(|axis| axis.taps.len()).product();
            let packed = &mut packed[..panels.packed_len(num_taps * g_out)];
            let (grid, k) = taps::grid(&axes, dy, g_out, dx.shape, dx.pitch_c, padded.as_ref());
            for group in 0..op.groups {
                pack_filter(op, group, w, &axes, Operand::GradInput, &panels, packed);
                let init = if accumulate { Init::Add } else { Init::Zero };
                add_taps(&grid, &panels, &dy.data[group * g_out..], k, packed, &mut dx.data[group * g_in..], init);
            }
        }
    }
}
