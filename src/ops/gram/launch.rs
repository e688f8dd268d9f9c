//! Starts the kernels, on the GPU and on the emulator.

use super::params::{MergeParams, MomentsParams, StatisticsParams};
use super::plan::{MomentsPlan, launch_statistics};
use super::{Gram, Tables};
use crate::device::{Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;
use crate::ops::batch_norm::params::StatisticsTables;
use crate::ops::row_plan::pitch;

/// `slice` begins where vectors of 16 bytes may.
fn check_aligned(op: &'static str, name: &str, slice: &Slice) -> Result<()> {
    match slice.address().is_multiple_of(16) {
        true => Ok(()),
        false => Err(Error::shape(op, format!("{name} must begin at a multiple of 16 bytes"))),
    }
}

pub(super) fn moments(
    stream: &Stream,
    name: &'static str,
    op: &Gram,
    x: &Tensor,
    scale_shift: Option<&Slice>,
    moments: &Slice,
    workspace: &Slice,
) -> Result<()> {
    let plan = MomentsPlan::new(name, op)?;
    launch::print_plan(|| format!("{name}: {plan}"));
    if !x.pitch_c().is_multiple_of(8) {
        return Err(Error::unsupported(name, format!("a channel pitch must be a multiple of 8, got {}", x.pitch_c())));
    }
    check_aligned(name, "x", x.memory())?;
    check_aligned(name, "workspace", workspace)?;
    scale_shift.map_or(Ok(()), |table| check_aligned(name, "prologue.scale_shift", table))?;
    let partials = workspace.address() + TICKET_BYTES as u64;
    let params = MomentsParams {
        x: x.memory().address(),
        scale_shift: scale_shift.map_or(0, Slice::address),
        partials,
        slabs: plan.slabs,
        pitch: pitch(name, x)?,
        channels: op.c_in as i32,
    };
    let reads: Vec<&Slice> = [Some(x.memory()), scale_shift].into_iter().flatten().collect();
    launch::run(stream, name, &plan.kernel(x.dtype()), plan.launch(), &reads, &[workspace], &params)?;
    let (address, channels) = (moments.address(), op.c_in as i32);
    let params = MergeParams { partials, moments: address, slabs: plan.slabs, channels, reserved: 0 };
    launch::run(stream, name, "gram_merge_f32", plan.launch_merge(), &[workspace], &[moments], &params)
}

pub(super) fn statistics(
    stream: &Stream,
    name: &'static str,
    op: &Gram,
    moments: &Slice,
    filter: &Slice,
    tables: &Tables<'_>,
    workspace: &Slice,
) -> Result<()> {
    let (kernel, config) = launch_statistics(name, op, filter.dtype())?;
    for (what, slice) in [("moments", moments), ("filter", filter), ("workspace", workspace)] {
        check_aligned(name, what, slice)?;
    }
    let Tables { gamma, beta, stats, scale_shift, skip } = *tables;
    let (rows, rows_per_split) = op.norm.rows();
    let params = StatisticsParams {
        moments: moments.address(),
        filter: filter.address(),
        partials: workspace.address() + TICKET_BYTES as u64,
        tickets: workspace.address(),
        to: StatisticsTables {
            gamma: gamma.address(),
            beta: beta.address(),
            stats: stats.address(),
            scale_shift: scale_shift.map_or(0, Slice::address),
            running_mean: 0,
            running_var: 0,
            skip: skip.map_or(0, Slice::address),
            eps: op.norm.eps,
            momentum: 0.0,
            channels: op.norm.shape.c as i32,
            splits: op.norm.splits_used() as i32,
        },
        rows: rows as i32,
        rows_per_split: rows_per_split as i32,
        channels: op.c_in as i32,
        reserved: 0,
    };
    let writes: Vec<&Slice> = [Some(stats), Some(workspace), scale_shift, skip].into_iter().flatten().collect();
    launch::run(stream, name, &kernel, config, &[moments, filter, gamma, beta], &writes, &params)
}
