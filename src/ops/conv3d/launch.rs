//! Fills what the kernels take and starts them, on the GPU and on the emulator.

use bytemuck::Zeroable;

use super::fused::{Checker, Epilogue, GradEpilogue, GradTable, Mask, Prologue};
use super::job::{Job, Memory, THREADS, num_sms};
use super::method::{self, Method};
use super::params::{GradNormParams, Params, PrologueOnlyParams, PrologueParams, address, placed};
use super::plan::{self, OnLoad, Request};
use super::{Conv3d, Direction, autotune};
use crate::device::{DType, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::batch_norm::params::{GradientTables, StatisticsTables};
use crate::shape::{ActivationShape, Part};

/// A tensor's dtype, if there are kernels for it.
pub(super) fn checker(op: &'static str, conv: &Conv3d, tensor: &Tensor) -> Result<Checker> {
    match tensor.dtype() {
        dtype @ (DType::Bf16 | DType::F16) => Ok(Checker { op, dtype, part: conv.part }),
        other => {
            Err(Error::unsupported(op, format!("the kernels take Bf16 or F16, got {other:?}; use the cpu executor")))
        }
    }
}

/// The one number of splits of a call: what is said twice must agree, and the clips at hand must not fill more.
pub(super) fn common_splits(name: &'static str, op: &Conv3d, said: [Option<usize>; 2]) -> Result<usize> {
    if let [Some(a), Some(b)] = said
        && a != b
    {
        return Err(Error::shape(name, format!("splits on load and on store differ: {a} and {b}")));
    }
    let [a, b] = said;
    let Some(splits) = a.or(b) else { return Ok(op.part.map_or(1, |part| part.splits_of(op.input.n))) };
    check_filled(name, op, splits)?;
    Ok(splits)
}

/// Tables hold a row for each split that the clips at hand fill.
pub(super) fn check_filled(name: &'static str, op: &Conv3d, splits: usize) -> Result<()> {
    match op.part.map(|part| part.splits_of(op.input.n)) {
        Some(filled) if splits < filled => {
            let message = format!("the clips fill {filled} splits of their batch, tables are for {splits}");
            Err(Error::shape(name, message))
        }
        _ => Ok(()),
    }
}

/// `conv3d::forward_fused` on kernels; the shapes are checked.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    stream: &Stream,
    op: &Conv3d,
    input: &Tensor,
    prologue: Option<&Prologue<'_>>,
    filter: &Slice,
    epilogue: &Epilogue<'_>,
    output: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d forward";
    let stored = prologue.and_then(|p| p.join).and_then(|join| join.output);
    let stored = stored.filter(|_| !plan::reads_each_position_once(op));
    let (input, prologue) = match (prologue, stored) {
        (Some(p), Some(stored)) => {
            store_prologue(stream, OP, input, &prologue_params(p), op.batch(p.splits), &prologue_memory(p), stored)?;
            (stored, None)
        }
        _ => (input, prologue),
    };
    let join = prologue.and_then(|p| p.join);
    let splits_on_store = match epilogue {
        Epilogue::Statistics(s) => Some(s.splits),
        Epilogue::Normalise(n) => Some(n.splits),
        _ => None,
    };
    let mut job = Job {
        stream,
        op,
        direction: Direction::Forward,
        name: OP,
        dtype: input.dtype(),
        filter,
        workspace,
        memory: Memory::default(),
        params: Params::zeroed(),
        on_load: match (prologue, join) {
            (None, _) => OnLoad::Plain,
            (_, None) => OnLoad::Affine,
            _ => OnLoad::Join,
        },
        splits: common_splits(OP, op, [prologue.map(|p| p.splits), splits_on_store])?,
        sums: 0,
        extra_tensors: 0,
        launches_before: usize::from(stored.is_some()),
        has_even_pitches: true,
        may_pair: prologue.is_none() && input.pitch_c() == 4,
        sources: [None, join.map(|join| join.residual)],
    };
    job.gather(input, output);
    if let Some(p) = prologue {
        job.params.prologue = prologue_params(p);
        prologue_memory(p).into_iter().for_each(|slice| _ = job.memory.read(slice));
        join.and_then(|j| j.output).map(|output| job.memory.write(output.memory()));
        job.look_at(join.map(|j| j.residual));
        job.look_at(join.and_then(|j| j.output));
    }
    fill_epilogue(&mut job, epilogue);
    job.run()
}

fn fill_epilogue<'a>(job: &mut Job<'a>, epilogue: &Epilogue<'a>) {
    let e = &mut job.params.epilogue;
    match epilogue {
        Epilogue::None => {}
        Epilogue::Statistics(s) => {
            job.sums = 3;
            let memory = &mut job.memory;
            e.statistics = StatisticsTables {
                gamma: memory.read_singly(s.gamma),
                beta: memory.read_singly(s.beta),
                stats: memory.write_singly(s.stats),
                scale_shift: memory.write_singly(s.scale_shift),
                running_mean: s.running.map_or(0, |running| memory.write_singly(running.mean)),
                running_var: s.running.map_or(0, |running| memory.write_singly(running.var)),
                skip: s.skip.map_or(0, |flag| memory.write_singly(flag)),
                eps: s.eps,
                momentum: s.running.map_or(0.0, |running| running.momentum),
                channels: job.op.c_out as i32,
                splits: job.op.batch(s.splits).splits_of(job.op.input.n) as i32,
            };
        }
        Epilogue::Evaluation(v) => {
            e.bias = v.bias.map_or(0, |b| job.memory.read(b));
            (e.add, e.add_pitch) = placed(v.residual);
            v.residual.map(|residual| job.memory.read(residual.memory()));
            e.has_relu = i32::from(v.relu);
            job.extra_tensors = usize::from(v.residual.is_some());
            job.look_at(v.residual);
        }
        Epilogue::Normalise(n) => {
            e.table = job.memory.read(n.scale_shift);
            e.add_table = n.residual_scale_shift.map_or(0, |table| job.memory.read(table));
            (e.add, e.add_pitch) = placed(n.residual);
            n.residual.map(|residual| job.memory.read(residual.memory()));
            e.has_relu = i32::from(n.relu);
            job.extra_tensors = usize::from(n.residual.is_some());
            job.look_at(n.residual);
        }
    }
}

/// `conv3d::grad_input_fused` on kernels; the shapes are checked.
#[allow(clippy::too_many_arguments)]
pub(super) fn grad_input(
    stream: &Stream,
    op: &Conv3d,
    grad_output: &Tensor,
    table: Option<&GradTable<'_>>,
    filter: &Slice,
    epilogue: &GradEpilogue<'_>,
    grad_input: &Tensor,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "conv3d grad_input";
    let stored = table.and_then(|t| t.store_dy).filter(|_| !plan::reads_each_position_once(op));
    let (grad_output, table) = match (table, stored) {
        (Some(t), Some(stored)) => {
            let reads = [t.table, t.y.memory()];
            store_prologue(stream, OP, grad_output, &table_params(t), op.batch(t.splits), &reads, stored)?;
            (stored, None)
        }
        _ => (grad_output, table),
    };
    let needs_splits = !epilogue.norms.is_empty() || matches!(epilogue.mask, Mask::Recomputed { .. });
    let mut job = Job {
        stream,
        op,
        direction: Direction::GradInput,
        name: OP,
        dtype: grad_output.dtype(),
        filter,
        workspace,
        memory: Memory::default(),
        params: Params::zeroed(),
        on_load: if table.is_some() { OnLoad::Join } else { OnLoad::Plain },
        splits: common_splits(OP, op, [table.map(|t| t.splits), needs_splits.then_some(epilogue.splits)])?,
        sums: if epilogue.norms.is_empty() { 0 } else { 1 + epilogue.norms.len() },
        extra_tensors: 0,
        launches_before: usize::from(stored.is_some()),
        has_even_pitches: true,
        may_pair: false,
        sources: [None, table.map(|t| t.y)],
    };
    job.gather(grad_output, grad_input);
    if let Some(t) = table {
        job.params.prologue = table_params(t);
        job.memory.read(t.table);
        job.memory.read(t.y.memory());
        t.store_dy.map(|dy| job.memory.write(dy.memory()));
        job.look_at(Some(t.y));
        job.look_at(t.store_dy);
    }
    fill_grad_epilogue(&mut job, epilogue, grad_input);
    job.run()
}

pub(super) fn fill_grad_epilogue<'a>(job: &mut Job<'a>, epilogue: &GradEpilogue<'a>, grad_input: &Tensor) {
    let e = &mut job.params.epilogue;
    (e.add, e.add_pitch) = placed(epilogue.add);
    // The same thread reads an element and then writes it: the result may replace what is added.
    let other = epilogue.add.filter(|add| !crate::ops::check::same_memory(add, grad_input));
    other.map(|other| job.memory.read(other.memory()));
    let mask = match epilogue.mask {
        Mask::None => None,
        Mask::Output(output) => Some(output),
        Mask::Recomputed { scale_shift, y } => {
            e.mask_table = job.memory.read(scale_shift);
            Some(y)
        }
    };
    (e.mask, e.mask_pitch) = placed(mask);
    mask.map(|mask| job.memory.read(mask.memory()));
    e.num_norms = epilogue.norms.len() as i32;
    for (to, norm) in e.norms.iter_mut().zip(epilogue.norms) {
        *to = GradNormParams {
            y: job.memory.read(norm.y.memory()),
            to: GradientTables {
                stats: job.memory.read(norm.stats),
                gamma: job.memory.read_singly(norm.gamma),
                grad_table: job.memory.write_singly(norm.grad_table),
                grad_gamma: job.memory.write_singly(norm.grad_gamma),
                grad_beta: job.memory.write_singly(norm.grad_beta),
                channels: job.op.input.c as i32,
                is_centred: 0,
                accumulates: job.op.part.is_some_and(|part| part.accumulates()).into(),
                reserved: 0,
            },
            y_pitch: norm.y.pitch_c() as i32,
            reserved: 0,
        };
    }
    for tensor in [epilogue.add, mask].into_iter().chain(epilogue.norms.iter().map(|norm| Some(norm.y))) {
        job.look_at(tensor);
        job.extra_tensors += usize::from(tensor.is_some());
    }
}

fn prologue_params(p: &Prologue<'_>) -> PrologueParams {
    let (second, second_pitch) = placed(p.join.map(|j| j.residual));
    let (store, store_pitch) = placed(p.join.and_then(|j| j.output));
    PrologueParams {
        table: p.scale_shift.address(),
        second,
        second_table: address(p.join.and_then(|j| j.residual_scale_shift)),
        store,
        table_rows: 2,
        channels: (p.scale_shift.len() / p.splits / 2) as i32,
        second_pitch,
        store_pitch,
        has_relu: 1,
        second_first: 0,
    }
}

fn prologue_memory<'a>(p: &Prologue<'a>) -> Vec<&'a Slice> {
    let join = p.join.iter().flat_map(|j| [Some(j.residual.memory()), j.residual_scale_shift]);
    join.flatten().chain([p.scale_shift]).collect()
}

fn table_params(t: &GradTable<'_>) -> PrologueParams {
    let (second, second_pitch) = placed(Some(t.y));
    let (store, store_pitch) = placed(t.store_dy);
    PrologueParams {
        table: t.table.address(),
        second,
        second_table: 0,
        store,
        table_rows: 3,
        channels: (t.table.len() / t.splits / 3) as i32,
        second_pitch,
        store_pitch,
        has_relu: 0,
        second_first: 0,
    }
}

/// Stores what a prologue makes of `source`, for a convolution that cannot do so on its way.
fn store_prologue(
    stream: &Stream,
    op: &'static str,
    source: &Tensor,
    prologue: &PrologueParams,
    batch: Part,
    reads: &[&Slice],
    stored: &Tensor,
) -> Result<()> {
    let shape = source.shape();
    let per_clip = shape.t * shape.h * shape.w;
    let params = PrologueOnlyParams {
        source: source.memory().address(),
        prologue: *prologue,
        positions: shape.num_positions() as u64,
        positions_per_split: (batch.clips_per_split() * per_clip) as u64,
        source_pitch: source.pitch_c() as i32,
        reserved: 0,
    };
    let reads: Vec<&Slice> = reads.iter().copied().chain([source.memory()]).collect();
    let pitches = [source.pitch_c(), prologue.second_pitch as usize, stored.pitch_c(), shape.c];
    let is_vector = pitches.iter().all(|p| p.is_multiple_of(8))
        && reads.iter().chain([&stored.memory()]).all(|s| s.address().is_multiple_of(16));
    let dtype = if source.dtype() == DType::Bf16 { "bf16" } else { "f16" };
    let kernel = format!("conv3d_prologue_{}_{dtype}", if is_vector { "vector8" } else { "scalar" });
    let threads = shape.num_positions() * shape.c.div_ceil(if is_vector { 8 } else { 1 });
    let blocks = threads.div_ceil(THREADS as usize).min(num_sms(stream) * 16);
    let config = LaunchConfig { grid: [blocks as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
    launch::run(stream, op, &kernel, config, &reads, &[stored.memory()], &params)
}

/// Bytes of workspace that serve every call with these sizes: any on-load form, any alignment.
pub(super) fn workspace_bytes(stream: &Stream, op: &Conv3d, direction: Direction, splits: usize, sums: usize) -> usize {
    let method = method::of("conv3d", stream).unwrap_or_default();
    let bytes_of = |op: &Conv3d, output: ActivationShape, on_load: OnLoad, is_aligned: bool, method: Method| {
        let request = Request {
            op: *op,
            output,
            direction,
            dtype: DType::Bf16,
            on_load,
            splits: splits.max(1),
            sums,
            extra_tensors: 0,
            launches_before: 0,
            is_aligned,
            num_sms: num_sms(stream),
            method,
        };
        plan::plan("conv3d", &request).map_or(0, |plan| plan.workspace_bytes)
    };
    let bytes = |op: &Conv3d, output: ActivationShape, on_load: OnLoad, is_aligned: bool| {
        autotune::methods(method).into_iter().map(|m| bytes_of(op, output, on_load, is_aligned, m)).max().unwrap_or(0)
    };
    let loads = [OnLoad::Plain, OnLoad::Affine, OnLoad::Join];
    let plain = loads.map(|load| [false, true].map(|is_aligned| bytes(op, op.output(), load, is_aligned)));
    let pairs = plan::pairs(op)
        .filter(|_| direction == Direction::Forward)
        .map_or(0, |pairs| pairs.packed_filter(bytes(&pairs.op, op.output(), OnLoad::Plain, true)).end);
    plain.into_iter().flatten().fold(pairs, usize::max)
}
