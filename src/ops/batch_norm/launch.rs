//! Fills the params and starts the kernels, on the GPU and on the emulator. Shapes have been checked.

use super::fused::{GradTables, Mask, Tables};
use super::params::{
    ApplyParams, FinaliseParams, GradientParams, GradientSumsParams, GradientTables, MomentsParams, RunningAllParams,
    RunningParams, StatisticsParams, StatisticsTables, TableKind,
};
use super::{BatchNorm, MomentsTable, RunningTable, plan};
use crate::device::{LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::Result;
use crate::ops::check;
use crate::ops::row_plan::{RowTiles, THREADS, is_wide, pitch};

/// Channels of a block of the finalising kernels (`FINALISE_COLUMN`).
const FINALISE_COLUMN: usize = 64;

/// Address of what may be absent.
fn address(slice: Option<&Slice>) -> u64 {
    slice.map_or(0, Slice::address)
}

fn present<const N: usize>(slices: [Option<&Slice>; N]) -> impl Iterator<Item = &Slice> {
    slices.into_iter().flatten()
}

fn statistics_tables(op: &BatchNorm, to: &Tables<'_>) -> StatisticsTables {
    StatisticsTables {
        gamma: to.gamma.address(),
        beta: to.beta.address(),
        stats: to.stats.address(),
        scale_shift: address(to.scale_shift),
        running_mean: address(to.running.map(|r| r.mean)),
        running_var: address(to.running.map(|r| r.var)),
        skip: address(to.skip),
        eps: op.eps,
        momentum: to.running.map_or(0.0, |r| r.momentum),
        channels: op.shape.c as i32,
        splits: op.splits_used() as i32,
    }
}

fn written<'a>(to: &Tables<'a>) -> Vec<&'a Slice> {
    let running = [to.running.map(|r| r.mean), to.running.map(|r| r.var)];
    [to.stats].into_iter().chain(present([to.scale_shift, to.skip])).chain(present(running)).collect()
}

fn gradient_tables(op: &BatchNorm, to: &GradTables<'_>, is_centred: bool) -> GradientTables {
    GradientTables {
        stats: to.stats.address(),
        gamma: to.gamma.address(),
        grad_table: to.grad_table.address(),
        grad_gamma: to.grad_gamma.address(),
        grad_beta: to.grad_beta.address(),
        channels: op.shape.c as i32,
        is_centred: i32::from(is_centred),
        accumulates: op.part.is_some_and(|part| part.accumulates()).into(),
        reserved: 0,
    }
}

pub(super) fn statistics(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    input: &Tensor,
    to: &Tables<'_>,
    workspace: &Slice,
) -> Result<()> {
    let plan = plan::sums(name, op, plan::STATISTICS, input.dtype(), is_wide(&[input]))?;
    let params = StatisticsParams {
        input: input.memory().address(),
        at: plan.partials(workspace.address()),
        to: statistics_tables(op, to),
        tiles: plan.tiles,
        input_pitch: pitch(name, input)?,
        column: plan.column as i32,
    };
    let mut writes = written(to);
    writes.push(workspace);
    // Mean and M2 of each channel of a vector, and a count.
    let config = plan.launch_sums(4 * (2 * plan.vector() + 1));
    launch::run(stream, name, plan.kernel, config, &[input.memory(), to.gamma, to.beta], &writes, &params)
}

/// What the input is normalised with.
#[derive(Clone, Copy)]
pub(super) enum With<'a> {
    ScaleShift(&'a Slice),
    Stats { stats: &'a Slice, gamma: &'a Slice, beta: &'a Slice },
    Running { mean: &'a Slice, var: &'a Slice, gamma: &'a Slice, beta: &'a Slice },
}

impl<'a> With<'a> {
    /// Table, var, gamma, beta.
    fn slices(self) -> [Option<&'a Slice>; 4] {
        match self {
            With::ScaleShift(table) => [Some(table), None, None, None],
            With::Stats { stats, gamma, beta } => [Some(stats), None, Some(gamma), Some(beta)],
            With::Running { mean, var, gamma, beta } => [Some(mean), Some(var), Some(gamma), Some(beta)],
        }
    }

    fn kind(self) -> TableKind {
        match self {
            With::ScaleShift(_) => TableKind::ScaleShift,
            With::Stats { .. } => TableKind::Stats,
            With::Running { .. } => TableKind::Running,
        }
    }
}

pub(super) fn apply(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    input: &Tensor,
    with: With<'_>,
    second: Option<(&Tensor, Option<&Slice>)>,
    output: &Tensor,
) -> Result<()> {
    let (tensor, table) = (second.map(|s| s.0), second.and_then(|s| s.1));
    let wide = is_wide(&[input, output]) && tensor.is_none_or(|t| is_wide(&[t]));
    let plan = plan::each(name, op, plan::APPLY, input.dtype(), wide)?;
    let [of_input, var, gamma, beta] = with.slices().map(address);
    let params = ApplyParams {
        input: input.memory().address(),
        output: output.memory().address(),
        second: address(tensor.map(Tensor::memory)),
        second_table: address(table),
        table: of_input,
        var,
        gamma,
        beta,
        tiles: plan.tiles,
        input_pitch: pitch(name, input)?,
        output_pitch: pitch(name, output)?,
        second_pitch: tensor.map_or(Ok(0), |t| pitch(name, t))?,
        channels: op.shape.c as i32,
        column: plan.column as i32,
        table_kind: with.kind() as i32,
        has_relu: i32::from(op.relu),
        eps: op.eps,
    };
    // A thread reads an element before it writes it: in place is as good.
    let read = [Some(input), tensor].into_iter().flatten().filter(|t| !check::same_memory(t, output));
    let tables = present(with.slices()).chain(table);
    let reads: Vec<&Slice> = read.map(Tensor::memory).chain(tables).collect();
    launch::run(stream, name, plan.kernel, plan.launch_each(), &reads, &[output.memory()], &params)
}

/// Addresses of the mask's tensor and table, the tensor's pitch, and what is read.
fn mask_fields<'a>(name: &'static str, mask: Mask<'a>) -> Result<(u64, u64, i32, Option<&'a Slice>)> {
    Ok(match mask {
        Mask::None => (0, 0, 0, None),
        Mask::Output(output) => (output.memory().address(), 0, pitch(name, output)?, Some(output.memory())),
        Mask::Recomputed(table) => (0, table.address(), 0, Some(table)),
    })
}

fn is_mask_wide(mask: Mask<'_>) -> bool {
    match mask {
        Mask::Output(output) => is_wide(&[output]),
        _ => true,
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn gradient_sums(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    [input, grad_output]: [&Tensor; 2],
    mask: Mask<'_>,
    to: &GradTables<'_>,
    is_centred: bool,
    workspace: &Slice,
) -> Result<()> {
    let wide = is_wide(&[input, grad_output]) && is_mask_wide(mask);
    let plan = plan::sums(name, op, plan::GRADIENT_SUMS, input.dtype(), wide)?;
    let (mask, mask_table, mask_pitch, of_mask) = mask_fields(name, mask)?;
    let params = GradientSumsParams {
        input: input.memory().address(),
        grad_output: grad_output.memory().address(),
        mask,
        mask_table,
        at: plan.partials(workspace.address()),
        to: gradient_tables(op, to, is_centred),
        tiles: plan.tiles,
        input_pitch: pitch(name, input)?,
        grad_output_pitch: pitch(name, grad_output)?,
        mask_pitch,
        column: plan.column as i32,
    };
    let reads: Vec<&Slice> =
        [input.memory(), grad_output.memory(), to.stats, to.gamma].into_iter().chain(of_mask).collect();
    let writes = [to.grad_table, to.grad_gamma, to.grad_beta, workspace];
    let config = plan.launch_sums(4 * 2 * plan.vector());
    launch::run(stream, name, plan.kernel, config, &reads, &writes, &params)
}

/// `stats`: given where the table is centred.
#[allow(clippy::too_many_arguments)]
pub(super) fn gradient(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    [input, grad_output]: [&Tensor; 2],
    mask: Mask<'_>,
    [table, stats]: [Option<&Slice>; 2],
    grad_input: &Tensor,
    grad_residual: Option<(&Tensor, bool)>,
) -> Result<()> {
    let residual = grad_residual.map(|r| r.0);
    let wide = is_wide(&[input, grad_output, grad_input])
        && is_mask_wide(mask)
        && residual.is_none_or(|residual| is_wide(&[residual]));
    let plan = plan::each(name, op, plan::GRADIENT, input.dtype(), wide)?;
    let (mask, mask_table, mask_pitch, of_mask) = mask_fields(name, mask)?;
    let accumulates = grad_residual.is_some_and(|r| r.1);
    let params = GradientParams {
        input: input.memory().address(),
        grad_output: grad_output.memory().address(),
        mask,
        mask_table,
        table: address(table),
        stats: address(stats),
        grad_input: grad_input.memory().address(),
        grad_residual: address(residual.map(Tensor::memory)),
        tiles: plan.tiles,
        input_pitch: pitch(name, input)?,
        grad_output_pitch: pitch(name, grad_output)?,
        mask_pitch,
        grad_input_pitch: pitch(name, grad_input)?,
        grad_residual_pitch: residual.map_or(Ok(0), |r| pitch(name, r))?,
        channels: op.shape.c as i32,
        column: plan.column as i32,
        accumulates: i32::from(accumulates),
    };
    // A thread reads an element before it writes it.
    let in_place = check::same_memory(grad_output, grad_input)
        || residual.is_some_and(|r| !accumulates && check::same_memory(grad_output, r));
    let of_grad = (!in_place).then_some(grad_output.memory());
    let reads: Vec<&Slice> = present([Some(input.memory()), of_grad, of_mask, table, stats]).collect();
    let writes: Vec<&Slice> = present([Some(grad_input.memory()), residual.map(Tensor::memory)]).collect();
    launch::run(stream, name, plan.kernel, plan.launch_each(), &reads, &writes, &params)
}

/// What partial sums become.
pub(super) enum Finalised<'a> {
    Statistics(&'a Tables<'a>),
    Gradient(&'a GradTables<'a>),
}

pub(super) fn finalise(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    tile_rows: usize,
    partials: &Slice,
    to: &Finalised<'_>,
) -> Result<()> {
    let (rows, rows_per_split) = op.rows();
    let tiles = RowTiles::new(rows, rows_per_split, tile_rows, 1);
    let mut params = FinaliseParams { partials: partials.address(), tiles, ..bytemuck::Zeroable::zeroed() };
    let (kernel, inputs, writes) = match to {
        Finalised::Statistics(to) => {
            params.statistics = statistics_tables(op, to);
            ("batch_norm_finalise_statistics_f32", [to.gamma, to.beta], written(to))
        }
        Finalised::Gradient(to) => {
            params.gradient = gradient_tables(op, to, false);
            let writes = vec![to.grad_table, to.grad_gamma, to.grad_beta];
            ("batch_norm_finalise_gradient_f32", [to.stats, to.gamma], writes)
        }
    };
    let grid = [op.shape.c.div_ceil(FINALISE_COLUMN) as u32, 1, 1];
    let config = LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 32 * THREADS as u32 };
    launch::run(stream, name, kernel, config, &[partials, inputs[0], inputs[1]], &writes, &params)
}

/// A thread a channel.
fn per_channel(op: &BatchNorm) -> LaunchConfig {
    let grid = [op.shape.c.div_ceil(THREADS) as u32, 1, 1];
    LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 }
}

/// Likewise for several norms, one in y of the grid each; `None` without a norm.
fn per_channel_of_all<'a>(ops: impl ExactSizeIterator<Item = &'a BatchNorm>) -> Option<LaunchConfig> {
    let num_norms = ops.len() as u32;
    let widest = ops.map(|op| op.shape.c).max()?;
    let grid = [widest.div_ceil(THREADS) as u32, num_norms, 1];
    Some(LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 })
}

pub(super) fn update_running(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    stats: &Slice,
    momentum: f32,
    [mean, var]: [&Slice; 2],
) -> Result<()> {
    let params = RunningParams {
        stats: stats.address(),
        running_mean: mean.address(),
        running_var: var.address(),
        gamma: 0,
        beta: 0,
        scale_shift: 0,
        channels: op.shape.c as i32,
        splits: op.splits_used() as i32,
        momentum,
        eps: op.eps,
    };
    launch::run(stream, name, "batch_norm_update_running_f32", per_channel(op), &[stats], &[mean, var], &params)
}

pub(super) fn update_running_all(
    stream: &Stream,
    name: &'static str,
    table: &RunningTable,
    momentum: f32,
    skipped: Option<&Slice>,
) -> Result<()> {
    let norms = table.norms();
    let Some(config) = per_channel_of_all(norms.iter().map(|norm| &norm.op)) else { return Ok(()) };
    let params =
        RunningAllParams { entries: table.entries().address(), skipped: address(skipped), momentum, reserved: 0 };
    let reads: Vec<&Slice> = norms.iter().map(|norm| &norm.stats).chain([table.entries()]).chain(skipped).collect();
    let writes: Vec<&Slice> = norms.iter().flat_map(|norm| &norm.running).collect();
    launch::run(stream, name, "batch_norm_update_running_all_f32", config, &reads, &writes, &params)
}

pub(super) fn add_moments_all(stream: &Stream, name: &'static str, table: &MomentsTable) -> Result<()> {
    let norms = table.norms();
    let Some(config) = per_channel_of_all(norms.iter().map(|norm| &norm.op)) else { return Ok(()) };
    let params = MomentsParams { entries: table.entries().address() };
    let reads: Vec<&Slice> = norms.iter().map(|norm| &norm.stats).chain([table.entries()]).collect();
    let writes: Vec<&Slice> = norms.iter().map(|norm| &norm.sums).collect();
    launch::run(stream, name, "batch_norm_add_moments_f32", config, &reads, &writes, &params)
}

pub(super) fn running_scale_shift(
    stream: &Stream,
    name: &'static str,
    op: &BatchNorm,
    [mean, var, gamma, beta]: [&Slice; 4],
    scale_shift: &Slice,
) -> Result<()> {
    let params = RunningParams {
        stats: 0,
        running_mean: mean.address(),
        running_var: var.address(),
        gamma: gamma.address(),
        beta: beta.address(),
        scale_shift: scale_shift.address(),
        channels: op.shape.c as i32,
        splits: 1,
        momentum: 0.0,
        eps: op.eps,
    };
    let reads = [mean, var, gamma, beta];
    launch::run(stream, name, "batch_norm_running_scale_shift_f32", per_channel(op), &reads, &[scale_shift], &params)
}
