//! Chooses the kernel and starts it, on the GPU and on the emulator.

use bytemuck::Zeroable;

use super::params::Params;
use super::{Extras, Targets};
use crate::device::{DType, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::check;

/// Threads of a block, which has one row (`THREADS` in the kernels).
const THREADS: u32 = 256;
/// A row lies in shared memory: what every GPU from sm_80 on has of it, less what the kernel itself takes.
const MAX_CLASSES: usize = (160 << 10) / 4;

/// Losses and their gradient.
pub(super) fn loss(
    stream: &Stream,
    (op, is_binary): (&'static str, bool),
    [logits, grad]: [&Tensor; 2],
    targets: &Targets<'_>,
    scale: f32,
    loss: &Slice,
    extras: &Extras<'_>,
) -> Result<()> {
    let kernel = match (is_binary, grad.dtype()) {
        (false, DType::Bf16) => "softmax_loss_cross_entropy_row_bf16",
        (false, DType::F16) => "softmax_loss_cross_entropy_row_f16",
        (false, _) => "softmax_loss_cross_entropy_row_f32",
        (true, DType::Bf16) => "softmax_loss_binary_cross_entropy_row_bf16",
        (true, DType::F16) => "softmax_loss_binary_cross_entropy_row_f16",
        (true, _) => "softmax_loss_binary_cross_entropy_row_f32",
    };
    let (labels, soft, smoothing) = match *targets {
        Targets::Labels { labels, smoothing } => (Some(labels), None, smoothing),
        Targets::Soft(targets) => (None, Some(targets), 0.0),
    };
    let params = Params {
        labels: labels.map_or(0, Slice::address),
        targets: soft.map_or(0, |soft| soft.memory().address()),
        loss: loss.address(),
        counters: extras.counters.map_or(0, Slice::address),
        loss_scale: extras.loss_scale.map_or(0, Slice::address),
        skip: extras.skip.map_or(0, Slice::address),
        targets_pitch: soft.map_or(0, |soft| soft.pitch_c() as i32),
        scale,
        smoothing,
        ..Params::zeroed()
    };
    let reads = [labels, soft.map(Tensor::memory), extras.loss_scale].into_iter().flatten().collect();
    let writes = [Some(loss), extras.counters, extras.skip].into_iter().flatten().collect();
    let shared_bytes = if is_binary { 0 } else { 4 * grad.shape().c };
    run(stream, op, kernel, shared_bytes, [logits, grad], reads, writes, params)
}

/// Softmax or sigmoid of every row.
pub(super) fn probabilities(stream: &Stream, op: &'static str, logits: &Tensor, output: &Tensor) -> Result<()> {
    let (kernel, shared_bytes) = match op {
        "softmax" => ("softmax_loss_softmax_row_f32", 4 * output.shape().c),
        _ => ("softmax_loss_sigmoid_row_f32", 0),
    };
    run(stream, op, kernel, shared_bytes, [logits, output], vec![], vec![], Params::zeroed())
}

#[allow(clippy::too_many_arguments)]
fn run<'a>(
    stream: &Stream,
    op: &'static str,
    kernel: &str,
    shared_bytes: usize,
    [logits, output]: [&'a Tensor; 2],
    mut reads: Vec<&'a Slice>,
    mut writes: Vec<&'a Slice>,
    params: Params,
) -> Result<()> {
    let (rows, classes) = (output.shape().num_positions(), output.shape().c);
    let pitches = [logits.pitch_c(), output.pitch_c(), params.targets_pitch as usize, rows];
    if classes > MAX_CLASSES || pitches.iter().any(|size| *size > i32::MAX as usize) {
        let message = format!("at most {MAX_CLASSES} classes, rows and pitches below 2^31, got {}", output.shape());
        return Err(Error::unsupported(op, message));
    }
    let params = Params {
        logits: logits.memory().address(),
        output: output.memory().address(),
        classes: classes as i32,
        logits_pitch: logits.pitch_c() as i32,
        output_pitch: output.pitch_c() as i32,
        ..params
    };
    if !check::same_memory(logits, output) {
        reads.push(logits.memory());
    }
    writes.push(output.memory());
    let config = LaunchConfig { grid: [rows as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes: shared_bytes as u32 };
    launch::run(stream, op, kernel, config, &reads, &writes, &params)
}
