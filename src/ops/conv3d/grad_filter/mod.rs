//! grad_filter on tensor cores: checks what the kernels take, plans and launches.

mod geometry;
mod operand;
mod params;
mod plan;
mod tiling;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use super::fused::{GradTable, Prologue};
use super::{Conv3d, check};
use crate::device::{DType, Device, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;
use crate::ops::pool3d::{Pool3d, PoolKind};
use operand::{Operand, granule_of};
use params::{Params, PoolParams};
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
pub(super) fn limits(device: &Device) -> Limits {
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
        of_splits: false,
        pool: None,
    };
    let gain_us = plan::gain_of_stored_grad_us(op, sources, limits(device));
    if prints_plans() {
        eprintln!("{OP}: {op:?}, {splits} splits: a stored gradient gains {gain_us:.1?} us");
    }
    gain_us.is_some_and(|us| us > 0.0)
}

/// Other ops' tickets stay as they are: this one needs none.
pub(super) fn workspace_bytes(device: &Device, op: &Conv3d, splits: usize, of_splits: bool) -> usize {
    TICKET_BYTES + plan::workspace_bytes(op, splits.max(1), of_splits, limits(device))
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

/// Launches the kernels. Shapes are checked. `of_splits`: each split has a gradient of its own, one after the other.
pub(super) fn run(
    stream: &Stream,
    op: &Conv3d,
    from: &GradFilterSources<'_>,
    grad_filter: &Slice,
    grad_bias: Option<&Slice>,
    of_splits: bool,
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
        of_splits,
        pool: from.pool.map(|pool| Windows {
            kernel: [pool.op.kernel[1], pool.op.kernel[2]],
            stride: [pool.op.stride[1], pool.op.stride[2]],
        }),
    };
    let plan = planned(op, sources, limits(stream.device()))?;
    let mut params = Params::of(op, &plan, &input, &grad);
    if let Some(pool) = &from.pool {
        params.pool = PoolParams::of(pool, &plan);
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
    let gradients = if of_splits { plan.cut.splits() } else { 1 };
    let grid = [plan.num_blocks as u32, plan.sum_blocks() as u32, gradients as u32];
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
