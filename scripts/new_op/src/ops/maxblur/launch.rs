//! Chooses the kernel and starts it, on the GPU and on the emulator.

use super::OP;
use super::params::Params;
use crate::device::{DType, LaunchConfig, Stream, Tensor, launch};
use crate::error::{Error, Result};

/// Threads of a block (`THREADS` in the kernel).
const THREADS: usize = 256;
/// Largest y of a grid; beyond it blocks stride.
const MAX_GRID_Y: usize = 65535;

pub(super) fn forward(stream: &Stream, input: &Tensor, output: &Tensor) -> Result<()> {
    let (from, to) = (input.shape(), output.shape());
    let rows = to.n * to.t * to.h;
    let largest = [from.h, from.w, to.w * to.c, rows, input.pitch_c(), output.pitch_c()];
    if largest.iter().any(|size| *size > i32::MAX as usize) {
        return Err(Error::unsupported(OP, format!("rows, w * c and pitches must be below 2^31, got {from}")));
    }
    if to.num_elements() == 0 {
        return Ok(());
    }
    let (kernel, vector) = kernel(input, output);
    let blocks = (to.w * to.c / vector).div_ceil(THREADS);
    let grid = [blocks as u32, rows.min(MAX_GRID_Y) as u32, 1];
    let config = LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 };
    let params = Params {
        input: input.memory().address(),
        output: output.memory().address(),
        n: from.n as i32,
        t: from.t as i32,
        h: from.h as i32,
        w: from.w as i32,
        channels: from.c as i32,
        input_pitch: input.pitch_c() as i32,
        output_pitch: output.pitch_c() as i32,
        reserved: 0,
    };
    launch::run(stream, OP, kernel, config, &[input.memory()], &[output.memory()], &params)
}

/// The widest kernel that channels, pitches and addresses allow, and its channels a thread.
fn kernel(input: &Tensor, output: &Tensor) -> (&'static str, usize) {
    let is_aligned = |t: &Tensor| t.memory().address().is_multiple_of(16) && t.pitch_c().is_multiple_of(8);
    match input.dtype() {
        DType::Bf16 if input.shape().c.is_multiple_of(8) && is_aligned(input) && is_aligned(output) => {
            ("maxblur_forward_vector8_bf16", 8)
        }
        DType::Bf16 => ("maxblur_forward_scalar_bf16", 1),
        _ => ("maxblur_forward_scalar_f32", 1),
    }
}
