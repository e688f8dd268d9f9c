//! Starts the kernels, on the GPU and on the emulator.

use super::params::{CheckParams, UpdateParams};
use super::{Arrays, Guard, OP, RangeTable, Sgd};
use crate::device::{DType, LaunchConfig, Slice, Stream, launch};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;

/// Threads of a block (`THREADS` in the kernels).
const THREADS: u32 = 256;

/// See [`super::step_all`].
pub(super) fn step(
    stream: &Stream,
    op: &Sgd,
    table: &RangeTable,
    arrays: &Arrays<'_>,
    guard: Option<&Guard<'_>>,
) -> Result<()> {
    for (name, slice, alignment) in arrays.aligned() {
        if !slice.address().is_multiple_of(alignment) {
            return Err(Error::shape(OP, format!("{name} must be aligned to {alignment} bytes")));
        }
    }
    if table.num_tasks() == 0 {
        return Ok(());
    }
    if let Some(guard) = guard {
        check(stream, op, table, arrays.grads, guard)?;
    }
    update(stream, op, table, arrays, guard)
}

fn config(table: &RangeTable) -> LaunchConfig {
    LaunchConfig { grid: [table.num_tasks() as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
}

fn check(stream: &Stream, op: &Sgd, table: &RangeTable, grads: &Slice, guard: &Guard<'_>) -> Result<()> {
    let params = CheckParams {
        tasks: table.tasks().address(),
        grads: grads.address(),
        partials: guard.workspace.address() + TICKET_BYTES as u64,
        ticket: guard.workspace.address(),
        state: guard.state.address(),
        skip_flag: guard.skip_flag.map_or(0, Slice::address),
        num_tasks: table.num_tasks() as u32,
        first_step: op.first_step.into(),
        max_grad_norm: guard.max_grad_norm,
        growth: guard.scaling.growth,
        backoff: guard.scaling.backoff,
        max_loss_scale: guard.scaling.max,
        growth_interval: guard.scaling.growth_interval,
        reserved: 0,
    };
    let writes = [Some(guard.workspace), Some(guard.state), guard.skip_flag];
    let writes: Vec<&Slice> = writes.into_iter().flatten().collect();
    launch::run(stream, OP, "sgd_check_vector4_f32", config(table), &[table.tasks(), grads], &writes, &params)
}

fn update(stream: &Stream, op: &Sgd, table: &RangeTable, arrays: &Arrays<'_>, guard: Option<&Guard<'_>>) -> Result<()> {
    let kernel = match arrays.copy.map(Slice::dtype) {
        None => "sgd_update_vector4_f32",
        Some(DType::Bf16) => "sgd_update_vector4_bf16",
        Some(_) => "sgd_update_vector4_f16",
    };
    let params = UpdateParams {
        tasks: table.tasks().address(),
        params: arrays.params.address(),
        grads: arrays.grads.address(),
        momentum: arrays.momentum.address(),
        copy: arrays.copy.map_or(0, Slice::address),
        lr_address: arrays.lr.map_or(0, Slice::address),
        state: guard.map_or(0, |guard| guard.state.address()),
        lr: op.lr,
        momentum_factor: op.momentum,
        take: 1.0 - op.dampening,
        max_grad_value: guard.map_or(f32::INFINITY, |guard| guard.max_grad_value),
        nesterov: op.nesterov.into(),
        first_step: op.first_step.into(),
    };
    let reads = [Some(table.tasks()), Some(arrays.grads), arrays.lr, guard.map(|guard| guard.state)];
    let writes = [Some(arrays.params), Some(arrays.momentum), arrays.copy];
    let [reads, writes] = [&reads[..], &writes].map(|all| all.iter().copied().flatten().collect::<Vec<&Slice>>());
    launch::run(stream, OP, kernel, config(table), &reads, &writes, &params)
}
