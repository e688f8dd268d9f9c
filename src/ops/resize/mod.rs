//! Trilinear resize of activations over (t, h, w), forward and deterministic gather backward.

use crate::device::{Stream, Tensor};
use crate::error::{Error, Result};

/// `output` sizes decide the scale; `align_corners` as in PyTorch's `interpolate`.
pub fn forward(stream: &Stream, align_corners: bool, input: &Tensor, output: &Tensor) -> Result<()> {
    let _ = (stream, align_corners, input, output);
    Err(Error::unsupported("resize forward", "stub"))
}

/// Gradient of the input, one sum in fixed order an input element: no atomics.
pub fn grad_input(stream: &Stream, align_corners: bool, grad_output: &Tensor, grad_input: &Tensor) -> Result<()> {
    let _ = (stream, align_corners, grad_output, grad_input);
    Err(Error::unsupported("resize grad_input", "stub"))
}
