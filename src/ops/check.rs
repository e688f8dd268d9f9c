//! Checks of arguments that the ops share. Every message names the op, the argument, what was expected and what came.

use crate::device::{DType, Device, Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// `tensor` has this shape, is not empty and holds f32.
pub(crate) fn tensor(op: &'static str, name: &str, tensor: &Tensor, shape: ActivationShape) -> Result<()> {
    tensor_of(op, name, tensor, shape, DType::F32)
}

/// `tensor` has this shape, is not empty and holds elements of type `wanted`.
pub(crate) fn tensor_of(
    op: &'static str,
    name: &str,
    tensor: &Tensor,
    shape: ActivationShape,
    wanted: DType,
) -> Result<()> {
    if shape.num_elements() == 0 {
        return Err(Error::shape(op, format!("{name} is empty: {shape}")));
    }
    if tensor.shape() != shape {
        return Err(Error::shape(op, format!("{name} must be {shape}, got {}", tensor.shape())));
    }
    dtype(op, name, tensor.dtype(), wanted)
}

/// The type of `tensor`, if activations may have it on the stream's device: f32 on the CPU; f32, bf16 or f16 elsewhere.
pub(crate) fn activation_dtype(op: &'static str, stream: &Stream, name: &str, tensor: &Tensor) -> Result<DType> {
    let got = tensor.dtype();
    if *stream.device() == Device::Cpu {
        dtype(op, name, got, DType::F32)?;
    } else if !matches!(got, DType::F32 | DType::Bf16 | DType::F16) {
        return Err(Error::shape(op, format!("{name} must hold F32, Bf16 or F16, got {got:?}")));
    }
    Ok(got)
}

/// `slice` holds `len` elements of `wanted`.
pub(crate) fn slice(op: &'static str, name: &str, slice: &Slice, len: usize, wanted: DType) -> Result<()> {
    if slice.len() != len {
        return Err(Error::shape(op, format!("{name} must have {len} elements, got {}", slice.len())));
    }
    dtype(op, name, slice.dtype(), wanted)
}

/// `slice` is scratch memory of f32 with at least `len_bytes` bytes.
pub(crate) fn workspace(op: &'static str, slice: &Slice, len_bytes: usize) -> Result<()> {
    let got = slice.len() * slice.dtype().size_bytes();
    if got < len_bytes {
        return Err(Error::shape(op, format!("workspace must have at least {len_bytes} bytes, got {got}")));
    }
    dtype(op, "workspace", slice.dtype(), DType::F32)
}

fn dtype(op: &'static str, name: &str, got: DType, wanted: DType) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::shape(op, format!("{name} must hold {wanted:?}, got {got:?}")))
}

/// Whether both are the same elements in the same order: an op may then work in place.
pub(crate) fn same_memory(a: &Tensor, b: &Tensor) -> bool {
    let (x, y) = (a.memory(), b.memory());
    x.buffer().is_same(y.buffer())
        && x.offset_bytes() == y.offset_bytes()
        && x.len() == y.len()
        && a.pitch_c() == b.pitch_c()
}
