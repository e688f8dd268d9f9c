//! Fully connected layer over channels: `y[p] = x[p] W' + b` for every position `p`, W `[c_out][c_in]`.
//!
//! | | CPU | kernels |
//! |---|---|---|
//! | input, weight, gradients of input and output | f32 | bf16 or f16, all the same |
//! | output | f32 | that, or f32 |
//! | bias, gradients of weight and bias | f32 | f32 |
//!
//! Few positions leave few tiles: with scratch memory ([`workspace_bytes`]) the kernels split long sums over more blocks, and the
//! last block of each tile adds the parts in order.

mod cpu;
mod launch;
mod params;
mod plan;
#[doc(hidden)]
pub mod reference;

use launch::{Matrix, Product};
use plan::{Direction, Positions};

use crate::device::cpu::Isa;
use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check as ops_check;
use crate::shape::Part;

/// `output = input W' + bias` for every position; `output` has the positions of `input` and `c_out` channels.
///
/// # Errors
/// [`Error::Shape`] where sizes or types do not fit together.
pub fn forward(stream: &Stream, input: &Tensor, weight: &Slice, bias: Option<&Slice>, output: &Tensor) -> Result<()> {
    run_forward(stream, None, input, weight, bias, output, None)
}

/// [`forward`] with scratch memory, f32, whose first [`TICKET_BYTES`](crate::ops::TICKET_BYTES) are zero. Where the clips are part of a
/// batch, that batch is `part`.
///
/// # Errors
/// As [`forward`]; less than [`workspace_bytes`].
#[allow(clippy::too_many_arguments)]
pub fn forward_with(
    stream: &Stream,
    part: Option<Part>,
    input: &Tensor,
    weight: &Slice,
    bias: Option<&Slice>,
    output: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    run_forward(stream, part, input, weight, bias, output, Some(workspace))
}

/// Scratch memory of [`forward_with`] and [`backward_with`] for so many positions of a batch; the same may serve layer after layer.
pub fn workspace_bytes(device: &Device, positions: usize, c_in: usize, c_out: usize) -> usize {
    if *device == Device::Cpu { 0 } else { launch::workspace_bytes(positions, c_in, c_out) }
}

fn run_forward(
    stream: &Stream,
    part: Option<Part>,
    input: &Tensor,
    weight: &Slice,
    bias: Option<&Slice>,
    output: &Tensor,
    workspace: Option<&Slice>,
) -> Result<()> {
    const OP: &str = "linear forward";
    check(OP, stream, input, weight, bias, output)?;
    part.map_or(Ok(()), |part| part.check(OP, input.shape().n))?;
    if *stream.device() != Device::Cpu {
        let direction = Direction::Forward;
        let product = Product {
            op: OP,
            direction,
            positions: Positions::of(input.shape(), part),
            sizes: direction.sizes(input.shape().num_positions(), input.shape().c, output.shape().c),
            a: Matrix::of(input),
            b: Matrix { memory: weight, pitch: input.shape().c },
            output: Matrix::of(output),
            bias,
            grad_bias: None,
        };
        return launch::run(stream, &product, workspace);
    }
    let (no_bias, isa) = (weight.part(0, 0)?, Isa::chosen()?);
    with_host([input.memory(), weight, bias.unwrap_or(&no_bias)], [output.memory()], |[x, w, b], [mut y]| {
        let bias = bias.map(|_| b.get::<f32>()).transpose()?;
        cpu::forward(isa, part, input.view(x.get()?), w.get()?, bias, output.view_mut(y.get_mut()?));
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
    run_backward(stream, None, [input, grad_output, grad_input], weight, grad_weight, grad_bias, None)
}

/// [`backward`] with scratch memory as [`forward_with`]. With a `part` gradients of weight and bias are sums in the order of its splits,
/// and hold those of the splits before.
///
/// # Errors
/// As [`forward_with`].
#[allow(clippy::too_many_arguments)]
pub fn backward_with(
    stream: &Stream,
    part: Option<Part>,
    input: &Tensor,
    weight: &Slice,
    grad_output: &Tensor,
    grad_input: &Tensor,
    grad_weight: &Slice,
    grad_bias: Option<&Slice>,
    workspace: &Slice,
) -> Result<()> {
    run_backward(stream, part, [input, grad_output, grad_input], weight, grad_weight, grad_bias, Some(workspace))
}

fn run_backward(
    stream: &Stream,
    part: Option<Part>,
    [input, grad_output, grad_input]: [&Tensor; 3],
    weight: &Slice,
    grad_weight: &Slice,
    grad_bias: Option<&Slice>,
    workspace: Option<&Slice>,
) -> Result<()> {
    const OP: &str = "linear backward";
    check(OP, stream, input, weight, None, grad_output)?;
    part.map_or(Ok(()), |part| part.check(OP, input.shape().n))?;
    if grad_output.dtype() != input.dtype() {
        let message = format!("grad_output must hold {:?} as the input, got {:?}", input.dtype(), grad_output.dtype());
        return Err(Error::shape(OP, message));
    }
    ops_check::tensor_of(OP, "grad_input", grad_input, input.shape(), input.dtype())?;
    ops_check::slice(OP, "grad_weight", grad_weight, weight.len(), DType::F32)?;
    if let Some(grad_bias) = grad_bias {
        ops_check::slice(OP, "grad_bias", grad_bias, grad_output.shape().c, DType::F32)?;
    }
    if *stream.device() != Device::Cpu {
        let (positions, c_in, c_out) = (input.shape().num_positions(), input.shape().c, grad_output.shape().c);
        let product = |direction: Direction, b, output, grad_bias| Product {
            op: OP,
            direction,
            positions: Positions::of(input.shape(), part),
            sizes: direction.sizes(positions, c_in, c_out),
            a: Matrix::of(grad_output),
            b,
            output,
            bias: None,
            grad_bias,
        };
        let [of_weight, of_grad_weight] = [weight, grad_weight].map(|memory| Matrix { memory, pitch: c_in });
        launch::run(stream, &product(Direction::GradInput, of_weight, Matrix::of(grad_input), None), workspace)?;
        let product = product(Direction::GradWeight, Matrix::of(input), of_grad_weight, grad_bias);
        return launch::run(stream, &product, workspace);
    }
    let (no_bias, isa) = (grad_weight.part(0, 0)?, Isa::chosen()?);
    with_host(
        [input.memory(), weight, grad_output.memory()],
        [grad_input.memory(), grad_weight, grad_bias.unwrap_or(&no_bias)],
        |[x, w, dy], [mut dx, mut dw, mut db]| {
            let dy = grad_output.view(dy.get()?);
            cpu::grad_input(isa, part, dy, w.get()?, grad_input.view_mut(dx.get_mut()?));
            cpu::grad_weight(isa, part, input.view(x.get()?), dy, dw.get_mut()?);
            if grad_bias.is_some() {
                cpu::grad_bias(part, dy, db.get_mut()?);
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
    if let Some(bias) = bias {
        ops_check::slice(op, "bias", bias, o.c, DType::F32)?;
    }
    let (types, allowed) = match stream.device() {
        Device::Cpu => ("F32", [DType::F32, DType::F32]),
        _ => ("Bf16 or F16", [DType::Bf16, DType::F16]),
    };
    if let Some(other) = [input.dtype(), weight.dtype()].iter().find(|dtype| !allowed.contains(dtype)) {
        return Err(Error::shape(op, format!("input and weight must be {types}, got {other:?}")));
    }
    if input.dtype() != weight.dtype() {
        let message = format!("input and weight must have one type, got {:?} and {:?}", input.dtype(), weight.dtype());
        return Err(Error::shape(op, message));
    }
    if output.dtype() != input.dtype() && (output.dtype() != DType::F32 || *stream.device() == Device::Cpu) {
        let message = format!("output must hold {:?} (with kernels also F32), got {:?}", input.dtype(), output.dtype());
        return Err(Error::shape(op, message));
    }
    Ok(())
}
