//! The pool after a stem: batch norm and ReLU on load, and in the backward pass the sums of that batch norm, so that neither
//! the normalised activation nor its gradient is ever stored.

use super::{Pool3d, PoolKind, check_indices, launch, plan};
use crate::device::{DType, Device, Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::ops::batch_norm::{BatchNorm, GradTables};
use crate::ops::check;
use crate::shape::Part;

/// The input of the pool is `relu(scale x + shift)`.
#[derive(Clone, Copy, Debug)]
pub struct Prologue<'a> {
    /// `[splits][2][c]`: scale, shift, as [`batch_norm::statistics`](crate::ops::batch_norm::statistics) makes them.
    pub scale_shift: &'a Slice,
    /// Contiguous blocks of `ceil(n / splits)` clips.
    pub splits: usize,
    /// Where the clips are part of a batch: that batch, of which they fill so many splits.
    pub part: Option<Part>,
}

/// The batch norm and ReLU before a pool: `relu(scale y + shift)`.
#[derive(Clone, Copy, Debug)]
pub struct NormBefore<'a> {
    /// Contiguous blocks of `ceil(n / splits)` clips.
    pub splits: usize,
    /// As in [`BatchNorm::part`].
    pub part: Option<Part>,
    /// The input of the batch norm; shaped as the input of the pool.
    pub y: &'a Tensor,
    /// `[splits][2][c]`: scale, shift.
    pub scale_shift: &'a Slice,
    /// What becomes of its sums.
    pub tables: GradTables<'a>,
}

fn norm_of(op: &Pool3d, splits: usize, part: Option<Part>) -> BatchNorm {
    BatchNorm { shape: op.input, splits, eps: 0.0, relu: true, part }
}

/// The batch of the clips.
pub(super) fn batch(op: &Pool3d, splits: usize, part: Option<Part>) -> Part {
    part.unwrap_or(Part::whole(op.input.n, splits.max(1)))
}

fn check_max(name: &'static str, op: &Pool3d, splits: usize, part: Option<Part>) -> Result<()> {
    op.check()?;
    part.map_or(Ok(()), |part| part.check(name, op.input.n))?;
    if op.kind != PoolKind::Max {
        return Err(Error::shape(name, "only a max pool takes a batch norm and ReLU before it, got an average"));
    }
    let filled = part.map_or(1, |part| part.splits_of(op.input.n));
    if splits < filled {
        return Err(Error::shape(name, format!("splits must be at least {filled}, got {splits}")));
    }
    Ok(())
}

fn refuse_cpu(name: &'static str, stream: &Stream) -> Result<()> {
    match stream.device() {
        Device::Cpu => Err(Error::unsupported(name, "has no form on the CPU; use batch_norm and pool3d one by one")),
        _ => Ok(()),
    }
}

/// Max pool of `relu(scale input + shift)`, which is computed in f32 and not stored. `indices` as [`forward`](super::forward)
/// writes them. Kernels only.
///
/// # Errors
/// Sizes that do not fit `op`, an average; the CPU.
pub fn forward_normalised(
    stream: &Stream,
    op: &Pool3d,
    prologue: &Prologue<'_>,
    input: &Tensor,
    output: &Tensor,
    indices: Option<&Slice>,
) -> Result<()> {
    const OP: &str = "pool3d forward_normalised";
    check_max(OP, op, prologue.splits, prologue.part)?;
    refuse_cpu(OP, stream)?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    check::tensor_of(OP, "input", input, op.input, dtype)?;
    check::tensor_of(OP, "output", output, op.output(), dtype)?;
    let table_len = norm_of(op, prologue.splits, prologue.part).scale_shift_len();
    check::slice(OP, "scale_shift", prologue.scale_shift, table_len, DType::F32)?;
    indices.map_or(Ok(()), |i| check_indices(OP, stream, op, i))?;
    launch::forward(stream, OP, op, Some(prologue), input, output, indices)
}

/// Bytes of scratch memory of [`grad_norm`]; f32 memory, whose first [`TICKET_BYTES`](crate::ops::TICKET_BYTES) must be zero before
/// the first call.
pub fn workspace_bytes(op: &Pool3d, splits: usize, part: Option<Part>) -> usize {
    plan::workspace_bytes(op, batch(op, splits, part))
}

/// Backward of [`forward_normalised`] up to the batch norm: its `grad_table`, and the gradients of gamma and beta, from sums of
/// `g`, the gradient behind the ReLU, and of `g (y - mean)`. `grad_input`, where given, receives `g`; else it is not stored.
/// In gather form: deterministic. Kernels only.
///
/// # Errors
/// Sizes that do not fit `op`, an average; the CPU.
pub fn grad_norm(
    stream: &Stream,
    op: &Pool3d,
    grad_output: &Tensor,
    indices: &Slice,
    norm: &NormBefore<'_>,
    grad_input: Option<&Tensor>,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "pool3d grad_norm";
    check_max(OP, op, norm.splits, norm.part)?;
    refuse_cpu(OP, stream)?;
    let dtype = check::activation_dtype(OP, stream, "grad_output", grad_output)?;
    check::tensor_of(OP, "grad_output", grad_output, op.output(), dtype)?;
    check::tensor_of(OP, "y", norm.y, op.input, dtype)?;
    grad_input.map_or(Ok(()), |g| check::tensor_of(OP, "grad_input", g, op.input, dtype))?;
    check_indices(OP, stream, op, indices)?;
    let (of, tables) = (norm_of(op, norm.splits, norm.part), &norm.tables);
    for (name, slice, len) in [
        ("scale_shift", norm.scale_shift, of.scale_shift_len()),
        ("stats", tables.stats, of.stats_len()),
        ("gamma", tables.gamma, op.input.c),
        ("grad_table", tables.grad_table, of.grad_table_len()),
        ("grad_gamma", tables.grad_gamma, op.input.c),
        ("grad_beta", tables.grad_beta, op.input.c),
    ] {
        check::slice(OP, name, slice, len, DType::F32)?;
    }
    check::workspace(OP, workspace, workspace_bytes(op, norm.splits, norm.part))?;
    launch::grad_norm(stream, OP, op, grad_output, indices, norm, grad_input, workspace)
}
