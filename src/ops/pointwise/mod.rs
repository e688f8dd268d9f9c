//! Tiny element-wise ops that are not worth a folder each. Shapes must be equal; channel pitches may differ.

mod cpu;

use crate::device::{Stream, Tensor, with_host};
use crate::error::Result;
use crate::ops::check;

/// `output = input` (other pitch allowed).
pub fn copy(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    check::tensor("copy", "input", input, output.shape())?;
    check::tensor("copy", "output", output, input.shape())?;
    check::on_cpu("copy", stream)?;
    if check::same_memory(input, output) {
        return Ok(());
    }
    with_host([input.memory()], [output.memory()], |[x], [y]| {
        cpu::zip(input.view(x.get()?), output.view_mut(y.into_mut()?), |x, _| x);
        Ok(())
    })
}

/// `output += input`.
pub fn add(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    check::tensor("add", "input", input, output.shape())?;
    check::tensor("add", "output", output, input.shape())?;
    check::on_cpu("add", stream)?;
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
    check::tensor("fill", "output", output, output.shape())?;
    check::on_cpu("fill", stream)?;
    with_host([], [output.memory()], |[], [y]| {
        cpu::map(output.view_mut(y.into_mut()?), |_| value);
        Ok(())
    })
}
