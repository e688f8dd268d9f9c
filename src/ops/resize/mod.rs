//! Trilinear resize of activations over (t, h, w), forward and deterministic gather backward, as PyTorch's
//! `interpolate(mode="trilinear")`.
//!
//! Sample `i` of an axis that goes from `size` to `resized` lies at `i * (size - 1) / (resized - 1)` with
//! `align_corners`, and at `(i + 0.5) * size / resized - 0.5` (clamped to the axis) without.

mod axis;
mod cpu;
mod launch;
mod params;
pub mod reference;

pub use axis::Axis;

use crate::device::{DType, Device, Stream, Tensor};
use crate::error::{Error, Result};

/// Resizes `input` `[n][t][h][w][c]` to the t, h, w of `output`, which is overwritten; `align_corners` as in PyTorch.
/// f32, bf16 or f16, the same for both; sums are f32.
///
/// # Errors
/// Different clips, channels or element types; sizes of 0 or of 2^31 and more on an axis; an output that overlaps the input.
pub fn forward(stream: &Stream, align_corners: bool, input: &Tensor, output: &Tensor) -> Result<()> {
    check(Direction::Forward.name(), input, output)?;
    let axes = Axis::of(align_corners, input.shape(), output.shape());
    match stream.device() {
        Device::Cpu => cpu::forward(&axes, input, output),
        Device::Cuda(_) | Device::Simt => launch::run(stream, Direction::Forward, &axes, input, output),
    }
}

/// Gradient of the input, which is overwritten: one sum in fixed order an input element, no atomics.
///
/// # Errors
/// As [`forward`].
pub fn grad_input(stream: &Stream, align_corners: bool, grad_output: &Tensor, grad_input: &Tensor) -> Result<()> {
    check(Direction::GradInput.name(), grad_input, grad_output)?;
    let axes = Axis::of(align_corners, grad_input.shape(), grad_output.shape());
    match stream.device() {
        Device::Cpu => cpu::grad_input(&axes, grad_output, grad_input),
        Device::Cuda(_) | Device::Simt => launch::run(stream, Direction::GradInput, &axes, grad_output, grad_input),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    GradInput,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Forward => "resize forward",
            Direction::GradInput => "resize grad_input",
        }
    }
}

fn check(op: &'static str, input: &Tensor, output: &Tensor) -> Result<()> {
    let (i, o) = (input.shape(), output.shape());
    if (i.n, i.c) != (o.n, o.c) || input.dtype() != output.dtype() {
        return Err(Error::shape(
            op,
            format!("clips, channels and types must agree, got {i} {:?} and {o} {:?}", input.dtype(), output.dtype()),
        ));
    }
    if !matches!(input.dtype(), DType::F32 | DType::Bf16 | DType::F16) {
        return Err(Error::shape(op, format!("elements must be f32, bf16 or f16, got {:?}", input.dtype())));
    }
    let limit = i32::MAX as usize;
    if [i.t, i.h, i.w, o.t, o.h, o.w].iter().any(|size| *size == 0 || *size > limit) {
        return Err(Error::shape(op, format!("sizes of t, h, w must lie in 1..{limit}, got {i} and {o}")));
    }
    Ok(())
}
