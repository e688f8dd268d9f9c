//! 3-D convolution (cross-correlation) of activations `[n][t][h][w][c]` with filters `[c_out][ft][fh][fw][c_in / groups]`.

use crate::device::{Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// What is convolved: sizes in the order (t, h, w).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv3d {
    /// Input sizes.
    pub input: ActivationShape,
    /// Output channels.
    pub c_out: usize,
    /// Filter taps.
    pub filter: [usize; 3],
    /// Step of the filter.
    pub stride: [usize; 3],
    /// Zeros on both sides.
    pub padding: [usize; 3],
    /// Distance of two taps.
    pub dilation: [usize; 3],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

/// Which of the three convolutions of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Output from input and filter.
    Forward,
    /// Gradient of the input.
    GradInput,
    /// Gradient of the filter.
    GradFilter,
}

impl Conv3d {
    /// Checks the sizes (non-zero, channels divisible by groups, the filter fits the padded input).
    pub fn check(&self) -> Result<()> {
        Err(Error::unsupported("conv3d", "stub"))
    }

    /// Output sizes.
    pub fn output(&self) -> ActivationShape {
        let out = |size: usize, i: usize| {
            (size + 2 * self.padding[i]).saturating_sub(self.dilation[i] * (self.filter[i] - 1) + 1) / self.stride[i]
                + 1
        };
        let i = self.input;
        ActivationShape::new(i.n, out(i.t, 0), out(i.h, 1), out(i.w, 2), self.c_out)
    }

    /// Elements of the filter.
    pub fn filter_len(&self) -> usize {
        self.c_out * self.filter.iter().product::<usize>() * self.input.c / self.groups
    }

    /// Multiply-adds of one direction.
    pub fn macs(&self) -> u64 {
        self.output().num_positions() as u64 * self.filter_len() as u64
    }
}

/// Bytes of scratch memory that `direction` needs on the device of `stream`.
pub fn workspace_bytes(stream: &Stream, op: &Conv3d, direction: Direction) -> usize {
    let _ = (stream, op, direction);
    0
}

/// `output = conv(input, filter) + bias`. `workspace` is f32 or u8 memory of at least [`workspace_bytes`].
pub fn forward(
    stream: &Stream,
    op: &Conv3d,
    input: &Tensor,
    filter: &Slice,
    bias: Option<&Slice>,
    output: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    let _ = (stream, op, input, filter, bias, output, workspace);
    Err(Error::unsupported("conv3d forward", "stub"))
}

/// `grad_input = conv^T(grad_output, filter)`, or added to it where `accumulate` is set.
pub fn grad_input(
    stream: &Stream,
    op: &Conv3d,
    grad_output: &Tensor,
    filter: &Slice,
    grad_input: &Tensor,
    accumulate: bool,
    workspace: &Slice,
) -> Result<()> {
    let _ = (stream, op, grad_output, filter, grad_input, accumulate, workspace);
    Err(Error::unsupported("conv3d grad_input", "stub"))
}

/// Filter gradient, and the bias gradient where asked for. Sums in a fixed order: two runs give the same bits.
pub fn grad_filter(
    stream: &Stream,
    op: &Conv3d,
    input: &Tensor,
    grad_output: &Tensor,
    grad_filter: &Slice,
    grad_bias: Option<&Slice>,
    workspace: &Slice,
) -> Result<()> {
    let _ = (stream, op, input, grad_output, grad_filter, grad_bias, workspace);
    Err(Error::unsupported("conv3d grad_filter", "stub"))
}
