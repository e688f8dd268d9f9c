//! grad_filter on tensor cores: checks what the kernels take, plans and launches.

mod geometry;
mod params;
mod plan;
mod tiling;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use super::fused::{GradTable, Prologue};
use super::params::PrologueParams;
use super::{Conv3d, check};
use crate::device::{DType, Device, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;
use crate::ops::pool3d::{Pool3d, PoolKind};
use params::{AxisParams, Params, PoolParams, RowLayout};
pub use plan::Limits;
use plan::{Plan, SUM_WARPS, Sources, Variant, Windows};

const OP: &str = "conv3d grad_filter";

/// What grad_filter reads: the two activations, and how they are changed on their way in.
#[derive(Clone, Copy, Debug)]
pub struct GradFilterSources<'a> {
    /// The convolution's input, or what its [`Prologue`] makes the input from.
    pub input: &'a Tensor,
    /// As in forward; [`Join::output`](super::Join::output) is not written.
    pub prologue: Option<Prologue<'a>>,
    /// The gradient of the convolution's output, or `g` of the [`GradTable`].
    pub grad_output: &'a Tensor,
    /// The gradient is that of a batch norm; `store_dy` is not written.
    pub grad_table: Option<GradTable<'a>>,
    /// `g` comes through a pool, of whose output `grad_output` is the gradient. Needs a `grad_table`: see [`gathers_through`].
    ///
    /// [`gathers_through`]: super::gathers_through
    pub pool: Option<GradPool<'a>>,
}

/// The max pool over rows and columns that follows the batch norm and the ReLU of a stem. Each position gathers its gradient from the
/// windows that it won, where the ReLU was open: `g` is in memory nowhere.
#[derive(Clone, Copy, Debug)]
pub struct GradPool<'a> {
    /// Its input is the convolution's output.
    pub op: Pool3d,
    /// As [`forward_normalised`](crate::ops::pool3d::forward_normalised) wrote them, u8.
    pub indices: &'a Slice,
    /// `[splits][2][c_out]`.
    pub scale_shift: &'a Slice,
}

thread_local! {
    static FORCED: Cell<Option<Limits>> = const { Cell::new(None) };
}

/// Runs `work`; this thread's plans are made within `limits`. For tests of every variant.
#[doc(hidden)]
pub fn with_grad_filter_limits<O>(limits: Limits, work: impl FnOnce() -> O) -> O {
    /// Puts the limits back, also after a panic.
    struct Restore(Option<Limits>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(limits)));
    work()
}

/// The emulator is taken to have few SMs, so that small tests have parts of several tiles. Without kernels plans are made to look at:
/// those of an H100.
fn limits(device: &Device) -> Limits {
    FORCED.get().unwrap_or_else(|| match device {
        Device::Cuda(cuda) => Limits::of(cuda.gpu().num_sms, cuda.gpu().max_shared_bytes),
        Device::Simt => Limits::of(3, 99 << 10),
        Device::Cpu => Limits::of(132, 227 << 10),
    })
}

/// Whether grad_input had better store the gradient that it reads by a [`GradTable`]: see [`GradTable::store_dy`].
pub(super) fn prefers_stored_grad(device: &Device, op: &Conv3d, splits: usize, has_prologue: bool) -> bool {
    let sources = Sources {
        splits: splits.min(op.input.n),
        num_input: 1,
        num_grad: 2,
        has_input_prologue: has_prologue,
        has_grad_prologue: true,
        pixel_pairs: false,
        has_bias: false,
        pool: None,
    };
    let gain_us = plan::gain_of_stored_grad_us(op, sources, limits(device));
    if prints_plans() {
        eprintln!("{OP}: {op:?}, {splits} splits: a stored gradient gains {gain_us:.1?} us");
    }
    gain_us.is_some_and(|us| us > 0.0)
}

/// Other ops' tickets stay as they are: this one needs none.
pub(super) fn workspace_bytes(device: &Device, op: &Conv3d, splits: usize) -> usize {
    TICKET_BYTES + plan::workspace_bytes(op, splits.max(1), limits(device))
}

/// Whether there is a kernel for a convolution and the pool behind it: a max over at most 256 rows and columns, 8 channels at a time.
pub(super) fn gathers_through(op: &Conv3d, pool: &Pool3d) -> bool {
    let is_flat = pool.kernel[0] == 1 && pool.stride[0] == 1 && pool.padding[0] == 0;
    let is_small = pool.kernel.iter().product::<usize>() <= 256;
    let fits = pool.kind == PoolKind::Max && pool.input == op.output() && pool.check().is_ok();
    let has_chunks = op.groups == 1 && op.c_out.is_multiple_of(8) && geometry::Geometry::keeps_rows(op);
    is_flat && is_small && fits && has_chunks
}

fn prints_plans() -> bool {
    std::env::var_os("VCYCLE_PRINT_PLANS").is_some_and(|v| v == "1")
}

/// Plans are pure and asked for at each launch.
fn planned(op: &Conv3d, sources: Sources, limits: Limits) -> Result<Plan> {
    type Plans = Mutex<HashMap<(Conv3d, Sources, Limits), Plan>>;
    static PLANS: OnceLock<Plans> = OnceLock::new();
    let mut plans = PLANS.get_or_init(Plans::default).lock().unwrap_or_else(|p| p.into_inner());
    if let Some(plan) = plans.get(&(*op, sources, limits)) {
        return Ok(plan.clone());
    }
    let too_large = || Error::unsupported(OP, format!("no tile of it fits shared memory: {op:?}"));
    let plan = plan::plan(op, sources, limits).ok_or_else(too_large)?;
    launch::print_plan(|| format!("{OP}: {op:?}, {sources:?}: {plan}"));
    plans.insert((*op, sources, limits), plan.clone());
    Ok(plan)
}

/// Launches the kernels. Shapes are checked.
pub(super) fn run(
    stream: &Stream,
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    grad_filter: &Slice,
    grad_bias: Option<&Slice>,
    workspace: &Slice,
) -> Result<()> {
    check_limits(op, from)?;
    if from.pool.is_some() && grad_bias.is_some() {
        return Err(Error::unsupported(OP, "grad_bias where the gradient comes through a pool"));
    }
    if !workspace.address().is_multiple_of(16) {
        let message = format!("workspace must begin at a multiple of 16, got {:#x}", workspace.address());
        return Err(Error::shape(OP, message));
    }
    let input = Operand::of_input(op, from);
    let grad = Operand::of_grad(op, from);
    let sources = Sources {
        splits: splits_of(op, from),
        num_input: input.num_tensors(),
        num_grad: grad.num_tensors(),
        has_input_prologue: from.prologue.is_some(),
        has_grad_prologue: from.grad_table.is_some(),
        pixel_pairs: from.prologue.is_none() && input.granule >= 8 && geometry::Geometry::has_pixel_pairs(op),
        has_bias: grad_bias.is_some(),
        pool: from.pool.map(|pool| Windows {
            kernel: [pool.op.kernel[1], pool.op.kernel[2]],
            stride: [pool.op.stride[1], pool.op.stride[2]],
        }),
    };
    let plan = planned(op, sources, limits(stream.device()))?;
    let mut params = params(op, &plan, &input, &grad);
    if let Some(pool) = &from.pool {
        params.pool = pool_params(pool, &plan);
    }
    params.grad_filter = grad_filter.address();
    params.grad_bias = grad_bias.map_or(0, Slice::address);
    if plan.cut.has_partials {
        params.partials = workspace.address() + TICKET_BYTES as u64;
    }
    let reads: Vec<&Slice> = input.memory.iter().chain(&grad.memory).copied().collect();
    let results: Vec<&Slice> = [grad_filter].into_iter().chain(grad_bias).collect();
    let writes: Vec<&Slice> = results.iter().copied().chain([workspace]).collect();
    let block = [32 * plan.blocking.num_warps() as u32, 1, 1];
    let config = LaunchConfig {
        grid: [plan.num_blocks as u32, plan.cut.parts_per_split as u32, plan.cut.splits() as u32],
        block,
        shared_bytes: plan.tiling.shared_bytes as u32,
    };
    let kernel = match from.pool {
        Some(_) => Variant::pool_kernel(from.input.dtype()),
        None => plan.blocking.variant.kernel(from.input.dtype()),
    };
    launch::run(stream, OP, kernel, config, &reads, &writes, &params)?;
    if !plan.cut.has_partials {
        return Ok(());
    }
    let grid = [plan.num_blocks as u32, plan.sum_blocks() as u32, 1];
    let config = LaunchConfig { grid, block: [32 * SUM_WARPS as u32, 1, 1], shared_bytes: 512 * SUM_WARPS as u32 };
    launch::run(stream, OP, "conv3d_grad_filter_sum_f32", config, &[workspace], &results, &params)
}

pub(super) fn splits_of(op: &Conv3d, from: &GradFilterSources<'_>) -> usize {
    let said = from.prologue.map(|p| p.splits).or(from.grad_table.map(|t| t.splits));
    op.part.map_or(said.unwrap_or(1), |part| part.splits_of(op.input.n)).min(op.input.n)
}

/// What the kernels' 32-bit fields hold.
fn check_limits(op: &Conv3d, from: &GradFilterSources<'_>) -> Result<()> {
    let (i, o) = (op.input, op.output());
    let clip_positions = |s: crate::shape::ActivationShape| s.n * s.t * s.h * s.w;
    let pitches = [from.input, from.grad_output].map(Tensor::pitch_c);
    let largest = [clip_positions(i), clip_positions(o), op.filter_len(), pitches[0], pitches[1]];
    if largest.iter().any(|&size| size > i32::MAX as usize) || op.padding.iter().any(|&p| p > 1 << 24) {
        let message = format!("positions, pitches and the filter must be below 2^31, padding below 2^24, got {op:?}");
        return Err(Error::unsupported(OP, message));
    }
    if i.h.max(o.h) > 0x7fff {
        return Err(Error::unsupported(OP, format!("heights must be below 2^15, got {} and {}", i.h, o.h)));
    }
    Ok(())
}

/// One of the two activations, with what its prologue reads.
struct Operand<'a> {
    memory: Vec<&'a Slice>,
    pitch: usize,
    prologue: PrologueParams,
    /// Bytes that can be copied at once.
    granule: usize,
    /// Its first tensor is that of a pool's output.
    is_pooled: bool,
}

impl<'a> Operand<'a> {
    fn of_input(op: &Conv3d, from: &GradFilterSources<'a>) -> Operand<'a> {
        let mut operand = Operand::new(from.input);
        if let Some(p) = &from.prologue {
            operand.add_table(p.scale_shift, 2, op.input.c);
            operand.prologue.has_relu = 1;
            if let Some(join) = &p.join {
                operand.add_second(join.residual);
                if let Some(table) = join.residual_scale_shift {
                    operand.prologue.second_table = table.address();
                    operand.memory.push(table);
                }
            }
        }
        operand.limit_granule(op.input.c / op.groups, op.groups);
        operand
    }

    fn of_grad(op: &Conv3d, from: &GradFilterSources<'a>) -> Operand<'a> {
        let mut operand = Operand::new(from.grad_output);
        if let Some(table) = &from.grad_table {
            operand.add_table(table.table, 3, op.c_out);
            operand.add_second(table.y);
        }
        operand.limit_granule(op.c_out / op.groups, op.groups);
        if let Some(pool) = &from.pool {
            operand.memory.extend([pool.indices, pool.scale_shift]);
            operand.is_pooled = true;
        }
        operand
    }

    fn new(tensor: &'a Tensor) -> Operand<'a> {
        Operand {
            memory: vec![tensor.memory()],
            pitch: tensor.pitch_c(),
            prologue: bytemuck::Zeroable::zeroed(),
            granule: granule_of(tensor),
            is_pooled: false,
        }
    }

    fn add_table(&mut self, table: &'a Slice, rows: i32, channels: usize) {
        self.prologue.table = table.address();
        self.prologue.table_rows = rows;
        self.prologue.channels = channels as i32;
        self.memory.push(table);
    }

    fn add_second(&mut self, tensor: &'a Tensor) {
        self.prologue.second = tensor.memory().address();
        self.prologue.second_pitch = tensor.pitch_c() as i32;
        self.granule = self.granule.min(granule_of(tensor));
        self.memory.push(tensor.memory());
    }

    fn num_tensors(&self) -> usize {
        if self.prologue.second == 0 || self.is_pooled { 1 } else { 2 }
    }

    /// Groups begin at multiples of their channels.
    fn limit_granule(&mut self, channels: usize, groups: usize) {
        if groups > 1 {
            self.granule = self.granule.min(granule(2 * channels as u64));
        }
    }
}

/// The largest of 16, 8 and 2 that divides `bytes`.
fn granule(bytes: u64) -> usize {
    if bytes.is_multiple_of(16) {
        16
    } else if bytes.is_multiple_of(8) {
        8
    } else {
        2
    }
}

fn granule_of(tensor: &Tensor) -> usize {
    granule(tensor.memory().address()).min(granule(2 * tensor.pitch_c() as u64))
}

fn pool_params(pool: &GradPool<'_>, plan: &Plan) -> PoolParams {
    let (op, out, t) = (&pool.op, pool.op.output(), &plan.tiling);
    let along = |sizes: [usize; 3]| [sizes[1] as i32, sizes[2] as i32];
    PoolParams {
        indices: pool.indices.address(),
        scale_shift: pool.scale_shift.address(),
        size: [out.h as i32, out.w as i32],
        kernel: along(op.kernel),
        stride: along(op.stride),
        padding: along(op.padding),
        windows: t.windows.map(|n| n as i32),
        box_rows: t.pool_rows as i32,
        places_offset: t.pool_places_offset as i32,
        gradient_offset: t.pool_gradient_offset as i32,
        indices_offset: t.pool_indices_offset as i32,
    }
}

fn params(op: &Conv3d, plan: &Plan, input: &Operand<'_>, grad: &Operand<'_>) -> Params {
    let (g, b, t) = (&plan.geometry, &plan.blocking, &plan.tiling);
    let spans = g.spans(b.taps);
    let axes = [0, 1, 2].map(|i| {
        let (axis, along) = (&g.axes[i], g.axes[i].box_of(spans[i]));
        AxisParams {
            output: axis.output as i32,
            input: axis.input as i32,
            tile: t.tile[i] as i32,
            num_tiles: axis.output.div_ceil(t.tile[i]) as i32,
            first: axis.first as i32,
            stride: axis.stride as i32,
            dilation: axis.dilation as i32,
            box_step: along.step as i32,
            row_pixels: along.row_pixels as i32,
            tap_pixels: along.tap_pixels as i32,
            taps: axis.taps as i32,
        }
    });
    Params {
        input: input.memory[0].address(),
        grad_output: grad.memory[0].address(),
        grad_filter: 0,
        grad_bias: 0,
        partials: 0,
        input_prologue: input.prologue,
        grad_prologue: grad.prologue,
        axes,
        last_input_t: g.last_input_t as i32,
        grad_t: g.grad_t as i32,
        last_grad_t: g.last_grad_t as i32,
        grad_first_t: g.grad_first as i32,
        grad_taps: g.grad_taps as i32,
        grad_tap_rows: (g.grad_dilation * t.tile[1] * t.tile[2]) as i32,
        grad_box_rows: t.grad_rows as i32,
        num_outer: g.num_outer as i32,
        outer_per_split: g.outer_per_split as i32,
        input_pitch: input.pitch as i32,
        grad_pitch: grad.pitch as i32,
        c_in: (op.input.c / op.groups) as i32,
        c_out: (op.c_out / op.groups) as i32,
        num_tiles: t.num_tiles as i32,
        tiles_per_part: plan.cut.tiles_per_part as i32,
        num_parts: plan.cut.num_parts as i32,
        tiles_per_split: plan.cut.tiles_per_split as i32,
        parts_per_split: plan.cut.parts_per_split as i32,
        accumulates: op.part.is_some_and(|part| part.accumulates()).into(),
        taps_per_block: b.taps as i32,
        num_tap_blocks: b.num_tap_blocks as i32,
        slab_chunks: b.slab_chunks as i32,
        num_slabs: b.num_slabs as i32,
        out_chunks: b.out_chunks as i32,
        num_out_blocks: b.num_out_blocks as i32,
        warps: b.warps.map(|warps| warps as i32),
        units: b.variant.units() as i32,
        out_octets: b.variant.octets() as i32,
        input_granule: input.granule as i32,
        grad_granule: grad.granule as i32,
        has_pixel_pairs: i32::from(g.pixel_pairs),
        filter_w: op.filter[2] as i32,
        rows: t.rows as i32,
        input_rows: RowLayout::of(b.slab_chunks),
        grad_rows: RowLayout::of(b.out_chunks),
        box_offset: t.box_offset as i32,
        factors_offset: t.factors_offset as i32,
        stages_offset: t.stages_offset as i32,
        second_input_offset: t.second_input_offset as i32,
        grad_offset: t.grad_offset as i32,
        second_grad_offset: t.second_grad_offset as i32,
        stage_bytes: t.stage_bytes as i32,
        num_blocks: plan.num_blocks as i32,
        warps_per_sum: plan.warps_per_sum() as i32,
        warps_per_split: plan.cut.warps_per_split() as i32,
        pool: bytemuck::Zeroable::zeroed(),
    }
}

/// Checks what [`run`] is given beyond what plain grad_filter checks.
pub(super) fn check_sources(op: &Conv3d, from: &GradFilterSources<'_>) -> Result<()> {
    let dtype = from.input.dtype();
    if !matches!(dtype, DType::Bf16 | DType::F16) {
        return Err(Error::shape(OP, format!("input must be Bf16 or F16 on this device, got {dtype:?}")));
    }
    let checker = super::fused::Checker { op: OP, dtype, part: op.part };
    checker.tensor("input", from.input, op.input)?;
    match &from.pool {
        None => checker.tensor("grad_output", from.grad_output, op.output())?,
        Some(pool) => check_pool(op, from, pool, &checker)?,
    }
    from.prologue.map_or(Ok(()), |p| checker.prologue(&p, op.input))?;
    from.grad_table.map_or(Ok(()), |t| checker.grad_table(&t, op.output()))?;
    match (from.prologue, from.grad_table) {
        (Some(p), Some(t)) if p.splits != t.splits => {
            let message =
                format!("prologue and grad_table must have the same splits, got {} and {}", p.splits, t.splits);
            Err(Error::shape(OP, message))
        }
        (p, t) => {
            check::sizes(op)?;
            let said = p.map(|p| p.splits).or(t.map(|t| t.splits));
            said.map_or(Ok(()), |said| super::launch::check_filled(OP, op, said))
        }
    }
}

fn check_pool(
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    pool: &GradPool<'_>,
    checker: &super::fused::Checker,
) -> Result<()> {
    let Some(table) = from.grad_table.filter(|_| gathers_through(op, &pool.op)) else {
        let message = format!("no gradient table, or no such pool behind this convolution: {:?}, {op:?}", pool.op);
        return Err(Error::unsupported(OP, message));
    };
    checker.tensor("grad_output", from.grad_output, pool.op.output())?;
    checker.slice("pool.indices", pool.indices, DType::U8, pool.op.output().num_elements())?;
    checker.slice("pool.scale_shift", pool.scale_shift, DType::F32, table.splits * 2 * op.c_out)?;
    if granule_of(from.grad_output).min(granule_of(table.y)) < 16 || !pool.indices.address().is_multiple_of(8) {
        let message =
            "through a pool gradient and y must have pitches of 8 channels and addresses of 16 bytes, indices of 8";
        return Err(Error::shape(OP, message));
    }
    Ok(())
}
