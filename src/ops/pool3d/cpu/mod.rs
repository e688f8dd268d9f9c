//! Native CPU. A task is a block of lines: the positions `[n][t][h]` of the output (forward) or of the input (gradient),
//! `w` of them a line. What the windows of a line have in common along t and h is found once a line, along w once an op.

mod average;
mod max;

use std::ops::Range;

pub(super) use average::{forward as forward_average, grad_input as grad_input_average};
pub(super) use max::{forward as forward_max, grad_input as grad_input_max};

use super::Pool3d;
use crate::ops::rows;
use crate::shape::ActivationShape;

/// An input position and a window that holds it: where the other one lies (input position for forward, output position for
/// the gradient), and the index of the position in the window.
#[derive(Clone, Copy)]
struct Tap {
    position: usize,
    index: u32,
}

/// Along one axis, for each position: the positions of the other side that it meets, with the index in the window.
struct Axis {
    meets: Vec<Vec<(usize, usize)>>,
}

impl Axis {
    /// For each window: the input positions that it holds.
    fn windows(op: &Pool3d, axis: usize, size: usize, windows: usize) -> Axis {
        let inputs = |o: usize| {
            let at = move |tap: usize| (o * op.stride[axis] + tap).checked_sub(op.padding[axis]);
            (0..op.kernel[axis]).filter_map(|tap| Some((at(tap).filter(|&i| i < size)?, tap))).collect()
        };
        Axis { meets: (0..windows).map(inputs).collect() }
    }

    /// For each input position: the windows that hold it.
    fn holders(op: &Pool3d, axis: usize, size: usize, windows: usize) -> Axis {
        let mut meets = vec![vec![]; size];
        for (window, inputs) in Axis::windows(op, axis, size, windows).meets.iter().enumerate() {
            inputs.iter().for_each(|&(input, tap)| meets[input].push((window, tap)));
        }
        Axis { meets }
    }
}

/// The taps of every position of one side.
struct Taps {
    axes: [Axis; 3],
    /// Sizes of the side whose positions are walked, and of the other.
    own: ActivationShape,
    other: ActivationShape,
    kernel: [usize; 3],
}

impl Taps {
    /// For each output position: the input positions of its window.
    fn of_outputs(op: &Pool3d) -> Taps {
        Taps::new(op, op.output(), op.input, Axis::windows)
    }

    /// For each input position: the windows that hold it.
    fn of_inputs(op: &Pool3d) -> Taps {
        Taps::new(op, op.input, op.output(), Axis::holders)
    }

    fn new(
        op: &Pool3d,
        own: ActivationShape,
        other: ActivationShape,
        axis: fn(&Pool3d, usize, usize, usize) -> Axis,
    ) -> Taps {
        let (i, o) = (op.input, op.output());
        let axes = [axis(op, 0, i.t, o.t), axis(op, 1, i.h, o.h), axis(op, 2, i.w, o.w)];
        Taps { axes, own, other, kernel: op.kernel }
    }

    /// Blocks of lines: positions of the side that is walked.
    fn blocks(&self) -> Vec<Range<usize>> {
        let lines = self.own.n * self.own.t * self.own.h;
        let of_lines = rows::blocks(0..lines, self.own.w * self.own.c);
        of_lines.map(|lines| lines.start * self.own.w..lines.end * self.own.w).collect()
    }

    /// Calls `visit(offset of the position in its block, its taps)` for each position of a block, taps in t-major order.
    #[inline(always)]
    fn for_each(&self, block: Range<usize>, mut visit: impl FnMut(usize, &[Tap])) {
        let (own, other) = (&self.own, &self.other);
        let [_, kernel_h, kernel_w] = self.kernel;
        let (mut lines, mut taps) = (Vec::new(), Vec::new());
        for line in block.start / own.w..block.end / own.w {
            let (n, t, h) = (line / (own.t * own.h), line / own.h % own.t, line % own.h);
            lines.clear();
            for &(other_t, tap_t) in &self.axes[0].meets[t] {
                for &(other_h, tap_h) in &self.axes[1].meets[h] {
                    let first = ((n * other.t + other_t) * other.h + other_h) * other.w;
                    lines.push((first, (tap_t * kernel_h + tap_h) * kernel_w));
                }
            }
            for (w, of_w) in self.axes[2].meets.iter().enumerate() {
                taps.clear();
                for &(first, index) in &lines {
                    let tap = |&(w, tap): &(usize, usize)| Tap { position: first + w, index: (index + tap) as u32 };
                    taps.extend(of_w.iter().map(tap));
                }
                visit(line * own.w + w - block.start, &taps);
            }
        }
    }
}

/// Channels that are worked on in registers.
const LANES: usize = 32;

/// Calls `chunk` for groups of channels: `LANES` at a time, then 8, then one by one.
macro_rules! for_each_chunk {
    ($c:expr, $chunk:ident ( $($argument:expr),* )) => {{
        let (c, mut at) = ($c, 0);
        while at + LANES <= c {
            $chunk::<LANES>($($argument,)* at);
            at += LANES;
        }
        while at + 8 <= c {
            $chunk::<8>($($argument,)* at);
            at += 8;
        }
        while at < c {
            $chunk::<1>($($argument,)* at);
            at += 1;
        }
    }};
}
use for_each_chunk;
