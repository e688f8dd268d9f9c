//! Starts the kernels, on the GPU and on the emulator.

use bytemuck::Zeroable;

use super::params::{Operand, Params};
use super::plan::{Pass, plan};
use super::{Heads, Instantiation, Sizes};
use crate::device::{Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};

pub(super) fn forward(
    stream: &Stream,
    kind: Instantiation,
    sizes: &Sizes,
    inputs: &Heads<'_>,
    output: &Tensor,
    log2_sum: &Slice,
) -> Result<()> {
    let params =
        Params { output: operand(sizes, output)?, log2_sum: log2_sum.address(), ..common(kind, sizes, inputs)? };
    let plan = plan(Pass::Forward, inputs.query.dtype(), sizes)?;
    let reads = [inputs.query, inputs.key, inputs.value].map(Tensor::memory);
    launch::run(stream, sizes.op, &plan.kernel, plan.config, &reads, &[output.memory(), log2_sum], &params)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    stream: &Stream,
    kind: Instantiation,
    sizes: &Sizes,
    inputs: &Heads<'_>,
    output: &Tensor,
    log2_sum: &Slice,
    grad_output: &Tensor,
    grads: &Heads<'_>,
    delta: &Slice,
) -> Result<()> {
    let params = Params {
        output: operand(sizes, output)?,
        grad_output: operand(sizes, grad_output)?,
        grad_query: operand(sizes, grads.query)?,
        grad_key: operand(sizes, grads.key)?,
        grad_value: operand(sizes, grads.value)?,
        log2_sum: log2_sum.address(),
        delta: delta.address(),
        ..common(kind, sizes, inputs)?
    };
    let of_queries = plan(Pass::GradQuery, inputs.query.dtype(), sizes)?;
    let of_keys = plan(Pass::GradKey, inputs.query.dtype(), sizes)?;
    let tensors = [inputs.query, inputs.key, inputs.value, output, grad_output].map(Tensor::memory);
    let mut reads = [&tensors[..], &[log2_sum]].concat();
    let writes = [grads.query.memory(), delta];
    launch::run(stream, sizes.op, &of_queries.kernel, of_queries.config, &reads, &writes, &params)?;
    reads.push(delta);
    let writes = [grads.key.memory(), grads.value.memory()];
    launch::run(stream, sizes.op, &of_keys.kernel, of_keys.config, &reads, &writes, &params)
}

fn common(kind: Instantiation, sizes: &Sizes, inputs: &Heads<'_>) -> Result<Params> {
    Ok(Params {
        query: operand(sizes, inputs.query)?,
        key: operand(sizes, inputs.key)?,
        value: operand(sizes, inputs.value)?,
        queries: sizes.queries as i32,
        keys: sizes.keys as i32,
        depth: sizes.depth as i32,
        is_softmax: (kind == Instantiation::Softmax).into(),
        scale: kind.scale(sizes.keys, sizes.depth),
        ..Params::zeroed()
    })
}

fn operand(sizes: &Sizes, tensor: &Tensor) -> Result<Operand> {
    let (address, pitch) = (tensor.memory().address(), tensor.pitch_c());
    if pitch > i32::MAX as usize {
        return Err(Error::unsupported(sizes.op, format!("a channel pitch of {pitch}")));
    }
    let is_aligned = address.is_multiple_of(16) && pitch.is_multiple_of(8);
    Ok(Operand { address, pitch: pitch as i32, is_aligned: is_aligned.into() })
}
