//! Both gradients of a convolution by one kernel: checks what it takes, plans and launches.

mod params;
mod plan;

use bytemuck::Zeroable;

use super::fused::{GradEpilogue, Mask};
use super::grad_filter::{self, GradFilterSources};
use super::job::Memory;
use super::params::{GradNormParams, placed};
use super::{Conv3d, check, launch as launches};
use crate::device::{Device, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;
use crate::ops::batch_norm::params::GradientTables;
use crate::ops::check::same_memory;
use params::Params;
use plan::{Limits, Plan, Sources};

const OP: &str = "conv3d backward";
/// Threads of a block (`THREADS` in the kernel), and of one that adds up parts (`SUM_WARPS` there).
const THREADS: u32 = 256;
const SUM_WARPS: u32 = 8;
/// Elements that such a block adds up.
const SUM_ELEMENTS: usize = 128;
/// Shared memory that the emulator is planned for: that of the smallest GPU with kernels for all.
const SIMT_SHARED_BYTES: usize = 163 << 10;

/// The emulator has few SMs, as for grad_filter: small tests have parts of several tiles.
fn limits(device: &Device) -> Limits {
    let of_filter = grad_filter::limits(device);
    let shared_bytes = if *device == Device::Simt { SIMT_SHARED_BYTES } else { of_filter.shared_bytes };
    Limits { num_sms: of_filter.num_sms, shared_bytes }
}

pub(super) fn fits(stream: &Stream, op: &Conv3d, splits: usize) -> bool {
    check::sizes(op).is_ok()
        && plan::all_sources(splits.max(1)).all(|from| plan::plan(op, &from, limits(stream.device())).is_some())
}

pub(super) fn workspace_bytes(device: &Device, op: &Conv3d, splits: usize) -> usize {
    let plans = plan::all_sources(splits.max(1)).filter_map(|from| plan::plan(op, &from, limits(device)));
    plans.map(|plan| plan.workspace_bytes).max().unwrap_or(0)
}

/// Launches the kernels. Shapes are checked.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    stream: &Stream,
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    filter: &Slice,
    epilogue: &GradEpilogue<'_>,
    grad_input: &Tensor,
    grad_filter: &Slice,
    workspace: &Slice,
) -> Result<()> {
    check_form(from, epilogue)?;
    let needs_splits = !epilogue.norms.is_empty() || matches!(epilogue.mask, Mask::Recomputed { .. });
    let on_load = from.grad_table.map(|t| t.splits).or(from.prologue.map(|p| p.splits));
    let splits = launches::common_splits(OP, op, [on_load, needs_splits.then_some(epilogue.splits)])?;
    let other_norms = epilogue.norms.iter().filter(|norm| !same_memory(norm.y, from.input)).count();
    let sources = Sources { splits, has_table: from.grad_table.is_some(), adds: epilogue.add.is_some(), other_norms };
    let none = || Error::unsupported(OP, format!("no kernel makes both gradients of {op:?}; call one after the other"));
    let plan = plan::plan(op, &sources, limits(stream.device())).ok_or_else(none)?;
    launch::print_plan(|| format!("{OP}: {op:?}, {sources:?}: {plan}"));
    check::workspace(OP, workspace, plan.workspace_bytes)?;

    let mut memory = Memory::default();
    let mut params = params(op, &plan);
    fill_operands(&mut params, &mut memory, from, filter, epilogue, grad_input);
    fill_norms(&mut params, &mut memory, op, &plan, from, epilogue);
    params.grad_filter = memory.write_singly(grad_filter);
    let base = memory.write(workspace);
    params.tickets = base;
    params.norm_partials = base + TICKET_BYTES as u64;
    params.partials = base + plan.partials_at as u64;
    check_vectors(&params, &memory)?;

    let (v, dtype) = (&plan.variant, from.input.dtype());
    let grid = [plan.columns as u32, plan.parts_per_split as u32, plan.splits as u32];
    let config = LaunchConfig { grid, block: [THREADS, 1, 1], shared_bytes: plan.layout.shared_bytes as u32 };
    launch::run(stream, OP, &v.kernel(dtype), config, memory.reads(), memory.writes(), &params)?;
    let grid = [(v.c_out * v.c_in / SUM_ELEMENTS) as u32, plan.columns as u32, 1];
    let config = LaunchConfig { grid, block: [32 * SUM_WARPS, 1, 1], shared_bytes: SUM_WARPS * 512 };
    launch::run(stream, OP, "conv3d_backward_sum_f32", config, &[workspace], &[grad_filter], &params)
}

/// What the one reading serves: input and mask from one tensor, no pool, no join.
fn check_form(from: &GradFilterSources<'_>, epilogue: &GradEpilogue<'_>) -> Result<()> {
    let refused = |what: &str| Err(Error::unsupported(OP, format!("{what}; call one gradient after the other")));
    if from.pool.is_some() || from.prologue.is_some_and(|p| p.join.is_some()) {
        return refused("an input or a gradient that comes through a pool or a join");
    }
    if from.grad_table.is_some_and(|t| t.store_dy.is_some()) {
        return refused("a gradient that is to be stored");
    }
    let is_of_input = match (epilogue.mask, &from.prologue) {
        (Mask::None, _) => true,
        (Mask::Output(output), None) => same_memory(output, from.input),
        (Mask::Recomputed { scale_shift, y }, Some(p)) => {
            same_memory(y, from.input) && scale_shift.address() == p.scale_shift.address()
        }
        _ => false,
    };
    if is_of_input { Ok(()) } else { refused("a mask that is not the input's own") }
}

fn params(op: &Conv3d, plan: &Plan) -> Params {
    let (l, v, i) = (&plan.layout, &plan.variant, op.input);
    Params {
        c_in: i.c as i32,
        c_out: op.c_out as i32,
        columns: plan.columns as i32,
        rows: i.num_positions() as i32,
        rows_per_split: plan.rows_per_split as i32,
        splits: plan.splits as i32,
        tiles_per_part: plan.tiles_per_part as i32,
        parts_per_split: plan.parts_per_split as i32,
        num_parts: plan.num_parts as i32,
        accumulates: op.part.is_some_and(|part| part.accumulates()).into(),
        tile_co: v.c_out as i32,
        tile_ci: v.c_in as i32,
        tables_at: l.tables_at as i32,
        stages_at: l.stages_at as i32,
        stage_bytes: l.stage_bytes as i32,
        y_at: l.y_at as i32,
        x_at: l.x_at as i32,
        result_at: l.result_at as i32,
        result_step: l.result_step as i32,
        ..Params::zeroed()
    }
}

fn fill_operands<'a>(
    params: &mut Params,
    memory: &mut Memory<'a>,
    from: &GradFilterSources<'a>,
    filter: &'a Slice,
    epilogue: &GradEpilogue<'a>,
    grad_input: &'a Tensor,
) {
    (params.g, params.g_pitch) = (memory.read(from.grad_output.memory()), from.grad_output.pitch_c() as i32);
    if let Some(t) = &from.grad_table {
        params.grad_table = memory.read_singly(t.table);
        (params.y, params.y_pitch) = (memory.read(t.y.memory()), t.y.pitch_c() as i32);
    }
    (params.x, params.x_pitch) = (memory.read(from.input.memory()), from.input.pitch_c() as i32);
    params.scale_shift = from.prologue.map_or(0, |p| memory.read_singly(p.scale_shift));
    params.filter = memory.read(filter);
    (params.add, params.add_pitch) = placed(epilogue.add);
    // A block reads what is added to an element and then writes it: the result may take its place.
    epilogue.add.filter(|add| !same_memory(add, grad_input)).map(|add| memory.read(add.memory()));
    (params.grad_input, params.grad_input_pitch) = (memory.write(grad_input.memory()), grad_input.pitch_c() as i32);
    params.has_mask = i32::from(!matches!(epilogue.mask, Mask::None));
}

fn fill_norms<'a>(
    params: &mut Params,
    memory: &mut Memory<'a>,
    op: &Conv3d,
    plan: &Plan,
    from: &GradFilterSources<'a>,
    epilogue: &GradEpilogue<'a>,
) {
    params.num_norms = epilogue.norms.len() as i32;
    let mut at = plan.layout.norms_at;
    for (k, norm) in epilogue.norms.iter().enumerate() {
        params.norms[k] = GradNormParams {
            y: memory.read(norm.y.memory()),
            to: GradientTables {
                stats: memory.read_singly(norm.stats),
                gamma: memory.read_singly(norm.gamma),
                grad_table: memory.write_singly(norm.grad_table),
                grad_gamma: memory.write_singly(norm.grad_gamma),
                grad_beta: memory.write_singly(norm.grad_beta),
                channels: op.input.c as i32,
                is_centred: 0,
                accumulates: op.part.is_some_and(|part| part.accumulates()).into(),
                reserved: 0,
            },
            y_pitch: norm.y.pitch_c() as i32,
            reserved: 0,
        };
        params.norm_at[k] = plan.layout.x_at as i32;
        if !same_memory(norm.y, from.input) {
            params.norm_at[k] = at as i32;
            at += plan.variant.rows * plan.variant.c_in * 2;
        }
    }
}

/// Rows are read and written in vectors.
fn check_vectors(p: &Params, memory: &Memory<'_>) -> Result<()> {
    let pitches =
        [p.g_pitch, p.y_pitch, p.x_pitch, p.add_pitch, p.grad_input_pitch, p.norms[0].y_pitch, p.norms[1].y_pitch];
    if memory.is_misaligned() || !p.add.is_multiple_of(16) || pitches.iter().any(|pitch| pitch % 8 != 0) {
        let message =
            "addresses must be multiples of 16 bytes and pitches of 8 channels; call one gradient after the other";
        return Err(Error::unsupported(OP, message));
    }
    Ok(())
}
