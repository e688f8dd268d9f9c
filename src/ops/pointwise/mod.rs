//! Tiny element-wise ops that are not worth a folder each. Shapes must be equal; channel pitches may differ.

mod cpu;
mod launch;
mod params;

use half::{bf16, f16};

use crate::device::{DType, Device, Element, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;

fn check_pair(op: &'static str, stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    let dtype = check::activation_dtype(op, stream, "input", input)?;
    check::tensor_of(op, "input", input, output.shape(), dtype)?;
    check::tensor_of(op, "output", output, input.shape(), dtype)
}

/// `output = input` (other pitch allowed).
pub fn copy(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    const OP: &str = "copy";
    check_pair(OP, stream, input, output)?;
    if check::same_memory(input, output) {
        return Ok(());
    }
    if *stream.device() != Device::Cpu {
        return launch::run(stream, OP, launch::Method::Copy, input, output);
    }
    with_host([input.memory()], [output.memory()], |[x], [y]| {
        cpu::zip(input.view(x.get()?), output.view_mut(y.into_mut()?), |x, _| x);
        Ok(())
    })
}

/// `output += input`.
pub fn add(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    const OP: &str = "add";
    check_pair(OP, stream, input, output)?;
    if *stream.device() != Device::Cpu {
        return launch::run(stream, OP, launch::Method::Add, input, output);
    }
    if check::same_memory(input, output) {
        return with_host([], [output.memory()], |[], [y]| {
            cpu::map(output.view_mut(y.into_mut()?), |y| y + y);
            Ok(())
        });
    }
    with_host([input.memory()], [output.memory()], |[x], [y]| {
        cpu::zip(input.view(x.get()?), output.view_mut(y.into_mut()?), |x, y| x + y);
        Ok(())
    })
}

/// `output = value`.
pub fn fill(stream: &Stream, output: &Tensor, value: f32) -> Result<()> {
    const OP: &str = "fill";
    let dtype = check::activation_dtype(OP, stream, "output", output)?;
    check::tensor_of(OP, "output", output, output.shape(), dtype)?;
    if *stream.device() != Device::Cpu {
        return launch::run(stream, OP, launch::Method::Fill(value), output, output);
    }
    with_host([], [output.memory()], |[], [y]| {
        cpu::map(output.view_mut(y.into_mut()?), |_| value);
        Ok(())
    })
}

/// `output = input * scale`, rounded once: f32 to f32, bf16 or f16, or from bf16 or f16 to f32. `scale` is one f32 in device memory, 1
/// where it is not given.
///
/// # Errors
/// Other types, lengths that differ, an output that overlaps the input.
pub fn cast(stream: &Stream, input: &Slice, output: &Slice, scale: Option<&Slice>) -> Result<()> {
    const OP: &str = "cast";
    check::slice(OP, "output", output, input.len(), output.dtype())?;
    scale.map_or(Ok(()), |s| check::slice(OP, "scale", s, 1, DType::F32))?;
    if input.is_empty() {
        return Ok(());
    }
    if *stream.device() != Device::Cpu {
        return launch::cast(stream, OP, input, output, scale);
    }
    let factor = match scale {
        Some(scale) => with_host([scale], [], |[s], []| Ok(s.get::<f32>()?[0]))?,
        None => 1.0,
    };
    match (input.dtype(), output.dtype()) {
        (DType::F32, DType::F32) => cast_as(input, output, |v: f32| v * factor),
        (DType::F32, DType::Bf16) => cast_as(input, output, |v: f32| bf16::from_f32(v * factor)),
        (DType::F32, DType::F16) => cast_as(input, output, |v: f32| f16::from_f32(v * factor)),
        (DType::Bf16, DType::F32) => cast_as(input, output, |v: bf16| v.to_f32() * factor),
        (DType::F16, DType::F32) => cast_as(input, output, |v: f16| v.to_f32() * factor),
        (from, to) => Err(Error::unsupported(OP, format!("{from:?} is not cast to {to:?}"))),
    }
}

fn cast_as<From: Element, To: Element>(input: &Slice, output: &Slice, f: impl Fn(From) -> To) -> Result<()> {
    with_host([input], [output], |[x], [y]| {
        y.into_mut::<To>()?.iter_mut().zip(x.get::<From>()?).for_each(|(y, x)| *y = f(*x));
        Ok(())
    })
}
