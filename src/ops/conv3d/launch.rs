//! Fills what the kernels take and starts them, on the GPU and on the emulator.

use bytemuck::Zeroable;

use super::fused::{Checker, Epilogue, GradEpilogue, GradTable, Mask, Prologue};
use super::params::{
    ConvAxis, ConvGather, FastDiv, GradNormParams, PackPairsParams, Params, PrologueOnlyParams, PrologueParams,
    address, placed,
};
use super::plan::{self, OnLoad, Pairs, Plan, Request};
use super::{Conv3d, Direction};
use crate::device::{DType, Device, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// Threads of a block (`THREADS` in the kernels).
const THREADS: u32 = 256;
/// Multiprocessors that the emulator is planned for.
const SIMT_SMS: usize = 16;

pub(super) fn num_sms(stream: &Stream) -> usize {
    match stream.device() {
        Device::Cuda(device) => device.gpu().num_sms,
        _ => SIMT_SMS,
    }
}

/// All memory that a launch reads and writes.
#[derive(Default)]
struct Memory<'a> {
    reads: Vec<&'a Slice>,
    writes: Vec<&'a Slice>,
}

impl<'a> Memory<'a> {
    fn read(&mut self, slice: &'a Slice) -> u64 {
        self.reads.push(slice);
        slice.address()
    }

    fn write(&mut self, slice: &'a Slice) -> u64 {
        self.writes.push(slice);
        slice.address()
    }

    /// Whether 16-byte vectors can be used: all addresses of this launch are multiples of 16.
    fn is_aligned(&self) -> bool {
        self.reads.iter().chain(&self.writes).all(|s| s.address().is_multiple_of(16))
    }
}

fn pitches_are_even(tensors: &[Option<&Tensor>]) -> bool {
    tensors.iter().flatten().all(|t| t.pitch_c().is_multiple_of(8))
}

/// A tensor's dtype, if there are kernels for it.
pub(super) fn checker(op: &'static str, tensor: &Tensor) -> Result<Checker> {
    match tensor.dtype() {
        dtype @ (DType::Bf16 | DType::F16) => Ok(Checker { op, dtype }),
        other => {
            Err(Error::unsupported(op, format!("the kernels take Bf16 or F16, got {other:?}; use the cpu executor")))
        }
    }
}

/// One convolution: the arrays, and what happens on load and on store.
struct Job<'a> {
    stream: &'a Stream,
    op: &'a Conv3d,
    direction: Direction,
    name: &'static str,
    dtype: DType,
    filter: &'a Slice,
    workspace: &'a Slice,
    memory: Memory<'a>,
    params: Params,
    on_load: OnLoad,
    splits: usize,
    sums: usize,
    extra_tensors: usize,
    has_even_pitches: bool,
    /// Whether the input may be read as pairs of pixels.
    may_pair: bool,
}

/// The one number of splits of a call: what is said twice must agree.
fn common_splits(op: &'static str, said: [Option<usize>; 2]) -> Result<usize> {
    match said {
        [Some(a), Some(b)] if a != b => {
            Err(Error::shape(op, format!("splits on load and on store differ: {a} and {b}")))
        }
        [a, b] => Ok(a.or(b).unwrap_or(1)),
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
    let join = prologue.and_then(|p| p.join);
    if let (Some(p), Some(stored)) = (prologue, join.and_then(|j| j.output))
        && !plan::reads_each_position_once(op)
    {
        store_prologue(stream, OP, input, &prologue_params(p), p.splits, &prologue_memory(p), stored)?;
        return forward(stream, op, stored, None, filter, epilogue, output, workspace);
    }
    let splits_on_store = match epilogue {
        Epilogue::Statistics(s) => Some(s.splits),
        _ => None,
    };
    let mut memory = Memory::default();
    let mut params = Params::zeroed();
    (params.source, params.source_pitch) = (memory.read(input.memory()), input.pitch_c() as i32);
    (params.target, params.target_pitch) = (memory.write(output.memory()), output.pitch_c() as i32);
    let mut tensors = vec![Some(input), Some(output)];
    if let Some(p) = prologue {
        params.prologue = prologue_params(p);
        memory.reads.extend(prologue_memory(p));
        memory.writes.extend(join.and_then(|j| j.output).map(Tensor::memory));
        tensors.extend([join.map(|j| j.residual), join.and_then(|j| j.output)]);
    }
    let mut job = Job {
        stream,
        op,
        direction: Direction::Forward,
        name: OP,
        dtype: input.dtype(),
        filter,
        workspace,
        memory,
        params,
        on_load: match (prologue, join) {
            (None, _) => OnLoad::Plain,
            (_, None) => OnLoad::Affine,
            _ => OnLoad::Join,
        },
        splits: common_splits(OP, [prologue.map(|p| p.splits), splits_on_store])?,
        sums: 0,
        extra_tensors: 0,
        has_even_pitches: true,
        may_pair: prologue.is_none() && input.pitch_c() == 4,
    };
    let e = &mut job.params.epilogue;
    match epilogue {
        Epilogue::None => {}
        Epilogue::Statistics(s) => {
            job.sums = 3;
            (e.gamma, e.beta) = (job.memory.read(s.gamma), job.memory.read(s.beta));
            (e.stats, e.scale_shift) = (job.memory.write(s.stats), job.memory.write(s.scale_shift));
            if let Some(running) = s.running {
                (e.running_mean, e.running_var) = (job.memory.write(running.mean), job.memory.write(running.var));
                e.momentum = running.momentum;
            }
            e.eps = s.eps;
            // The flag is one number that many kernels set: it overlaps nothing, and its alignment does not matter.
            e.skip = address(s.skip);
        }
        Epilogue::Evaluation(v) => {
            e.bias = v.bias.map_or(0, |b| job.memory.read(b));
            (e.add, e.add_pitch) = placed(v.residual);
            job.memory.reads.extend(v.residual.map(Tensor::memory));
            tensors.push(v.residual);
            e.has_relu = i32::from(v.relu);
            job.extra_tensors = usize::from(v.residual.is_some());
        }
    }
    // Of pixels in pairs the pitch is that of a pair.
    let first = if job.may_pair { 1 } else { 0 };
    job.has_even_pitches = pitches_are_even(&tensors[first..]);
    job.run()
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
    if let Some(t) = table
        && let Some(stored) = t.store_dy
        && !plan::reads_each_position_once(op)
    {
        let read = [t.table, t.y.memory()];
        store_prologue(stream, OP, grad_output, &table_params(t), t.splits, &read, stored)?;
        return self::grad_input(stream, op, stored, None, filter, epilogue, grad_input, workspace);
    }
    let needs_splits = !epilogue.norms.is_empty() || matches!(epilogue.mask, Mask::Recomputed { .. });
    let mut memory = Memory::default();
    let mut params = Params::zeroed();
    (params.source, params.source_pitch) = (memory.read(grad_output.memory()), grad_output.pitch_c() as i32);
    (params.target, params.target_pitch) = (memory.write(grad_input.memory()), grad_input.pitch_c() as i32);
    let mut tensors = vec![Some(grad_output), Some(grad_input), epilogue.add];
    if let Some(t) = table {
        params.prologue = table_params(t);
        memory.reads.extend([t.table, t.y.memory()]);
        memory.writes.extend(t.store_dy.map(Tensor::memory));
        tensors.extend([Some(t.y), t.store_dy]);
    }
    let e = &mut params.epilogue;
    (e.add, e.add_pitch) = placed(epilogue.add);
    // The same thread reads an element and then writes it: the result may replace what is added.
    let is_in_place = epilogue.add.is_some_and(|add| crate::ops::check::same_memory(add, grad_input));
    memory.reads.extend(epilogue.add.filter(|_| !is_in_place).map(Tensor::memory));
    match epilogue.mask {
        Mask::None => {}
        Mask::Output(output) => {
            memory.read(output.memory());
            (e.mask, e.mask_pitch) = placed(Some(output));
            tensors.push(Some(output));
        }
        Mask::Recomputed { scale_shift, y } => {
            memory.read(y.memory());
            (e.mask, e.mask_pitch) = placed(Some(y));
            e.mask_table = memory.read(scale_shift);
            tensors.push(Some(y));
        }
    }
    e.num_norms = epilogue.norms.len() as i32;
    for (to, norm) in e.norms.iter_mut().zip(epilogue.norms) {
        *to = GradNormParams {
            y: memory.read(norm.y.memory()),
            stats: memory.read(norm.stats),
            gamma: memory.read(norm.gamma),
            grad_table: memory.write(norm.grad_table),
            grad_gamma: memory.write(norm.grad_gamma),
            grad_beta: memory.write(norm.grad_beta),
            y_pitch: norm.y.pitch_c() as i32,
            reserved: 0,
        };
        tensors.push(Some(norm.y));
    }
    let has_mask = !matches!(epilogue.mask, Mask::None);
    Job {
        stream,
        op,
        direction: Direction::GradInput,
        name: OP,
        dtype: grad_output.dtype(),
        filter,
        workspace,
        memory,
        params,
        on_load: if table.is_some() { OnLoad::Join } else { OnLoad::Plain },
        splits: common_splits(OP, [table.map(|t| t.splits), needs_splits.then_some(epilogue.splits)])?,
        sums: if epilogue.norms.is_empty() { 0 } else { 1 + epilogue.norms.len() },
        extra_tensors: usize::from(epilogue.add.is_some()) + usize::from(has_mask) + epilogue.norms.len(),
        has_even_pitches: pitches_are_even(&tensors),
        may_pair: false,
    }
    .run()
}

impl Job<'_> {
    fn run(mut self) -> Result<()> {
        self.memory.reads.push(self.filter);
        let mut request = Request {
            op: *self.op,
            output: self.op.output(),
            direction: self.direction,
            dtype: self.dtype,
            on_load: self.on_load,
            splits: self.splits,
            sums: self.sums,
            extra_tensors: self.extra_tensors,
            is_aligned: self.has_even_pitches && self.memory.is_aligned(),
            num_sms: num_sms(self.stream),
        };
        let pairs = plan::pairs(self.op).filter(|_| self.may_pair && request.is_aligned);
        request.is_aligned &= !self.may_pair || pairs.is_some();
        request.op = pairs.map_or(*self.op, |pairs| pairs.op);
        let plan = plan::plan(self.name, &request)?;
        plan.print(&request);
        let packed_at = plan.workspace_bytes.next_multiple_of(256);
        let packed_bytes = pairs.map_or(0, |pairs| packed_at - plan.workspace_bytes + 2 * pairs.op.filter_len());
        let needed = plan.workspace_bytes + packed_bytes;
        if self.workspace.len_bytes() < needed {
            let got = self.workspace.len_bytes();
            return Err(Error::shape(self.name, format!("workspace must have {needed} bytes, got {got}")));
        }
        let base = self.workspace.address();
        if needed > 0 {
            if !base.is_multiple_of(16) {
                return Err(Error::shape(self.name, "workspace must begin at a multiple of 16 bytes"));
            }
            self.memory.writes.push(self.workspace);
            self.params.tickets = base;
            self.params.partials = base + plan.partials_at as u64;
            self.params.group_partials = base + plan.group_partials_at as u64;
            self.params.slice_sums = base + plan.slice_sums_at as u64;
        }
        self.params.filter = self.filter.address();
        if let Some(pairs) = pairs {
            self.params.filter = base + packed_at as u64;
            self.params.source_pitch = 8;
            self.pack(&pairs)?;
        }
        self.fill(&request, &plan);
        let config = LaunchConfig { grid: plan.grid(), block: [THREADS, 1, 1], shared_bytes: plan.shared_bytes as u32 };
        launch::run(self.stream, self.name, &plan.kernel, config, &self.memory.reads, &self.memory.writes, &self.params)
    }

    /// Writes the filter to where `params.filter` says, in pairs of taps.
    fn pack(&self, pairs: &Pairs) -> Result<()> {
        let [ft, fh, num_pairs] = pairs.op.filter;
        let params = PackPairsParams {
            from: self.filter.address(),
            to: self.params.filter,
            rows: (self.op.c_out * ft * fh) as i32,
            taps: self.op.filter[2] as i32,
            pairs: num_pairs as i32,
            first: pairs.first_tap,
        };
        let threads = (self.op.c_out * ft * fh * num_pairs * 2) as u32;
        let config = LaunchConfig { grid: [threads.div_ceil(256), 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        let kernel = "conv3d_pack_pairs_b16";
        launch::run(self.stream, self.name, kernel, config, &[self.filter], &[self.workspace], &params)
    }

    fn fill(&mut self, request: &Request, plan: &Plan) {
        let p = &mut self.params;
        let (source_channels, target_channels) = request.channels();
        p.gather = ConvGather {
            axes: ConvAxis::of(&request.op, request.output),
            n: self.op.input.n as i32,
            clips_per_split: plan.clips_per_split as i32,
            splits: plan.splits_used as i32,
            is_grad: i32::from(self.direction == Direction::GradInput),
            boxes: plan.boxes.map(|size| size as i32),
            reserved: 0,
        };
        p.source_chunks = FastDiv::by(source_channels.div_ceil(8) as u32);
        (p.source_channels, p.target_channels) = (source_channels as i32, target_channels as i32);
        p.columns = plan.columns as i32;
        p.tiles_per_split = plan.tiles_per_split as u32;
        (p.group_tiles, p.groups_per_split) = (plan.group_tiles as u32, plan.groups_per_split as u32);
        (p.slices, p.groups) = (plan.slices as i32, self.op.groups as i32);
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
        reserved: 0,
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
        reserved: 0,
    }
}

/// Stores what a prologue makes of `source`, for a convolution that cannot do so on its way.
fn store_prologue(
    stream: &Stream,
    op: &'static str,
    source: &Tensor,
    prologue: &PrologueParams,
    splits: usize,
    reads: &[&Slice],
    stored: &Tensor,
) -> Result<()> {
    let shape = source.shape();
    let per_clip = shape.t * shape.h * shape.w;
    let params = PrologueOnlyParams {
        source: source.memory().address(),
        prologue: *prologue,
        positions: shape.num_positions() as u64,
        positions_per_split: (shape.n.div_ceil(splits) * per_clip) as u64,
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
    let bytes = |op: &Conv3d, output: ActivationShape, on_load: OnLoad, is_aligned: bool| {
        let request = Request {
            op: *op,
            output,
            direction,
            dtype: DType::Bf16,
            on_load,
            splits: splits.max(1),
            sums,
            extra_tensors: 0,
            is_aligned,
            num_sms: num_sms(stream),
        };
        plan::plan("conv3d", &request).map_or(0, |plan| plan.workspace_bytes)
    };
    let loads = [OnLoad::Plain, OnLoad::Affine, OnLoad::Join];
    let plain = loads.map(|load| [false, true].map(|is_aligned| bytes(op, op.output(), load, is_aligned)));
    let pairs = plan::pairs(op).filter(|_| direction == Direction::Forward).map_or(0, |pairs| {
        let bytes = bytes(&pairs.op, op.output(), OnLoad::Plain, true);
        bytes.next_multiple_of(256) + 2 * pairs.op.filter_len()
    });
    plain.into_iter().flatten().fold(pairs, usize::max)
}
