//! Filter gradient: sums of outer products over positions. The work is cut by output channels and, where the filter is
//! small, by positions into partial sums; the cut depends on the sizes alone, and partial sums are added in order.

use std::ops::Range;

use rayon::prelude::*;

use super::super::Conv3d;
use super::padded;
use super::padded::PaddedRows;
use super::taps::AxisTaps;
use crate::device::ActRef;
use crate::device::cpu::scratch::List;
use crate::device::cpu::{Isa, OuterSum, Run};
use crate::shape::ActivationShape;

/// Multiply-adds that are worth a task of their own.
const TASK_MACS: u64 = 1 << 21;
/// Most tasks wanted: enough to balance a few threads, few enough that copies and partial sums cost little.
const MAX_TASKS: u64 = 16;
/// Blocks of columns that a task should have, because it copies `dy` for them.
const TASK_BLOCKS: usize = 4;
/// Most floats of all partial sums together.
const MAX_PARTIAL_LEN: usize = 1 << 20;
/// Positions of a chunk: a block of their columns fits the first-level cache, all of their channels the second.
const CHUNK_POSITIONS: usize = 256;
/// Floats of the gradient that one task adds up.
const SUM_LEN: usize = 1 << 12;

/// How the work is cut: as that of the whole batch, whose clips these may be a part of.
struct Cut {
    /// Output lines `(n, to, ho)` of these clips, and of a batch-norm split but the last.
    lines: usize,
    split_lines: usize,
    /// Ranges of lines with partial sums of their own: equal parts of each split. 0 where one range of all lines goes on from the sums
    /// over the splits before, straight in the gradient.
    ranges_per_split: usize,
    /// Tasks that share the taps and input channels of a range.
    column_tasks: usize,
}

impl Cut {
    fn new(isa: Isa, op: &Conv3d) -> Cut {
        let (o, batch, whole) = (op.output(), op.batch(1), op.of_batch(1));
        let (taps, columns) = tap_columns(op);
        let tasks = (whole.macs() / TASK_MACS).clamp(1, MAX_TASKS) as usize;
        let blocks = OuterSum::num_column_blocks(isa, taps, columns);
        let column_tasks = (blocks / TASK_BLOCKS).clamp(1, tasks);
        let num_splits = batch.splits_of(batch.batch_clips);
        let lines_of = |clips: usize| clips * o.t * o.h;
        let (lines, split_lines) = (lines_of(o.n), lines_of(batch.clips_per_split()));
        let wanted = if op.groups > 1 { 1 } else { tasks.div_ceil(column_tasks).min(lines_of(batch.batch_clips)) };
        let most = (MAX_PARTIAL_LEN / op.filter_len()).max(1);
        let ranges_per_split = match wanted.min(most) == 1 || num_splits > most {
            true => 0,
            false => wanted.div_ceil(num_splits).min(most / num_splits).min(split_lines),
        };
        Cut { lines, split_lines, ranges_per_split, column_tasks }
    }

    fn is_continuous(&self) -> bool {
        self.ranges_per_split == 0
    }

    fn num_ranges(&self) -> usize {
        if self.is_continuous() { 1 } else { self.lines.div_ceil(self.split_lines) * self.ranges_per_split }
    }

    /// The lines of range `i`.
    fn range(&self, i: usize) -> Range<usize> {
        if self.is_continuous() {
            return 0..self.lines;
        }
        let (n, first) = (self.ranges_per_split, i / self.ranges_per_split * self.split_lines);
        let (i, len) = (i % n, self.split_lines.min(self.lines - first));
        first + len * i / n..first + len * (i + 1) / n
    }
}

/// Taps and the columns of each: with padded rows the taps of a filter's row are one.
fn tap_columns(op: &Conv3d) -> (usize, usize) {
    let [ft, fh, fw] = op.filter;
    let g_in = op.input.c / op.groups;
    if padded(op).is_some() { (ft * fh, fw * g_in) } else { (ft * fh * fw, g_in) }
}

pub(super) fn workspace_len(isa: Isa, op: &Conv3d) -> usize {
    let cut = Cut::new(isa, op);
    let partial_len = if cut.is_continuous() { 0 } else { cut.num_ranges() * op.filter_len() };
    partial_len + padded(op).map_or(0, |p| p.len())
}

/// `dw = sum over positions of dy' x`, or is added to, as [`Conv3d::part`] says.
pub(in crate::ops) fn grad_filter(isa: Isa, op: &Conv3d, x: ActRef, dy: ActRef, dw: &mut [f32], scratch: &mut [f32]) {
    let (cut, goes_on) = (Cut::new(isa, op), op.part.is_some_and(|part| part.accumulates()));
    if cut.is_continuous() {
        return partial_sums(isa, op, &cut, x, dy, dw, goes_on, scratch);
    }
    let (partial, rest) = scratch.split_at_mut(cut.num_ranges() * op.filter_len());
    partial_sums(isa, op, &cut, x, dy, partial, false, rest);
    dw.par_chunks_mut(SUM_LEN).enumerate().for_each(|(i, dw)| {
        let len = dw.len();
        let part = |range: usize| &partial[range * op.filter_len() + i * SUM_LEN..][..len];
        if !goes_on {
            dw.fill(0.0);
        }
        (0..cut.num_ranges()).map(part).for_each(|part| dw.iter_mut().zip(part).for_each(|(dw, p)| *dw += p));
    });
}

/// `[range][filter]`: the filter gradient of each range of output rows.
#[allow(clippy::too_many_arguments)]
fn partial_sums(
    isa: Isa,
    op: &Conv3d,
    cut: &Cut,
    x: ActRef,
    dy: ActRef,
    partial: &mut [f32],
    goes_on: bool,
    scratch: &mut [f32],
) {
    let padded = padded(op);
    let x = match &padded {
        Some(padded) => padded.fill(x, scratch),
        None => x,
    };
    let (taps, columns) = tap_columns(op);
    let (g_in, g_out) = (op.input.c / op.groups, op.c_out / op.groups);
    let geometry = Geometry { op, x, o: dy.shape, axes: AxisTaps::forward(op), padded };
    for group in 0..op.groups {
        let sum = OuterSum {
            isa,
            x: &x.data[group * g_in..],
            x_step: op.stride[2] * x.pitch_c,
            dy: &dy.data[group * g_out..],
            dy_step: dy.pitch_c,
            rows: g_out,
            columns,
            taps,
            line: dy.shape.w,
            num_splits: cut.num_ranges(),
            lines: &|range| cut.range(range),
            chunk_positions: CHUNK_POSITIONS,
            goes_on,
            column_tasks: cut.column_tasks,
            runs: &|lines, tap, runs| geometry.runs(lines, tap, runs),
        };
        // Groups are contiguous in the filter; with several there is one range.
        let group_len = partial.len() / op.groups;
        sum.run(&mut partial[group * group_len..][..group_len]);
    }
}

/// Where taps meet the input.
struct Geometry<'a> {
    op: &'a Conv3d,
    x: ActRef<'a>,
    o: ActivationShape,
    axes: [AxisTaps; 3],
    padded: Option<PaddedRows>,
}

impl Geometry<'_> {
    /// The positions of some output lines at which a tap reads inside the input.
    fn runs(&self, lines: Range<usize>, tap: usize, runs: &mut List<Run>) {
        let (i, o, [t, h, w]) = (self.x.shape, self.o, &self.axes);
        let num_w = if self.padded.is_some() { 1 } else { self.op.filter[2] };
        let (kt, kh, kw) = (tap / (self.op.filter[1] * num_w), tap / num_w % self.op.filter[1], tap % num_w);
        let (first_w, inside) = match &self.padded {
            Some(padded) => (padded.left as isize + w.taps[0].1, 0..o.w),
            None => (w.taps[kw].1, w.inside(w.taps[kw].1)),
        };
        let x_step = w.from_step * self.x.pitch_c;
        runs.clear();
        for row in lines {
            let (n, to, ho) = (row / (o.t * o.h), row / o.h % o.t, row % o.h);
            let (Some(ti), Some(hi)) = (t.source(to, t.taps[kt].1), h.source(ho, h.taps[kh].1)) else { continue };
            if inside.is_empty() {
                continue;
            }
            let wi = (inside.start * w.from_step).strict_add_signed(first_w);
            let x = (((n * i.t + ti) * i.h + hi) * i.w + wi) * self.x.pitch_c;
            let position = row * o.w + inside.start;
            match runs.last_mut() {
                Some(last) if last.x + last.count * x_step == x && last.position + last.count == position => {
                    last.count += inside.len();
                }
                _ => runs.push(Run { x, position, count: inside.len() }),
            }
        }
    }
}
