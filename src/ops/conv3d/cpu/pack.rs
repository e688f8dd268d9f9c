//! Filters in the order in which the kernels read them.

use rayon::prelude::*;

use super::super::Conv3d;
use super::taps::AxisTaps;
use crate::device::cpu::Panels;

/// Which product the filter is an operand of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// `[tap][c_in][c_out]`: columns are output channels.
    Forward,
    /// `[tap][c_out][c_in]`: columns are input channels.
    GradInput,
}

/// Input channels that are turned around at a time: 16 floats are a cache line.
const LINE: usize = 16;

/// Packs the filter of one group, for the taps of `axes` in their order, as `panels` says.
pub(super) fn pack_filter(
    op: &Conv3d,
    group: usize,
    w: &[f32],
    axes: &[AxisTaps; 3],
    operand: Operand,
    panels: &Panels,
    packed: &mut [f32],
) {
    let [_, fh, fw] = op.filter;
    let (g_in, g_out) = (op.input.c / op.groups, op.c_out / op.groups);
    let w = &w[group * g_out * op.filter_taps() * g_in..][..g_out * op.filter_taps() * g_in];
    let mut taps = vec![];
    for &(kt, _) in &axes[0].taps {
        for &(kh, _) in &axes[1].taps {
            taps.extend(axes[2].taps.iter().map(|&(kw, _)| (kt * fh + kh) * fw + kw));
        }
    }
    let (k, n) = if operand == Operand::Forward { (g_in, g_out) } else { (g_out, g_in) };
    let mut parts = vec![];
    let mut rest = packed;
    for (first, width) in panels.blocks() {
        let (block, after) = rest.split_at_mut(taps.len() * k * width);
        parts.extend(block.chunks_mut(k * width).zip(&taps).map(|(part, &tap)| (part, tap, first, width)));
        rest = after;
    }
    parts.into_par_iter().for_each(|(part, tap, first, width)| {
        let columns = width.min(n - first);
        let row_of = |co: usize| &w[(co * op.filter_taps() + tap) * g_in..][..g_in];
        match operand {
            Operand::Forward => {
                if columns < width {
                    part.fill(0.0);
                }
                for ci in (0..g_in).step_by(LINE) {
                    for column in 0..columns {
                        let from = &row_of(first + column)[ci..g_in.min(ci + LINE)];
                        let to = part[ci * width + column..].iter_mut().step_by(width);
                        to.zip(from).for_each(|(to, from)| *to = *from);
                    }
                }
            }
            Operand::GradInput => {
                for (co, to) in part.chunks_mut(width).enumerate() {
                    to[..columns].copy_from_slice(&row_of(co)[first..][..columns]);
                    to[columns..].fill(0.0);
                }
            }
        }
    });
}
