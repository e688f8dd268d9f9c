//! Which source coordinate each tap of an axis meets, for the forward and for the input gradient.
//!
//! Forward: output coordinate `o` reads input `o * stride + tap * dilation - padding`. Input gradient: input coordinates
//! with the same remainder by the stride (a class) meet the same taps, so each class is a convolution of its own: the
//! coordinate `class + j * stride` reads output `j + (class + padding - tap * dilation) / stride` for the taps that divide.

use std::ops::Range;

use smallvec::SmallVec;

use super::super::Conv3d;
use super::padded::PaddedRows;
use crate::device::ActRef;
use crate::device::cpu::{AxisMap, Grid, MANY_TAPS, TapMap};
use crate::shape::ActivationShape;

/// The taps of one axis: destination `to_first + j * to_step` reads sources `j * from_step + offset` that are inside.
#[derive(Clone, Debug)]
pub(super) struct AxisTaps {
    pub count: usize,
    pub to_first: usize,
    pub to_step: usize,
    pub from_step: usize,
    pub from_size: usize,
    /// Tap of the filter and offset, ascending by offset.
    pub taps: SmallVec<[(usize, isize); MANY_TAPS]>,
}

fn sizes(shape: ActivationShape) -> [usize; 3] {
    [shape.t, shape.h, shape.w]
}

impl AxisTaps {
    /// Of the forward.
    pub fn forward(op: &Conv3d) -> [AxisTaps; 3] {
        let (input, output) = (sizes(op.input), sizes(op.output()));
        std::array::from_fn(|i| AxisTaps {
            count: output[i],
            to_first: 0,
            to_step: 1,
            from_step: op.stride[i],
            from_size: input[i],
            taps: (0..op.filter[i])
                .map(|tap| (tap, (tap * op.dilation[i]) as isize - op.padding[i] as isize))
                .collect(),
        })
    }

    /// Classes of the input gradient along an axis.
    pub fn num_classes(op: &Conv3d, axis: usize) -> usize {
        op.stride[axis].min(sizes(op.input)[axis])
    }

    /// Of the input gradient: a class of an axis.
    pub fn grad_input(op: &Conv3d, axis: usize, class: usize) -> AxisTaps {
        let (input, output, stride) = (sizes(op.input)[axis], sizes(op.output())[axis], op.stride[axis]);
        AxisTaps {
            count: (input - class).div_ceil(stride),
            to_first: class,
            to_step: stride,
            from_step: 1,
            from_size: output,
            taps: (0..op.filter[axis])
                .rev()
                .map(|tap| (tap, (class + op.padding[axis]) as isize - (tap * op.dilation[axis]) as isize))
                .filter(|(_, distance)| distance.rem_euclid(stride as isize) == 0)
                .map(|(tap, distance)| (tap, distance.div_euclid(stride as isize)))
                .collect(),
        }
    }

    /// Whether the taps read neighbours.
    pub fn is_contiguous(&self) -> bool {
        self.taps.windows(2).all(|w| w[0].1 + 1 == w[1].1)
    }

    /// Source coordinate of destination `j` for a tap of `offset`.
    pub fn source(&self, j: usize, offset: isize) -> Option<usize> {
        (j * self.from_step).checked_add_signed(offset).filter(|&at| at < self.from_size)
    }

    /// The destinations that a tap of `offset` gives a source inside.
    pub fn inside(&self, offset: isize) -> Range<usize> {
        let first = ((-offset).max(0) as usize).div_ceil(self.from_step);
        let end = self.from_size.saturating_add_signed(-offset).div_ceil(self.from_step).min(self.count);
        first.min(end)..end
    }

    fn map(&self, to_pitch: usize, from_pitch: usize) -> AxisMap {
        let tap = |&(_, offset): &(usize, isize)| {
            let inside = self.inside(offset);
            let first = if inside.is_empty() { None } else { self.source(inside.start, offset) };
            TapMap { inside, first: first.map_or(0, |at| at * from_pitch) }
        };
        self.with_taps(to_pitch, from_pitch, self.taps.iter().map(tap).collect())
    }

    fn with_taps(&self, to_pitch: usize, from_pitch: usize, taps: SmallVec<[TapMap; MANY_TAPS]>) -> AxisMap {
        AxisMap {
            count: self.count,
            to_first: self.to_first * to_pitch,
            to_step: self.to_step * to_pitch,
            from_step: self.from_step * from_pitch,
            taps,
        }
    }
}

/// The rows of one convolution from `from` to memory of shape `to`, and the values that one tap reads: `channels`, or with
/// `padded`, of which `from` is a view, those of all taps of a filter's row.
pub(super) fn grid(
    axes: &[AxisTaps; 3],
    from: ActRef,
    channels: usize,
    to: ActivationShape,
    to_pitch_c: usize,
    padded: Option<&PaddedRows>,
) -> (Grid, usize) {
    let [t, h, w] = axes;
    let (from_row, to_row) = (from.shape.w * from.pitch_c, to.w * to_pitch_c);
    let (w_map, k) = match padded {
        None => (w.map(to_pitch_c, from.pitch_c), channels),
        Some(padded) => {
            let first = padded.left.checked_add_signed(w.taps[0].1).expect("the padding covers the first tap");
            let all = TapMap { inside: 0..w.count, first: first * from.pitch_c };
            let taps = std::iter::once(all).collect();
            (w.with_taps(to_pitch_c, from.pitch_c, taps), w.taps.len() * from.pitch_c)
        }
    };
    let grid = Grid {
        batch: to.n,
        from_pitch: from.shape.t * from.shape.h * from_row,
        to_pitch: to.t * to.h * to_row,
        axes: [t.map(to.h * to_row, from.shape.h * from_row), h.map(to_row, from_row), w_map],
    };
    (grid, k)
}
