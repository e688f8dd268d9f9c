//! The convolution as the kernels see it: axes that are one to the kernels are joined, so that tiles fit the sizes of small
//! maps, and an input axis keeps only what its taps read.

use super::super::Conv3d;

/// An axis without tiles. Tap `k` of output `o` reads input `first + o * stride + k * dilation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub output: usize,
    pub input: usize,
    pub taps: usize,
    pub stride: usize,
    pub dilation: usize,
    pub first: i64,
}

/// Pixels of an axis' box: every `step`-th input coordinate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Box1d {
    pub step: usize,
    pub row_pixels: usize,
    pub tap_pixels: usize,
}

impl Axis {
    fn new(output: usize, input: usize, taps: usize, stride: usize, padding: usize, dilation: usize) -> Axis {
        Axis { output, input, taps, stride, dilation, first: -(padding as i64) }
    }

    fn of(op: &Conv3d, axis: usize) -> Axis {
        let (o, i) = (op.output(), op.input);
        let (output, input) = ([o.t, o.h, o.w][axis], [i.t, i.h, i.w][axis]);
        Axis::new(output, input, op.filter[axis], op.stride[axis], op.padding[axis], op.dilation[axis])
    }

    /// Whether output `i` reads input `i` and nothing else: such axes can be joined.
    fn is_plain(&self) -> bool {
        self.taps == 1 && self.stride == 1 && self.first == 0
    }

    fn times(&self, count: usize) -> Axis {
        Axis { output: self.output * count, input: self.input * count, ..*self }
    }

    /// The pixels that blocks need whose taps span `span` taps of this axis at most.
    pub fn box_of(&self, span: usize) -> Box1d {
        if span == 1 {
            return Box1d { step: self.stride, row_pixels: 1, tap_pixels: 0 };
        }
        let step = gcd(self.stride, self.dilation);
        Box1d { step, row_pixels: self.stride / step, tap_pixels: self.dilation / step }
    }
}

impl Box1d {
    pub fn pixels(&self, tile: usize, span: usize) -> usize {
        (tile - 1) * self.row_pixels + (span - 1) * self.tap_pixels + 1
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Outer blocks of three axes. An outer block is a clip, or a whole split where clips are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub axes: [Axis; 3],
    pub num_outer: usize,
    pub outer_per_split: usize,
    /// Sizes in t of the last outer block, which may be smaller.
    pub last_output_t: usize,
    pub last_input_t: usize,
    /// Frames of the gradient in an outer block, and in the last.
    pub grad_t: usize,
    pub last_grad_t: usize,
    /// Taps of t that shift the gradient's rows instead of the input's: then tiles are of the input's frames, and frame f meets with
    /// tap k the gradient's frame `f + grad_first + (taps - 1 - k) * grad_dilation`.
    pub grad_taps: usize,
    pub grad_dilation: usize,
    pub grad_first: i64,
    /// A chunk of the input is two neighbouring pixels of 4 channels, a tap of w a pair of taps.
    pub pixel_pairs: bool,
}

impl Geometry {
    /// `taps_on_grad` needs [`Geometry::may_shift_grad`], `pixel_pairs` [`Geometry::has_pixel_pairs`].
    pub fn new(op: &Conv3d, splits: usize, pixel_pairs: bool, taps_on_grad: bool) -> Geometry {
        let [mut t, mut h, mut w] = [0, 1, 2].map(|axis| Axis::of(op, axis));
        let clips = op.batch(splits).clips_per_split();
        let one = Axis::new(1, 1, 1, 1, 0, 1);
        let joins_clips = t.is_plain();
        if joins_clips && h.is_plain() && w.is_plain() {
            (t, h, w) = (t.times(h.output * w.output), one, one);
        } else if joins_clips && h.is_plain() {
            (t, h) = (t.times(h.output), one);
        } else if h.is_plain() && w.is_plain() {
            (h, w) = (one, w.times(h.output));
        }
        if pixel_pairs {
            w = Axis { taps: w.taps.div_ceil(2), dilation: 2, ..w };
        }
        let (mut grad_taps, mut grad_dilation, mut grad_first, frames) = (1, 1, 0, t.output);
        if taps_on_grad {
            (grad_taps, grad_dilation) = (t.taps, t.dilation);
            grad_first = -t.first - ((t.taps - 1) * t.dilation) as i64;
            t = Axis::new(t.input, t.input, 1, 1, 0, 1);
        }
        let (last_output_t, last_input_t, num_outer, outer_per_split) = if joins_clips {
            let num_splits = op.input.n.div_ceil(clips);
            let last = op.input.n - (num_splits - 1) * clips;
            let last = (t.output * last, t.input * last);
            t = t.times(clips);
            (last.0, last.1, num_splits, 1)
        } else {
            (t.output, t.input, op.input.n, clips)
        };
        let (grad_t, last_grad_t) = if taps_on_grad { (frames, frames) } else { (t.output, last_output_t) };
        Geometry {
            axes: [t, h, w],
            num_outer,
            outer_per_split,
            last_output_t,
            last_input_t,
            grad_t,
            last_grad_t,
            grad_taps,
            grad_dilation,
            grad_first,
            pixel_pairs,
        }
    }

    /// Tiles of these sizes: of a split that is not the last, and of all.
    pub fn num_tiles(&self, tile: [usize; 3]) -> (usize, usize) {
        let [of_t, of_h, of_w] = [0, 1, 2].map(|i| self.axes[i].output.div_ceil(tile[i]));
        let last = self.last_output_t.div_ceil(tile[0]);
        (self.outer_per_split * of_t * of_h * of_w, ((self.num_outer - 1) * of_t + last) * of_h * of_w)
    }

    pub fn num_taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.taps).product()
    }

    /// The most taps of each axis that `per_block` consecutive taps span, over all blocks.
    pub fn spans(&self, per_block: usize) -> [usize; 3] {
        let [_, h, w] = self.axes.map(|axis| axis.taps);
        let mut spans = [1; 3];
        for first in (0..self.num_taps()).step_by(per_block) {
            let last = (first + per_block).min(self.num_taps()) - 1;
            let (t0, t1) = (first / (h * w), last / (h * w));
            let of_h = if t0 == t1 { last / w % h - first / w % h + 1 } else { h };
            let of_w = if first / w == last / w { last - first + 1 } else { w };
            for (span, of_block) in spans.iter_mut().zip([t1 - t0 + 1, of_h, of_w]) {
                *span = of_block.max(*span);
            }
        }
        spans
    }

    /// Frames of the gradient that a tile of so many frames needs.
    pub fn grad_frames(&self, tile_t: usize) -> usize {
        tile_t + (self.grad_taps - 1) * self.grad_dilation
    }

    /// Whether the taps of t may be on the gradient's side.
    pub fn may_shift_grad(op: &Conv3d) -> bool {
        op.filter[0] > 1 && op.stride[0] == 1
    }

    /// Whether the output's rows and columns stay axes of their own, so that windows over both can be found.
    pub fn keeps_rows(op: &Conv3d) -> bool {
        !Axis::of(op, 1).is_plain()
    }

    /// Whether a chunk may hold pixel pairs: 4 channels, and outputs that all begin at the same half of a pair.
    pub fn has_pixel_pairs(op: &Conv3d) -> bool {
        op.input.c == 4 && op.groups == 1 && op.filter[2] > 1 && op.dilation[2] == 1 && op.stride[2].is_multiple_of(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::ActivationShape;

    fn op(input: [usize; 5], filter: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Conv3d {
        let [n, t, h, w, c] = input;
        let input = ActivationShape::new(n, t, h, w, c);
        Conv3d { input, c_out: 8, filter, stride, padding, dilation: [1; 3], groups: 1, part: None }
    }

    #[test]
    fn axes_that_are_one_to_the_kernels_are_joined() {
        let sizes = |g: Geometry| (g.axes.map(|a| a.output), g.num_outer, g.outer_per_split, g.last_output_t);
        let input = [5, 4, 6, 7, 8];
        let pointwise = op(input, [1; 3], [1; 3], [0; 3]);
        assert_eq!(sizes(Geometry::new(&pointwise, 1, false, false)), ([840, 1, 1], 1, 1, 840));
        assert_eq!(sizes(Geometry::new(&pointwise, 2, false, false)), ([504, 1, 1], 2, 1, 336));
        let temporal = op(input, [3, 1, 1], [1; 3], [1, 0, 0]);
        assert_eq!(sizes(Geometry::new(&temporal, 2, false, false)), ([4, 1, 42], 5, 3, 4));
        let spatial = op(input, [1, 3, 3], [1; 3], [0, 1, 1]);
        assert_eq!(sizes(Geometry::new(&spatial, 2, false, false)), ([12, 6, 7], 2, 1, 8));
        let shortcut = op(input, [1; 3], [1, 2, 2], [0; 3]);
        let g = Geometry::new(&shortcut, 1, false, false);
        assert_eq!(sizes(g), ([20, 3, 4], 1, 1, 20));
        assert_eq!(g.axes[2].box_of(1), Box1d { step: 2, row_pixels: 1, tap_pixels: 0 });
    }

    #[test]
    fn a_stem_reads_pixel_pairs() {
        let mut stem = op([2, 3, 16, 16, 4], [1, 7, 7], [1, 2, 2], [0, 3, 3]);
        assert!(Geometry::has_pixel_pairs(&stem));
        let w = Geometry::new(&stem, 1, true, false).axes[2];
        assert_eq!((w.taps, w.stride, w.dilation, w.first), (4, 2, 2, -3));
        assert_eq!(w.box_of(4), Box1d { step: 2, row_pixels: 1, tap_pixels: 1 });
        stem.stride[2] = 1;
        assert!(!Geometry::has_pixel_pairs(&stem));
    }

    #[test]
    fn taps_of_time_on_the_gradients_side() {
        let stem = op([2, 6, 16, 16, 4], [5, 7, 7], [1, 2, 2], [1, 3, 3]);
        assert!(Geometry::may_shift_grad(&stem));
        let g = Geometry::new(&stem, 1, true, true);
        assert_eq!((g.axes[0].output, g.axes[0].taps, g.grad_t, g.num_outer), (6, 1, 4, 2));
        // Input frame f meets output frame f + 1 - k: the first of the rows is that of tap 4.
        assert_eq!((g.grad_taps, g.grad_first, g.grad_frames(2)), (5, -3, 6));
        assert!(!Geometry::may_shift_grad(&op([2, 6, 16, 16, 4], [5, 1, 1], [2, 1, 1], [0; 3])));
    }

    #[test]
    fn spans_of_consecutive_taps() {
        let full = Geometry::new(&op([1, 8, 8, 8, 8], [3, 3, 3], [1; 3], [1; 3]), 1, false, false);
        for (per_block, want) in
            [(1, [1, 1, 1]), (2, [2, 3, 3]), (3, [1, 1, 3]), (6, [2, 3, 3]), (9, [1, 3, 3]), (27, [3, 3, 3])]
        {
            assert_eq!(full.spans(per_block), want, "{per_block}");
        }
    }
}
