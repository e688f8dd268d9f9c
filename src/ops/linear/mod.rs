//! Fully connected layer over channels: `y[p] = x[p] W' + b` for every position `p`, W `[c_out][c_in]`, f32.

mod cpu;
#[doc(hidden)]
pub mod reference;

use crate::device::cpu::Isa;
use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};

/// `output = input W' + bias` for every position; `output` has the positions of `input` and `c_out` channels.
///
/// # Errors
/// [`Error::Shape`] where sizes or types do not fit together; [`Error::Unsupported`] where the executor has no kernel.
pub fn forward(stream: &Stream, input: &Tensor, weight: &Slice, bias: Option<&Slice>, output: &Tensor) -> Result<()> {
    const OP: &str = "linear forward";
    check(OP, stream, input, weight, bias, output)?;
    let (no_bias, isa) = (weight.part(0, 0)?, Isa::chosen()?);
    with_host([input.memory(), weight, bias.unwrap_or(&no_bias)], [output.memory()], |[x, w, b], [mut y]| {
        let bias = bias.map(|_| b.get::<f32>()).transpose()?;
        cpu::forward(isa, input.view(x.get()?), w.get()?, bias, output.view_mut(y.get_mut()?));
        Ok(())
    })
}

/// Gradients of input, weight `[c_out][c_in]` and, where asked for, bias `[c_out]`; all are overwritten.
///
/// # Errors
/// As [`forward`].
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
    const OP: &str = "linear backward";
    check(OP, stream, input, weight, None, grad_output)?;
    check(OP, stream, grad_input, grad_weight, grad_bias, grad_output)?;
    if grad_input.shape() != input.shape() {
        return Err(Error::shape(OP, format!("grad_input must be {}, got {}", input.shape(), grad_input.shape())));
    }
    let (no_bias, isa) = (grad_weight.part(0, 0)?, Isa::chosen()?);
    with_host(
        [input.memory(), weight, grad_output.memory()],
        [grad_input.memory(), grad_weight, grad_bias.unwrap_or(&no_bias)],
        |[x, w, dy], [mut dx, mut dw, mut db]| {
            let dy = grad_output.view(dy.get()?);
            cpu::grad_input(isa, dy, w.get()?, grad_input.view_mut(dx.get_mut()?));
            cpu::grad_weight(isa, input.view(x.get()?), dy, dw.get_mut()?);
            if grad_bias.is_some() {
                cpu::grad_bias(dy, db.get_mut()?);
            }
            Ok(())
        },
    )
}

fn check(
    op: &'static str,
    stream: &Stream,
    input: &Tensor,
    weight: &Slice,
    bias: Option<&Slice>,
    output: &Tensor,
) -> Result<()> {
    let (i, o) = (input.shape(), output.shape());
    if i.with_channels(o.c) != o {
        return Err(Error::shape(op, format!("input {i} and output {o} must have the same positions")));
    }
    if i.num_elements() == 0 || o.c == 0 {
        return Err(Error::shape(op, format!("sizes must not be zero: input {i}, output {o}")));
    }
    if weight.len() != o.c * i.c {
        return Err(Error::shape(op, format!("weight must have {} x {} elements, got {}", o.c, i.c, weight.len())));
    }
    if let Some(bias) = bias.filter(|b| b.len() != o.c) {
        return Err(Error::shape(op, format!("bias must have {} elements, got {}", o.c, bias.len())));
    }
    let bias_dtype = bias.map_or(DType::F32, Slice::dtype);
    if let Some(other) = [input.dtype(), weight.dtype(), output.dtype(), bias_dtype].iter().find(|&&d| d != DType::F32)
    {
        return Err(Error::shape(op, format!("all tensors must be F32, got {other:?}")));
    }
    match stream.device() {
        Device::Cpu => Ok(()),
        other => Err(other.no_kernel(op)),
    }
}
