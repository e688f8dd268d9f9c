//! Filter gradient: sums of outer products over positions. The work is cut by output channels and, where the filter is
//! small, by positions into partial sums; the cut depends on the sizes alone, and partial sums are added in order.

use std::ops::Range;

use rayon::prelude::*;

use super::super::Conv3d;
use super::padded::PaddedRows;
use super::taps::AxisTaps;
use crate::device::ActRef;
use crate::device::cpu::{Isa, Outer, Run, add_outer_products};

/// Multiply-adds that are worth a task of their own.
const TASK_MACS: u64 = 1 << 21;
/// Most tasks: enough to balance 16 threads.
const MAX_TASKS: u64 = 64;
/// Most floats of all partial sums together.
const MAX_PARTIAL_LEN: usize = 1 << 20;
/// Bytes of both operands that are used for all taps before the next are read: a part of the second-level cache.
const CHUNK_BYTES: usize = 512 << 10;
/// Fewest positions of such a part: sums are read and written once for each.
const MIN_CHUNK_POSITIONS: usize = 128;

/// Floats of the gradient that one task adds up.
const SUM_LEN: usize = 1 << 12;

/// How the work is cut.
struct Cut {
    /// Ranges of output rows `(n, to, ho)`, each with partial sums of its own.
    splits: usize,
    /// Output channels of one task.
    c_out: usize,
}

impl Cut {
    fn new(op: &Conv3d) -> Cut {
        let o = op.output();
        let (num_rows, g_out) = (o.n * o.t * o.h, op.c_out / op.groups);
        let tasks = (op.macs() / TASK_MACS).clamp(1, MAX_TASKS) as usize;
        let splits = (MAX_PARTIAL_LEN / op.filter_len()).clamp(1, tasks).min(num_rows);
        let parts_of_group = tasks.div_ceil(splits * op.groups).min(g_out);
        Cut { splits, c_out: g_out.div_ceil(parts_of_group) }
    }

    fn rows(&self, num_rows: usize, split: usize) -> Range<usize> {
        num_rows * split / self.splits..num_rows * (split + 1) / self.splits
    }
}

fn padded(op: &Conv3d) -> Option<PaddedRows> {
    PaddedRows::plan(op.groups, op.input, &[&AxisTaps::forward(op)[2]])
}

pub(super) fn workspace_len(op: &Conv3d) -> usize {
    let splits = Cut::new(op).splits;
    let partial_len = if splits == 1 { 0 } else { splits * op.filter_len() };
    partial_len + padded(op).map_or(0, |p| p.len())
}

/// `dw = sum over positions of dy' x`.
pub(in super::super) fn grad_filter(isa: Isa, op: &Conv3d, x: ActRef, dy: ActRef, dw: &mut [f32], scratch: &mut [f32]) {
    let cut = Cut::new(op);
    if cut.splits == 1 {
        return partial_sums(isa, op, &cut, x, dy, dw, scratch);
    }
    let (partial, rest) = scratch.split_at_mut(cut.splits * op.filter_len());
    partial_sums(isa, op, &cut, x, dy, partial, rest);
    dw.par_chunks_mut(SUM_LEN).enumerate().for_each(|(i, dw)| {
        let part = |split: usize| &partial[split * op.filter_len() + i * SUM_LEN..][..dw.len()];
        let parts: Vec<_> = (0..cut.splits).map(part).collect();
        dw.fill(0.0);
        parts.iter().for_each(|part| dw.iter_mut().zip(*part).for_each(|(dw, p)| *dw += p));
    });
}

/// `[split][filter]`: the filter gradient of each range of output rows.
fn partial_sums(isa: Isa, op: &Conv3d, cut: &Cut, x: ActRef, dy: ActRef, partial: &mut [f32], scratch: &mut [f32]) {
    let padded = padded(op);
    let x = match &padded {
        Some(padded) => padded.fill(x, scratch),
        None => x,
    };
    let work = Work { isa, op, x, dy, axes: AxisTaps::forward(op), padded };
    let num_rows = dy.shape.n * dy.shape.t * dy.shape.h;
    let g_out = op.c_out / op.groups;
    let row_len = op.filter_len() / op.c_out;
    let mut tasks = vec![];
    for (split, partial) in partial.chunks_mut(op.filter_len()).enumerate() {
        for (group, partial) in partial.chunks_mut(g_out * row_len).enumerate() {
            let parts = partial.chunks_mut(cut.c_out * row_len).enumerate();
            tasks.extend(parts.map(|(i, part)| (part, split, group, group * g_out + i * cut.c_out)));
        }
    }
    tasks.into_par_iter().for_each(|(part, split, group, co)| work.run(part, cut.rows(num_rows, split), group, co));
}

/// Everything that the tasks share.
struct Work<'a> {
    isa: Isa,
    op: &'a Conv3d,
    x: ActRef<'a>,
    dy: ActRef<'a>,
    axes: [AxisTaps; 3],
    padded: Option<PaddedRows>,
}

impl Work<'_> {
    /// Sums for the filters in `part`, which begin with output channel `co`, over some output rows.
    fn run(&self, part: &mut [f32], rows: Range<usize>, group: usize, co: usize) {
        let (op, o) = (self.op, self.dy.shape);
        let (g_in, row_len) = (op.input.c / op.groups, op.filter_len() / op.c_out);
        // With padded rows the taps of a filter's row are one run of columns.
        let (num_w, columns) = if self.padded.is_some() { (1, op.filter[2] * g_in) } else { (op.filter[2], g_in) };
        let outer = Outer {
            x: &self.x.data[group * g_in..],
            x_step: op.stride[2] * self.x.pitch_c,
            dy: &self.dy.data[co..],
            dy_step: self.dy.pitch_c,
            rows: part.len() / row_len,
            columns,
        };
        let positions = (CHUNK_BYTES / (size_of::<f32>() * (op.input.c + o.c))).max(MIN_CHUNK_POSITIONS);
        let chunk_rows = (positions / o.w).max(1);
        let mut runs = vec![];
        part.fill(0.0);
        for first in rows.clone().step_by(chunk_rows) {
            let chunk = first..rows.end.min(first + chunk_rows);
            for tap in 0..op.filter[0] * op.filter[1] * num_w {
                self.runs(&mut runs, chunk.clone(), tap, num_w);
                add_outer_products(self.isa, &outer, &runs, &mut part[tap * columns..], row_len);
            }
        }
    }

    /// The positions of some output rows at which a tap reads inside the input.
    fn runs(&self, runs: &mut Vec<Run>, rows: Range<usize>, tap: usize, num_w: usize) {
        let (i, o, [t, h, w]) = (self.x.shape, self.dy.shape, &self.axes);
        let (kt, kh, kw) = (tap / (self.op.filter[1] * num_w), tap / num_w % self.op.filter[1], tap % num_w);
        let (first_w, inside) = match &self.padded {
            Some(padded) => (padded.left as isize + w.taps[0].1, 0..o.w),
            None => (w.taps[kw].1, w.inside(w.taps[kw].1)),
        };
        let (x_step, dy_step) = (w.from_step * self.x.pitch_c, self.dy.pitch_c);
        runs.clear();
        for row in rows {
            let (n, to, ho) = (row / (o.t * o.h), row / o.h % o.t, row % o.h);
            let (Some(ti), Some(hi)) = (t.source(to, t.taps[kt].1), h.source(ho, h.taps[kh].1)) else { continue };
            if inside.is_empty() {
                continue;
            }
            let wi = (inside.start * w.from_step).strict_add_signed(first_w);
            let x = (((n * i.t + ti) * i.h + hi) * i.w + wi) * self.x.pitch_c;
            let dy = (row * o.w + inside.start) * dy_step;
            match runs.last_mut() {
                Some(last) if last.x + last.count * x_step == x && last.dy + last.count * dy_step == dy => {
                    last.count += inside.len();
                }
                _ => runs.push(Run { x, dy, count: inside.len() }),
            }
        }
    }
}
