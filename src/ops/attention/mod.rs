//! Attention between the positions of a clip, as the non-local block has it (Wang et al. 2018): forward and both gradients,
//! without a matrix of all scores in memory.
//!
//! Every query position q gathers the values of all key positions k of its clip:
//!
//! ```text
//! softmax       output_q = sum over k of softmax_k(query_q . key_k / sqrt(d)) value_k
//! dot product   output_q = sum over k of (query_q . key_k) / keys value_k
//! ```
//!
//! Queries are the block's theta, keys its phi, values its g. Keys and values may be pooled before (`pool3d`): they have positions of
//! their own. f32 on the CPU; bf16 or f16 with f32 sums elsewhere.

mod cpu;
mod launch;
mod params;
mod plan;
pub mod reference;

use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::{TICKET_BYTES, check};
use crate::shape::ActivationShape;

/// Most channels of a head.
pub const MAX_DEPTH: usize = 512;

/// How scores become weights: PySlowFast's NONLOCAL.INSTANTIATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instantiation {
    /// Softmax of the scores over sqrt(d).
    Softmax,
    /// The scores over the number of keys.
    DotProduct,
}

impl Instantiation {
    /// What scores are multiplied with.
    fn scale(self, keys: usize, depth: usize) -> f32 {
        match self {
            Instantiation::Softmax => (1.0 / (depth as f64).sqrt()) as f32,
            Instantiation::DotProduct => (1.0 / keys as f64) as f32,
        }
    }
}

/// Queries `[n][..][d]`, keys and values `[n][..][d]`, or their gradients.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Theta.
    pub query: &'a Tensor,
    /// Phi.
    pub key: &'a Tensor,
    /// g.
    pub value: &'a Tensor,
}

/// What the op is called in errors, and its sizes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    op: &'static str,
    clips: usize,
    queries: usize,
    keys: usize,
    depth: usize,
}

const FORWARD: &str = "attention forward";
const BACKWARD: &str = "attention backward";

/// `output`, of the queries' shape. `log2_sum` (f32, one a query; with the dot product it may be empty) receives the base-2
/// logarithm of the sum of exponentials, which [`backward`] takes.
///
/// # Errors
/// Shapes or types that do not fit together; more than [`MAX_DEPTH`] channels.
pub fn forward(
    stream: &Stream,
    kind: Instantiation,
    inputs: &Heads<'_>,
    output: &Tensor,
    log2_sum: &Slice,
) -> Result<()> {
    let sizes = check_inputs(FORWARD, stream, inputs)?;
    check::tensor_of(FORWARD, "output", output, inputs.query.shape(), inputs.query.dtype())?;
    check_rows(&sizes, kind, "log2_sum", log2_sum)?;
    if *stream.device() != Device::Cpu {
        return launch::forward(stream, kind, &sizes, inputs, output, log2_sum);
    }
    let Heads { query, key, value } = inputs;
    with_host([query.memory(), key.memory(), value.memory()], [output.memory(), log2_sum], |[q, k, v], [y, l]| {
        let inputs = [query.view(q.get()?), key.view(k.get()?), value.view(v.get()?)];
        cpu::forward(kind, &sizes, inputs, output.view_mut(y.into_mut()?), l.into_mut()?);
        Ok(())
    })
}

/// Bytes of the scratch memory of [`backward`] for queries of this shape: f32. The op counts no tickets; what begins with
/// [`TICKET_BYTES`] of them can still be shared with ops that do.
pub fn workspace_bytes(query: ActivationShape) -> usize {
    TICKET_BYTES + 4 * query.num_positions()
}

/// Gradients of queries, keys and values; all are overwritten. `output` and `log2_sum` are those of [`forward`]. Scores are formed
/// again, once for the queries' gradient and once for the others: no sum is shared between blocks.
///
/// # Errors
/// As [`forward`]; less workspace than [`workspace_bytes`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    stream: &Stream,
    kind: Instantiation,
    inputs: &Heads<'_>,
    output: &Tensor,
    log2_sum: &Slice,
    grad_output: &Tensor,
    grads: &Heads<'_>,
    workspace: &Slice,
) -> Result<()> {
    let sizes = check_inputs(BACKWARD, stream, inputs)?;
    let (dtype, of_query, of_key) = (inputs.query.dtype(), inputs.query.shape(), inputs.key.shape());
    check::tensor_of(BACKWARD, "output", output, of_query, dtype)?;
    check::tensor_of(BACKWARD, "grad_output", grad_output, of_query, dtype)?;
    check::tensor_of(BACKWARD, "the queries' gradient", grads.query, of_query, dtype)?;
    check::tensor_of(BACKWARD, "the keys' gradient", grads.key, of_key, dtype)?;
    check::tensor_of(BACKWARD, "the values' gradient", grads.value, of_key, dtype)?;
    check_rows(&sizes, kind, "log2_sum", log2_sum)?;
    check::workspace(BACKWARD, workspace, workspace_bytes(of_query))?;
    let delta = workspace.part(TICKET_BYTES / 4, sizes.clips * sizes.queries)?;
    if *stream.device() != Device::Cpu {
        return launch::backward(stream, kind, &sizes, inputs, output, log2_sum, grad_output, grads, &delta);
    }
    let Heads { query, key, value } = inputs;
    with_host(
        [query.memory(), key.memory(), value.memory(), output.memory(), grad_output.memory(), log2_sum],
        [grads.query.memory(), grads.key.memory(), grads.value.memory(), &delta],
        |[q, k, v, y, dy, l], [dq, dk, dv, delta]| {
            let inputs = [query.view(q.get()?), key.view(k.get()?), value.view(v.get()?)];
            let (y, dy, log2_sum) = (output.view(y.get()?), grad_output.view(dy.get()?), l.get()?);
            let (delta, dq) = (delta.into_mut()?, grads.query.view_mut(dq.into_mut()?));
            cpu::grad_query(kind, &sizes, inputs, [y, dy], log2_sum, delta, dq);
            let of_keys = [grads.key.view_mut(dk.into_mut()?), grads.value.view_mut(dv.into_mut()?)];
            cpu::grad_key(kind, &sizes, inputs, dy, log2_sum, delta, of_keys);
            Ok(())
        },
    )
}

fn check_inputs(op: &'static str, stream: &Stream, inputs: &Heads<'_>) -> Result<Sizes> {
    let Heads { query, key, value } = inputs;
    let (of_query, of_key) = (query.shape(), key.shape());
    let (allowed, types) = match stream.device() {
        Device::Cpu => ([DType::F32, DType::F32], "F32"),
        _ => ([DType::Bf16, DType::F16], "Bf16 or F16"),
    };
    if !allowed.contains(&query.dtype()) {
        return Err(Error::shape(op, format!("queries must hold {types}, got {:?}", query.dtype())));
    }
    check::tensor_of(op, "query", query, of_query, query.dtype())?;
    check::tensor_of(op, "key", key, of_key, query.dtype())?;
    check::tensor_of(op, "value", value, of_key, query.dtype())?;
    if (of_query.n, of_query.c) != (of_key.n, of_key.c) {
        return Err(Error::shape(op, format!("clips and channels must agree, got queries {of_query}, keys {of_key}")));
    }
    if of_query.c > MAX_DEPTH {
        return Err(Error::unsupported(op, format!("at most {MAX_DEPTH} channels, got {}", of_query.c)));
    }
    let rows = |shape: ActivationShape| shape.t * shape.h * shape.w;
    Ok(Sizes { op, clips: of_query.n, queries: rows(of_query), keys: rows(of_key), depth: of_query.c })
}

/// One f32 a query, where the softmax needs it.
fn check_rows(sizes: &Sizes, kind: Instantiation, name: &str, rows: &Slice) -> Result<()> {
    let wanted = if kind == Instantiation::Softmax { sizes.clips * sizes.queries } else { rows.len() };
    check::slice(sizes.op, name, rows, wanted, DType::F32)
}
