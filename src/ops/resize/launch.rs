//! Chooses the kernel and starts it, on the GPU and on the emulator.

use super::params::Params;
use super::{Axis, Direction};
use crate::device::{DType, LaunchConfig, Stream, Tensor, launch};
use crate::error::{Error, Result};

/// Threads of a block (`THREADS` in the kernel).
const THREADS: usize = 256;
/// Largest y and z of a grid; beyond it blocks stride.
const MAX_GRID_YZ: usize = 65535;

pub(super) fn run(stream: &Stream, direction: Direction, axes: &[Axis; 3], from: &Tensor, to: &Tensor) -> Result<()> {
    let (op, shape) = (direction.name(), to.shape());
    let largest = [shape.w * shape.c, shape.t * shape.h, from.pitch_c(), to.pitch_c(), shape.n];
    if largest.iter().any(|size| *size > i32::MAX as usize) {
        let message = format!("w * c, t * h and the channel pitch must be below 2^31, got {shape}");
        return Err(Error::unsupported(op, message));
    }
    if shape.num_elements() == 0 {
        return Ok(());
    }
    let (kernel, vector) = kernel(direction, from, to);
    let threads = shape.w * shape.c / vector;
    let rows = (shape.t * shape.h).min(MAX_GRID_YZ) as u32;
    let grid = [threads.div_ceil(THREADS) as u32, rows, shape.n.min(MAX_GRID_YZ) as u32];
    let config = LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 };
    let params = Params {
        from: from.memory().address(),
        to: to.memory().address(),
        axes: [(&axes[0]).into(), (&axes[1]).into(), (&axes[2]).into()],
        n: shape.n as i32,
        channels: shape.c as i32,
        from_pitch: from.pitch_c() as i32,
        to_pitch: to.pitch_c() as i32,
        reserved: 0,
    };
    launch::run(stream, op, kernel, config, &[from.memory()], &[to.memory()], &params)
}

/// The widest kernel that channels, pitches and addresses allow, and its channels a thread.
fn kernel(direction: Direction, from: &Tensor, to: &Tensor) -> (&'static str, usize) {
    let dtype = from.dtype();
    let vector = 16 / dtype.size_bytes();
    let is_aligned =
        |tensor: &Tensor| tensor.memory().address().is_multiple_of(16) && tensor.pitch_c().is_multiple_of(vector);
    let is_wide = to.shape().c.is_multiple_of(vector) && is_aligned(from) && is_aligned(to);
    let name = match (direction, is_wide, dtype) {
        (Direction::Forward, true, DType::Bf16) => "resize_forward_vector8_bf16",
        (Direction::Forward, true, DType::F16) => "resize_forward_vector8_f16",
        (Direction::Forward, true, _) => "resize_forward_vector4_f32",
        (Direction::Forward, false, DType::Bf16) => "resize_forward_scalar_bf16",
        (Direction::Forward, false, DType::F16) => "resize_forward_scalar_f16",
        (Direction::Forward, false, _) => "resize_forward_scalar_f32",
        (Direction::GradInput, true, DType::Bf16) => "resize_grad_input_vector8_bf16",
        (Direction::GradInput, true, DType::F16) => "resize_grad_input_vector8_f16",
        (Direction::GradInput, true, _) => "resize_grad_input_vector4_f32",
        (Direction::GradInput, false, DType::Bf16) => "resize_grad_input_scalar_bf16",
        (Direction::GradInput, false, DType::F16) => "resize_grad_input_scalar_f16",
        (Direction::GradInput, false, _) => "resize_grad_input_scalar_f32",
    };
    (name, if is_wide { vector } else { 1 })
}
