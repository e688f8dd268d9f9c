//! What a convolution refuses, with what was expected and what came.

use super::Conv3d;
use crate::device::{DType, Device, HostWrite, Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

const AXES: [&str; 3] = ["t", "h", "w"];

pub(super) fn sizes(op: &Conv3d) -> Result<()> {
    let err = |message: String| Err(Error::shape("conv3d", message));
    let i = op.input;
    if [i.n, i.t, i.h, i.w, i.c, op.c_out, op.groups].contains(&0) {
        return err(format!("sizes must not be zero: input {i}, c_out {}, groups {}", op.c_out, op.groups));
    }
    for (axis, name) in AXES.iter().enumerate() {
        let (filter, stride, dilation) = (op.filter[axis], op.stride[axis], op.dilation[axis]);
        if filter == 0 || stride == 0 || dilation == 0 {
            return err(format!(
                "filter, stride and dilation must not be zero, got {filter}, {stride}, {dilation} in {name}"
            ));
        }
        let size = [i.t, i.h, i.w][axis];
        let padded = op.padding[axis].checked_mul(2).and_then(|p| p.checked_add(size));
        let extent = dilation.checked_mul(filter - 1).and_then(|e| e.checked_add(1));
        let (Some(padded), Some(extent)) = (padded, extent) else {
            return err(format!("sizes in {name} are too large: {op:?}"));
        };
        if extent > padded {
            return err(format!(
                "the filter spans {extent} in {name}, the input with its padding only {padded} (input {i}, padding {:?})",
                op.padding
            ));
        }
    }
    if !i.c.is_multiple_of(op.groups) || !op.c_out.is_multiple_of(op.groups) {
        return err(format!("c_in {} and c_out {} must be multiples of groups {}", i.c, op.c_out, op.groups));
    }
    op.part.map_or(Ok(()), |part| part.check("conv3d", i.n))?;
    let o = op.output();
    let positions = |s: ActivationShape| {
        [s.t, s.h, s.w, s.c].iter().try_fold(s.n, |len, &size| len.checked_mul(size)).filter(|&len| len < 1 << 48)
    };
    let filter = op.filter.iter().try_fold(op.c_out * (i.c / op.groups), |len, &size| len.checked_mul(size));
    if positions(i).is_none() || positions(o).is_none() || filter.is_none() {
        return err(format!("more elements than memory can hold: input {i}, output {o}, filter {:?}", op.filter));
    }
    Ok(())
}

pub(super) fn tensor(op: &'static str, name: &str, got: &Tensor, expected: ActivationShape) -> Result<()> {
    if got.shape() != expected {
        return Err(Error::shape(op, format!("{name} must be {expected}, got {}", got.shape())));
    }
    dtype(op, name, got.dtype())
}

pub(super) fn vector(op: &'static str, name: &str, got: &Slice, len: usize) -> Result<()> {
    if got.len() != len {
        return Err(Error::shape(op, format!("{name} must have {len} elements, got {}", got.len())));
    }
    dtype(op, name, got.dtype())
}

fn dtype(op: &'static str, name: &str, got: DType) -> Result<()> {
    match got {
        DType::F32 => Ok(()),
        _ => Err(Error::shape(op, format!("{name} must be F32, got {got:?}"))),
    }
}

pub(super) fn workspace(op: &'static str, workspace: &Slice, needed_bytes: usize) -> Result<()> {
    let bytes = workspace.len() * workspace.dtype().size_bytes();
    if !matches!(workspace.dtype(), DType::F32 | DType::U8) {
        return Err(Error::shape(op, format!("workspace must be F32 or U8, got {:?}", workspace.dtype())));
    }
    if bytes < needed_bytes {
        return Err(Error::shape(op, format!("workspace must have {needed_bytes} bytes, got {bytes}")));
    }
    if !workspace.offset_bytes().is_multiple_of(size_of::<f32>()) {
        return Err(Error::shape(
            op,
            format!("workspace must begin at a multiple of 4, got {}", workspace.offset_bytes()),
        ));
    }
    Ok(())
}

pub(super) fn is_cpu(op: &'static str, stream: &Stream) -> Result<()> {
    match stream.device() {
        Device::Cpu => Ok(()),
        other => Err(other.no_kernel(op)),
    }
}

/// Fused forms exist as kernels alone.
pub(super) fn has_kernels(op: &'static str, stream: &Stream) -> Result<()> {
    match stream.device() {
        Device::Cpu => Err(Error::unsupported(
            format!("{op} with a prologue or an epilogue"),
            "the cpu executor has no fused form; call batch_norm, pointwise and conv3d one by one",
        )),
        _ => Ok(()),
    }
}

/// The workspace as f32, a remainder of 1 to 3 bytes cut off.
pub(super) fn scratch<'a>(workspace: &Slice, host: HostWrite<'a>) -> Result<&'a mut [f32]> {
    if workspace.dtype() == DType::F32 {
        return host.into_mut::<f32>();
    }
    let bytes = host.into_mut::<u8>()?;
    let whole = bytes.len() / size_of::<f32>() * size_of::<f32>();
    Ok(bytemuck::cast_slice_mut(&mut bytes[..whole]))
}
