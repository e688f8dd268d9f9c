//! Chooses the kernel and starts it, on the GPU and on the emulator.

use super::params::Params;
use super::{Dropout, OP};
use crate::device::{DType, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::check;

/// Threads of a block (`THREADS` in the kernel).
const THREADS: usize = 256;
/// Largest y of a grid; beyond it blocks stride.
const MAX_GRID_Y: usize = 65535;

pub(super) fn apply(stream: &Stream, op: &Dropout, step: Option<&Slice>, from: &Tensor, to: &Tensor) -> Result<()> {
    let shape = to.shape();
    let rows = shape.t * shape.h * shape.w;
    if [rows * shape.c, from.pitch_c(), to.pitch_c(), shape.n].iter().any(|size| *size > i32::MAX as usize) {
        let message = format!("t * h * w * c and the channel pitch must be below 2^31, got {shape}");
        return Err(Error::unsupported(OP, message));
    }
    let (kernel, vector) = kernel(from, to);
    let blocks = (rows * shape.c / vector).div_ceil(THREADS) as u32;
    let grid = [blocks, shape.n.min(MAX_GRID_Y) as u32, 1];
    let config = LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 };
    let params = Params {
        from: from.memory().address(),
        to: to.memory().address(),
        seed: op.seed,
        step: op.step,
        step_address: step.map_or(0, Slice::address),
        first_clip: op.first_clip as u64,
        n: shape.n as i32,
        rows: rows as i32,
        channels: shape.c as i32,
        from_pitch: from.pitch_c() as i32,
        to_pitch: to.pitch_c() as i32,
        threshold: op.threshold(),
        scale: op.scale(),
        reserved: 0,
    };
    let input = (!check::same_memory(from, to)).then(|| from.memory());
    let reads: Vec<&Slice> = [input, step].into_iter().flatten().collect();
    launch::run(stream, OP, kernel, config, &reads, &[to.memory()], &params)
}

/// The widest kernel that channels, pitches and addresses allow, and its channels a thread.
fn kernel(from: &Tensor, to: &Tensor) -> (&'static str, usize) {
    let dtype = to.dtype();
    let vector = 16 / dtype.size_bytes();
    let is_aligned =
        |tensor: &Tensor| tensor.memory().address().is_multiple_of(16) && tensor.pitch_c().is_multiple_of(vector);
    let is_wide = to.shape().c.is_multiple_of(vector) && is_aligned(from) && is_aligned(to);
    let name = match (is_wide, dtype) {
        (true, DType::Bf16) => "dropout_apply_vector8_bf16",
        (true, DType::F16) => "dropout_apply_vector8_f16",
        (true, _) => "dropout_apply_vector4_f32",
        (false, DType::Bf16) => "dropout_apply_scalar_bf16",
        (false, DType::F16) => "dropout_apply_scalar_f16",
        (false, _) => "dropout_apply_scalar_f32",
    };
    (name, if is_wide { vector } else { 1 })
}
