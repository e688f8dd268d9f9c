//! Tiny element-wise ops that are not worth a folder each.

use crate::device::{Stream, Tensor};
use crate::error::{Error, Result};

/// `output = input` (other pitch allowed).
pub fn copy(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    let _ = (stream, input, output);
    Err(Error::unsupported("copy", "stub"))
}

/// `output += input`.
pub fn add(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    let _ = (stream, input, output);
    Err(Error::unsupported("add", "stub"))
}

/// `output = value`.
pub fn fill(stream: &Stream, output: &Tensor, value: f32) -> Result<()> {
    let _ = (stream, output, value);
    Err(Error::unsupported("fill", "stub"))
}
