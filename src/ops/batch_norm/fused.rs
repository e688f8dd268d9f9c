//! The pieces of batch norm one by one, for networks that fuse the rest into their neighbours: statistics and tables without an
//! output, the pass that applies a table, the sums of the gradient, the pass that applies theirs.

use super::{BatchNorm, Running, cpu, launch, workspace_bytes};
use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;

/// What statistics become.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// `[c]`.
    pub gamma: &'a Slice,
    /// `[c]`.
    pub beta: &'a Slice,
    /// Receives `[splits][3][c]`: [`BatchNorm::stats_len`].
    pub stats: &'a Slice,
    /// Receives `[splits][2][c]`: [`BatchNorm::scale_shift_len`].
    pub scale_shift: Option<&'a Slice>,
    /// The layer's running pair, updated.
    pub running: Option<Running<'a>>,
    /// One u32 that becomes 1 where a statistic is not finite, and is left alone elsewhere. Where it is given, such statistics
    /// do not enter the running pair.
    pub skip: Option<&'a Slice>,
}

/// What the sums of a gradient become.
#[derive(Clone, Copy, Debug)]
pub struct GradTables<'a> {
    /// `[c]`.
    pub gamma: &'a Slice,
    /// `[splits][3][c]`, from forward.
    pub stats: &'a Slice,
    /// Receives A, B, C: `[splits][3][c]`: [`BatchNorm::grad_table_len`].
    pub grad_table: &'a Slice,
    /// Receives the gradient of gamma, `[c]`.
    pub grad_gamma: &'a Slice,
    /// Receives the gradient of beta, `[c]`.
    pub grad_beta: &'a Slice,
}

/// Where the gradient of the ReLU after a batch norm passes.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mask<'a> {
    /// There was no ReLU.
    #[default]
    None,
    /// Where its stored output is positive.
    Output(&'a Tensor),
    /// Where the normalised input is positive: scale and shift, `[splits][2][c]`.
    Recomputed(&'a Slice),
}

fn unsupported<T>(op: &'static str, what: &str, instead: &str) -> Result<T> {
    Err(Error::unsupported(op, format!("{what} has no form on the CPU; {instead}")))
}

fn check_tables(name: &'static str, op: &BatchNorm, to: &Tables<'_>) -> Result<()> {
    let c = op.shape.c;
    check::slice(name, "gamma", to.gamma, c, DType::F32)?;
    check::slice(name, "beta", to.beta, c, DType::F32)?;
    check::slice(name, "stats", to.stats, op.stats_len(), DType::F32)?;
    if let Some(table) = to.scale_shift {
        check::slice(name, "scale_shift", table, op.scale_shift_len(), DType::F32)?;
    }
    if let Some(running) = to.running {
        op.check_is_whole(name)?;
        check::slice(name, "running.mean", running.mean, c, DType::F32)?;
        check::slice(name, "running.var", running.var, c, DType::F32)?;
    }
    to.skip.map_or(Ok(()), |skip| check::slice(name, "skip", skip, 1, DType::U32))
}

fn check_grad_tables(name: &'static str, op: &BatchNorm, to: &GradTables<'_>) -> Result<()> {
    for (what, slice) in [("gamma", to.gamma), ("grad_gamma", to.grad_gamma), ("grad_beta", to.grad_beta)] {
        check::slice(name, what, slice, op.shape.c, DType::F32)?;
    }
    check::slice(name, "stats", to.stats, op.stats_len(), DType::F32)?;
    check::slice(name, "grad_table", to.grad_table, op.grad_table_len(), DType::F32)
}

fn check_mask(name: &'static str, op: &BatchNorm, mask: Mask<'_>, dtype: DType) -> Result<()> {
    match mask {
        Mask::None => Ok(()),
        Mask::Output(output) => check::tensor_of(name, "mask", output, op.shape, dtype),
        Mask::Recomputed(table) => check::slice(name, "mask", table, op.scale_shift_len(), DType::F32),
    }
}

/// Statistics of each split of `input`, as stored, and what follows from them; one launch. `op.relu` plays no part.
///
/// # Errors
/// Sizes that do not fit `op`; fewer than two values a channel in a split.
pub fn statistics(stream: &Stream, op: &BatchNorm, input: &Tensor, to: &Tables<'_>, workspace: &Slice) -> Result<()> {
    const OP: &str = "batch_norm statistics";
    op.check(OP)?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    check::tensor_of(OP, "input", input, op.shape, dtype)?;
    check_tables(OP, op, to)?;
    op.check_counts(OP)?;
    check::workspace(OP, workspace, workspace_bytes(stream, op))?;
    if *stream.device() != Device::Cpu {
        return launch::statistics(stream, OP, op, input, to, workspace);
    }
    let is_finite = with_host([input.memory()], [to.stats, workspace], |[x], [stats, workspace]| {
        let stats = stats.into_mut()?;
        cpu::statistics(op, input.view(x.get()?), stats, workspace.into_mut()?);
        Ok(stats[..op.splits_used() * 3 * op.shape.c].iter().all(|v| v.is_finite()))
    })?;
    if let Some(table) = to.scale_shift {
        with_host([to.stats, to.gamma, to.beta], [table], |[stats, gamma, beta], [table]| {
            cpu::scale_shift(op, stats.get()?, gamma.get()?, beta.get()?, table.into_mut()?);
            Ok(())
        })?;
    }
    if let (Some(skip), false) = (to.skip, is_finite) {
        return with_host([], [skip], |[], [skip]| {
            skip.into_mut::<u32>()?[0] |= super::SKIP_BIT;
            Ok(())
        });
    }
    let Some(running) = to.running else { return Ok(()) };
    super::update_running(stream, op, to.stats, running.momentum, running.mean, running.var)
}

/// The same tables from partial sums that another kernel has formed: mean and sum of squared deviations of each tile,
/// `[tiles][2][c]`. Tiles have `tile_rows` positions and restart at each split, whose last may be smaller. Kernels only.
///
/// # Errors
/// As [`statistics`]; the CPU has no such kernels.
pub fn finalise_statistics(
    stream: &Stream,
    op: &BatchNorm,
    tile_rows: usize,
    partials: &Slice,
    to: &Tables<'_>,
) -> Result<()> {
    const OP: &str = "batch_norm finalise_statistics";
    check_tables(OP, op, to)?;
    op.check_counts(OP)?;
    finalise(stream, OP, op, tile_rows, partials, &launch::Finalised::Statistics(to))
}

/// The tables of [`gradient_sums`] from partial sums: of `g` and of `g (y - mean)` of each tile, `[tiles][2][c]`; tiles as in
/// [`finalise_statistics`]. Kernels only.
///
/// # Errors
/// As [`gradient_sums`]; the CPU has no such kernels.
pub fn finalise_gradient(
    stream: &Stream,
    op: &BatchNorm,
    tile_rows: usize,
    partials: &Slice,
    to: &GradTables<'_>,
) -> Result<()> {
    const OP: &str = "batch_norm finalise_gradient";
    check_grad_tables(OP, op, to)?;
    finalise(stream, OP, op, tile_rows, partials, &launch::Finalised::Gradient(to))
}

fn finalise(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    tile_rows: usize,
    partials: &Slice,
    to: &launch::Finalised<'_>,
) -> Result<()> {
    op.check(name)?;
    let (rows, rows_per_split) = op.rows();
    if tile_rows == 0 || tile_rows.max(rows) >= 1 << 30 {
        return Err(Error::shape(
            name,
            format!("tile_rows must lie in 1..2^30 as positions, got {tile_rows} of {rows}"),
        ));
    }
    let full = (op.splits_used() - 1) * rows_per_split.div_ceil(tile_rows);
    let tiles = full + (rows - (op.splits_used() - 1) * rows_per_split).div_ceil(tile_rows);
    check::slice(name, "partials", partials, tiles * 2 * op.shape.c, DType::F32)?;
    if *stream.device() == Device::Cpu {
        return unsupported(name, "partial sums of tiles", "use batch_norm::forward_train and backward");
    }
    launch::finalise(stream, name, op, tile_rows, partials, to)
}

/// `output = relu(scale input + shift + second)`, where asked for: `second` as it is, or with a scale and shift of its own (a
/// downsample branch). `output` may be the same memory as `input`.
///
/// # Errors
/// Sizes that do not fit `op`; on the CPU a `second` with a table.
pub fn apply(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    scale_shift: &Slice,
    second: Option<(&Tensor, Option<&Slice>)>,
    output: &Tensor,
) -> Result<()> {
    const OP: &str = "batch_norm apply";
    op.check(OP)?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    check::tensor_of(OP, "input", input, op.shape, dtype)?;
    check::tensor_of(OP, "output", output, op.shape, dtype)?;
    check::slice(OP, "scale_shift", scale_shift, op.scale_shift_len(), DType::F32)?;
    if let Some((second, table)) = second {
        check::tensor_of(OP, "second", second, op.shape, dtype)?;
        table.map_or(Ok(()), |t| check::slice(OP, "scale_shift of second", t, op.scale_shift_len(), DType::F32))?;
    }
    if *stream.device() != Device::Cpu {
        return launch::apply(stream, OP, op, input, launch::With::ScaleShift(scale_shift), second, output);
    }
    if second.is_some_and(|s| s.1.is_some()) {
        return unsupported(OP, "a second normalised branch", "apply its table first");
    }
    let empty = scale_shift.part(0, 0)?;
    let source = if check::same_memory(input, output) { &empty } else { input.memory() };
    let joined = second.map_or(&empty, |s| s.0.memory());
    with_host([source, joined, scale_shift], [output.memory()], |[x, r, table], [y]| {
        let x = (!source.is_empty()).then_some(input.view(x.get()?));
        let r = second.map(|s| Ok::<_, Error>(s.0.view(r.get()?))).transpose()?;
        cpu::normalise(op, x, &cpu::affine_of_table(op, table.get()?), r, output.view_mut(y.into_mut()?));
        Ok(())
    })
}

/// The sums of the masked gradient `g` and of `g (input - mean)`, and what follows from them; one launch. `op.relu` plays no part:
/// `mask` says where the ReLU was open.
///
/// # Errors
/// Sizes that do not fit `op`; on the CPU a mask that is recomputed.
pub fn gradient_sums(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    grad_output: &Tensor,
    mask: Mask<'_>,
    to: &GradTables<'_>,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "batch_norm gradient_sums";
    op.check(OP)?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    check::tensor_of(OP, "input", input, op.shape, dtype)?;
    check::tensor_of(OP, "grad_output", grad_output, op.shape, dtype)?;
    check_mask(OP, op, mask, dtype)?;
    check_grad_tables(OP, op, to)?;
    check::workspace(OP, workspace, workspace_bytes(stream, op))?;
    if *stream.device() != Device::Cpu {
        return launch::gradient_sums(stream, OP, op, [input, grad_output], mask, to, false, workspace);
    }
    let empty = to.gamma.part(0, 0)?;
    let output = match mask {
        Mask::None => None,
        Mask::Output(output) => Some(output),
        Mask::Recomputed(_) => return unsupported(OP, "a recomputed mask", "use the stored output"),
    };
    let reads = [input.memory(), output.map_or(&empty, Tensor::memory), grad_output.memory(), to.stats];
    let writes = [to.grad_gamma, to.grad_beta, workspace];
    let sums = with_host(reads, writes, |[x, y, g, stats], [dgamma, dbeta, workspace]| {
        let y = output.map(|t| Ok::<_, Error>(t.view(y.get()?))).transpose()?;
        let (x, g) = (input.view(x.get()?), grad_output.view(g.get()?));
        let (dgamma, dbeta) = (dgamma.into_mut()?, dbeta.into_mut()?);
        Ok(cpu::gradient_sums(op, x, y, g, stats.get()?, dgamma, dbeta, workspace.into_mut()?))
    })?;
    with_host([to.stats, to.gamma], [to.grad_table], |[stats, gamma], [table]| {
        cpu::grad_table(op, stats.get()?, gamma.get()?, &sums, table.into_mut()?);
        Ok(())
    })
}

/// `grad_input = A g + B input + C`; `grad_residual`, where given, receives `g` (added to it where the flag is set). In place
/// as in [`backward`](super::backward). Kernels only.
///
/// # Errors
/// Sizes that do not fit `op`; on the CPU, where [`backward`](super::backward) does all of it.
#[allow(clippy::too_many_arguments)]
pub fn gradient(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    grad_output: &Tensor,
    mask: Mask<'_>,
    grad_table: &Slice,
    grad_input: &Tensor,
    grad_residual: Option<(&Tensor, bool)>,
) -> Result<()> {
    const OP: &str = "batch_norm gradient";
    op.check(OP)?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    for (name, tensor) in [("input", input), ("grad_output", grad_output), ("grad_input", grad_input)] {
        check::tensor_of(OP, name, tensor, op.shape, dtype)?;
    }
    grad_residual.map_or(Ok(()), |(r, _)| check::tensor_of(OP, "grad_residual", r, op.shape, dtype))?;
    check_mask(OP, op, mask, dtype)?;
    check::slice(OP, "grad_table", grad_table, op.grad_table_len(), DType::F32)?;
    if *stream.device() == Device::Cpu {
        return unsupported(OP, "the pass that applies a table", "use batch_norm::backward");
    }
    let from = [input, grad_output];
    launch::gradient(stream, OP, op, from, mask, [Some(grad_table), None], grad_input, grad_residual)
}

/// The scale and shift that the running pair makes, `[1][2][c]`: what evaluation applies in place of those of a batch.
///
/// # Errors
/// Lengths other than `op`'s channels.
pub fn running_scale_shift(
    stream: &Stream,
    op: &BatchNorm,
    running: [&Slice; 2],
    gamma: &Slice,
    beta: &Slice,
    scale_shift: &Slice,
) -> Result<()> {
    const OP: &str = "batch_norm running_scale_shift";
    op.check(OP)?;
    let [mean, var] = running;
    for (name, slice) in [("running mean", mean), ("running var", var), ("gamma", gamma), ("beta", beta)] {
        check::slice(OP, name, slice, op.shape.c, DType::F32)?;
    }
    check::slice(OP, "scale_shift", scale_shift, 2 * op.shape.c, DType::F32)?;
    if *stream.device() != Device::Cpu {
        return launch::running_scale_shift(stream, OP, op, [mean, var, gamma, beta], scale_shift);
    }
    with_host([mean, var, gamma, beta], [scale_shift], |[mean, var, gamma, beta], [table]| {
        cpu::running_scale_shift(op, [mean.get()?, var.get()?, gamma.get()?, beta.get()?], table.into_mut()?);
        Ok(())
    })
}
