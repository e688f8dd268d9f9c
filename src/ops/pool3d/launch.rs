//! Chooses the kernel, fills its params and starts it, on the GPU and on the emulator. Shapes have been checked.

use super::fused::{NormBefore, Prologue, batch};
use super::params::{AxisParams, NormParams, Params};
use super::plan::{self, Kind};
use super::{Pool3d, PoolKind};
use crate::device::{Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::batch_norm::params::GradientTables;
use crate::ops::row_plan::{RowPlan, THREADS, is_wide, pitch};

/// Largest size along t, h and w that the kernels' arithmetic takes, padding included.
const MAX_SIZE: usize = 1 << 30;

fn check_sizes(name: &'static str, op: &Pool3d) -> Result<()> {
    let i = op.input;
    let sizes = [i.t, i.h, i.w].into_iter().zip(op.padding).map(|(size, padding)| size + 2 * padding);
    if sizes.chain(op.stride).chain(op.kernel).any(|size| size > MAX_SIZE) || i.num_positions() >= MAX_SIZE {
        return Err(Error::unsupported(name, format!("sizes must be below {MAX_SIZE}, got {op:?}")));
    }
    Ok(())
}

/// Whether indices can be moved by vectors too.
fn is_aligned(indices: Option<&Slice>) -> bool {
    indices.is_none_or(|i| i.address().is_multiple_of(16))
}

/// What all kernels take; `to` is the side that is walked.
fn params(
    name: &'static str,
    op: &Pool3d,
    plan: &RowPlan,
    walks_input: bool,
    from: &Tensor,
    to: Option<&Tensor>,
    indices: Option<&Slice>,
) -> Result<Params> {
    Ok(Params {
        from: from.memory().address(),
        to: to.map_or(0, |t| t.memory().address()),
        indices: indices.map_or(0, Slice::address),
        table: 0,
        axes: AxisParams::of(op, walks_input),
        tiles: plan.tiles,
        from_pitch: pitch(name, from)?,
        to_pitch: to.map_or(Ok(0), |t| pitch(name, t))?,
        channels: op.input.c as i32,
        column: plan.column as i32,
        index_bytes: indices.map_or(1, |i| i.dtype().size_bytes()) as i32,
        accumulates: 0,
        scale: 1.0 / op.kernel.iter().product::<usize>() as f32,
    })
}

pub(super) fn forward(
    stream: &Stream,
    name: &'static str,
    op: &Pool3d,
    prologue: Option<&Prologue<'_>>,
    input: &Tensor,
    output: &Tensor,
    indices: Option<&Slice>,
) -> Result<()> {
    check_sizes(name, op)?;
    let wide = is_wide(&[input, output]) && is_aligned(indices);
    let kind = match op.kind {
        PoolKind::Max => Kind::ForwardMax,
        PoolKind::Average if op.output().num_positions() == op.input.n => Kind::ForwardGlobal,
        PoolKind::Average => Kind::ForwardAverage,
    };
    let of_batch = prologue.map_or(batch(op, 1, None), |p| batch(op, p.splits, p.part));
    let plan = plan::plan(name, op, kind, of_batch, input.dtype(), wide)?;
    plan.print(name);
    let mut params = params(name, op, &plan, false, input, Some(output), indices)?;
    params.table = prologue.map_or(0, |p| p.scale_shift.address());
    let mut config = plan.launch_each();
    if kind == Kind::ForwardGlobal {
        config.shared_bytes = (4 * THREADS * plan.vector()) as u32;
    }
    let reads: Vec<&Slice> = [Some(input.memory()), prologue.map(|p| p.scale_shift)].into_iter().flatten().collect();
    let writes: Vec<&Slice> = [Some(output.memory()), indices].into_iter().flatten().collect();
    launch::run(stream, name, plan.kernel, config, &reads, &writes, &params)
}

pub(super) fn grad_input(
    stream: &Stream,
    name: &'static str,
    op: &Pool3d,
    grad_output: &Tensor,
    indices: Option<&Slice>,
    grad_input: &Tensor,
    accumulate: bool,
) -> Result<()> {
    check_sizes(name, op)?;
    let wide = is_wide(&[grad_output, grad_input]) && is_aligned(indices);
    let kind = if op.kind == PoolKind::Max { Kind::GradInputMax } else { Kind::GradInputAverage };
    let plan = plan::plan(name, op, kind, batch(op, 1, None), grad_output.dtype(), wide)?;
    plan.print(name);
    let mut params = params(name, op, &plan, true, grad_output, Some(grad_input), indices)?;
    params.accumulates = i32::from(accumulate);
    let reads: Vec<&Slice> = [Some(grad_output.memory()), indices].into_iter().flatten().collect();
    launch::run(stream, name, plan.kernel, plan.launch_each(), &reads, &[grad_input.memory()], &params)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn grad_norm(
    stream: &Stream,
    name: &'static str,
    op: &Pool3d,
    grad_output: &Tensor,
    indices: &Slice,
    norm: &NormBefore<'_>,
    grad_input: Option<&Tensor>,
    workspace: &Slice,
) -> Result<()> {
    check_sizes(name, op)?;
    let wide = is_wide(&[grad_output, norm.y]) && grad_input.is_none_or(|g| is_wide(&[g])) && is_aligned(Some(indices));
    let plan = plan::plan(name, op, Kind::GradNorm, batch(op, norm.splits, norm.part), grad_output.dtype(), wide)?;
    plan.print(name);
    let mut pool = params(name, op, &plan, true, grad_output, grad_input, Some(indices))?;
    pool.table = norm.scale_shift.address();
    let tables = &norm.tables;
    let params = NormParams {
        pool,
        y: norm.y.memory().address(),
        at: plan.partials(workspace.address()),
        norm: GradientTables {
            stats: tables.stats.address(),
            gamma: tables.gamma.address(),
            grad_table: tables.grad_table.address(),
            grad_gamma: tables.grad_gamma.address(),
            grad_beta: tables.grad_beta.address(),
            channels: op.input.c as i32,
            is_centred: 0,
            accumulates: norm.part.is_some_and(|part| part.accumulates()).into(),
            reserved: 0,
        },
        y_pitch: pitch(name, norm.y)?,
        reserved: 0,
    };
    let reads = [grad_output.memory(), indices, norm.y.memory(), norm.scale_shift, tables.stats, tables.gamma];
    let mut writes = vec![tables.grad_table, tables.grad_gamma, tables.grad_beta, workspace];
    writes.extend(grad_input.map(Tensor::memory));
    let config = plan.launch_sums(4 * 2 * plan.vector());
    launch::run(stream, name, plan.kernel, config, &reads, &writes, &params)
}
