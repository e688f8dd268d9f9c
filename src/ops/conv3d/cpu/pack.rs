//! Filters in the order in which the kernels read them.

use std::ops::Range;

use super::super::Conv3d;
use super::taps::AxisTaps;
use crate::device::cpu::{BLOCK, Columns, Isa, transpose_block};

/// Which product the filter is an operand of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// `[tap][c_in][c_out]`: columns are output channels.
    Forward,
    /// `[tap][c_out][c_in]`: columns are input channels.
    GradInput,
}

/// The filter of one group as the right-hand side of a sum over taps.
pub(super) struct FilterColumns<'a> {
    isa: Isa,
    operand: Operand,
    w: &'a [f32], // [c_out][tap of the filter][c_in] of the group
    g_in: usize,
    g_out: usize,
    /// Floats of the filter of one output channel.
    pitch: usize,
    /// Taps in the order of the sum.
    axes: &'a [AxisTaps; 3],
    /// Taps of the filter along h and w.
    filter: [usize; 2],
}

impl<'a> FilterColumns<'a> {
    /// For the taps of `axes` in their order.
    pub fn new(isa: Isa, op: &Conv3d, group: usize, w: &'a [f32], axes: &'a [AxisTaps; 3], operand: Operand) -> Self {
        let [_, fh, fw] = op.filter;
        let (g_in, g_out) = (op.input.c / op.groups, op.c_out / op.groups);
        let pitch = op.filter_taps() * g_in;
        let w = &w[group * g_out * pitch..][..g_out * pitch];
        FilterColumns { isa, operand, w, g_in, g_out, pitch, axes, filter: [fh, fw] }
    }

    /// The tap of the filter that is number `i` of the sum.
    fn tap(&self, i: usize) -> usize {
        let ([t, h, w], [fh, fw]) = (self.axes, self.filter);
        let (it, ih, iw) = (i / (h.taps.len() * w.taps.len()), i / w.taps.len() % h.taps.len(), i % w.taps.len());
        (t.taps[it].0 * fh + h.taps[ih].0) * fw + w.taps[iw].0
    }

    /// Channels `channels` of one tap: rows of the forward are input channels.
    fn pack_forward(&self, tap: usize, channels: Range<usize>, first: usize, width: usize, to: &mut [f32]) {
        let columns = width.min(self.g_out - first);
        if columns < width {
            to.fill(0.0);
        }
        for ci in channels.clone().step_by(BLOCK) {
            for column in (0..columns).step_by(BLOCK) {
                let block = [BLOCK.min(columns - column), BLOCK.min(channels.end - ci)];
                let from = &self.w[(first + column) * self.pitch + tap * self.g_in + ci..];
                transpose_block(
                    self.isa,
                    block,
                    from,
                    self.pitch,
                    &mut to[(ci - channels.start) * width + column..],
                    width,
                );
            }
        }
    }

    /// Rows of the input gradient are output channels: rows of the filter as they lie.
    fn pack_grad_input(&self, tap: usize, channels: Range<usize>, first: usize, width: usize, to: &mut [f32]) {
        let columns = width.min(self.g_in - first);
        for (co, to) in channels.zip(to.chunks_mut(width)) {
            to[..columns].copy_from_slice(&self.w[co * self.pitch + tap * self.g_in + first..][..columns]);
            to[columns..].fill(0.0);
        }
    }
}

impl Columns for FilterColumns<'_> {
    fn pack(&self, rows: Range<usize>, first: usize, width: usize, mut to: &mut [f32]) {
        let channels = if self.operand == Operand::Forward { self.g_in } else { self.g_out };
        let mut row = rows.start;
        while row < rows.end {
            let (tap, channel) = (self.tap(row / channels), row % channels);
            let end = channels.min(channel + rows.end - row);
            let (part, rest) = to.split_at_mut((end - channel) * width);
            match self.operand {
                Operand::Forward => self.pack_forward(tap, channel..end, first, width, part),
                Operand::GradInput => self.pack_grad_input(tap, channel..end, first, width, part),
            }
            to = rest;
            row += end - channel;
        }
    }
}
