//! Fully connected layer over channels: `y[p] = x[p] W' + b`, W `[c_out][c_in]`.

use crate::device::{Slice, Stream, Tensor};
use crate::error::{Error, Result};

/// `output = input W' + bias` for every position.
pub fn forward(stream: &Stream, input: &Tensor, weight: &Slice, bias: Option<&Slice>, output: &Tensor) -> Result<()> {
    let _ = (stream, input, weight, bias, output);
    Err(Error::unsupported("linear forward", "stub"))
}

/// Gradients of input, weight and bias.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    stream: &Stream,
    input: &Tensor,
    weight: &Slice,
    grad_output: &Tensor,
    grad_input: &Tensor,
    grad_weight: &Slice,
    grad_bias: Option<&Slice>,
) -> Result<()> {
    let _ = (stream, input, weight, grad_output, grad_input, grad_weight, grad_bias);
    Err(Error::unsupported("linear backward", "stub"))
}
