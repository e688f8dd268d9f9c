//! Max pooling followed by a fixed blur over (h, w), so that halving does not alias.
//!
//! The maximum of 2 x 2 neighbours at step 1, blurred by `[1 2 1] x [1 2 1] / 16` at step 2; outside lies the nearest
//! element inside.

mod cpu;
mod launch;
mod params;
pub mod reference;

use crate::device::{DType, Device, Stream, Tensor};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

const OP: &str = "maxblur forward";

/// The shape that an input becomes: h and w are halved, rounded up.
pub fn output_shape(input: ActivationShape) -> ActivationShape {
    ActivationShape { h: input.h.div_ceil(2), w: input.w.div_ceil(2), ..input }
}

/// Halves `input` into `output`, which is overwritten. f32 or bf16, the same for both; sums are f32.
///
/// # Errors
/// An output that is not [`output_shape`], other or different element types, an output that overlaps the input.
pub fn forward(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    check(input, output)?;
    match stream.device() {
        Device::Cpu => cpu::forward(input, output),
        Device::Cuda(_) | Device::Simt => launch::forward(stream, input, output),
    }
}

fn check(input: &Tensor, output: &Tensor) -> Result<()> {
    let wanted = output_shape(input.shape());
    if output.shape() != wanted {
        return Err(Error::shape(OP, format!("output must be {wanted}, got {}", output.shape())));
    }
    if input.dtype() != output.dtype() || !matches!(input.dtype(), DType::F32 | DType::Bf16) {
        let got = format!("got {:?} and {:?}", input.dtype(), output.dtype());
        return Err(Error::shape(OP, format!("input and output must both be F32 or Bf16, {got}")));
    }
    Ok(())
}
