//! Native CPU. A task is a block of lines: the positions `[n][t][h]` of the output (forward) or of the input (gradient),
//! `w` of them a line. What the windows of a line have in common along t and h is found once a line, along w once an op.

mod average;
mod max;

pub(super) use average::{forward as forward_average, grad_input as grad_input_average};
pub(super) use max::{forward as forward_max, grad_input as grad_input_max};

use bytemuck::{Pod, Zeroable};

use super::Pool3d;
use crate::device::cpu::scratch;
use crate::ops::rows::{Block, Blocks, StripMut};
use crate::shape::ActivationShape;

/// An input position and a window that holds it: where the other one lies (input position for forward, output position for
/// the gradient), and the index of the position in the window.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Tap {
    position: usize,
    index: usize,
}

/// Which side's positions are walked.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// Each meets the input positions of its window.
    Outputs,
    /// Each meets the windows that hold it.
    Inputs,
}

/// One axis.
#[derive(Clone, Copy)]
struct Axis {
    side: Side,
    /// Size of the other side.
    other: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Axis {
    /// The positions of the other side that position `at` meets, ascending, with the index in the window.
    #[inline(always)]
    fn meets(self, at: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let Axis { side, other, kernel, stride, padding } = self;
        let first = match side {
            Side::Outputs => (at * stride).saturating_sub(padding),
            Side::Inputs => (at + padding + 1).saturating_sub(kernel).div_ceil(stride),
        };
        let end = match side {
            Side::Outputs => (at * stride + kernel).saturating_sub(padding),
            Side::Inputs => (at + padding) / stride + 1,
        };
        (first..end.min(other)).map(move |met| match side {
            Side::Outputs => (met, met + padding - at * stride),
            Side::Inputs => (met, at + padding - met * stride),
        })
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
    fn new(op: &Pool3d, side: Side) -> Taps {
        let (own, other) = match side {
            Side::Outputs => (op.output(), op.input),
            Side::Inputs => (op.input, op.output()),
        };
        let sizes = [other.t, other.h, other.w];
        let axes = std::array::from_fn(|i| Axis {
            side,
            other: sizes[i],
            kernel: op.kernel[i],
            stride: op.stride[i],
            padding: op.padding[i],
        });
        Taps { axes, own, other, kernel: op.kernel }
    }

    /// Blocks of lines.
    fn blocks(&self) -> Blocks {
        let lines = self.own.n * self.own.t * self.own.h;
        Blocks::new(lines, lines, self.own.w * self.own.c)
    }

    /// The lines of the side that is walked.
    fn lines<'a, T>(&self, data: &'a mut [T], pitch: usize) -> StripMut<'a, T> {
        StripMut { data, pitch: self.own.w * pitch }
    }

    /// Calls `visit(offset of the position in its block, its taps)` for each position of a block, taps in t-major order.
    #[inline(always)]
    fn for_each(&self, block: &Block, mut visit: impl FnMut(usize, &[Tap])) {
        let (own, other, [axis_t, axis_h, axis_w]) = (&self.own, &self.other, self.axes);
        let [kernel_t, kernel_h, kernel_w] = self.kernel;
        let mut lines = scratch::list::<[usize; 2]>(kernel_t * kernel_h);
        let mut taps = scratch::list::<Tap>(kernel_t * kernel_h * kernel_w);
        for line in block.rows.clone() {
            let (n, t, h) = (line / (own.t * own.h), line / own.h % own.t, line % own.h);
            lines.clear();
            for (other_t, tap_t) in axis_t.meets(t) {
                for (other_h, tap_h) in axis_h.meets(h) {
                    let first = ((n * other.t + other_t) * other.h + other_h) * other.w;
                    lines.push([first, (tap_t * kernel_h + tap_h) * kernel_w]);
                }
            }
            for w in 0..own.w {
                let of_w = axis_w.meets(w);
                taps.clear();
                for &[first, index] in lines.iter() {
                    taps.extend(of_w.clone().map(|(w, tap)| Tap { position: first + w, index: index + tap }));
                }
                visit((line - block.rows.start) * own.w + w, &taps);
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
