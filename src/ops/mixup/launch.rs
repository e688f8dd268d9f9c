//! Chooses the kernel and starts it, on the GPU and on the emulator.

use bytemuck::{Pod, Zeroable};

use super::{Mixup, OP};
use crate::device::{DType, LaunchConfig, Stream, Tensor, launch};
use crate::error::{Error, Result};

/// Threads of a block (`THREADS` in the kernel).
const THREADS: usize = 256;
/// Largest y of a grid; beyond it blocks stride.
const MAX_GRID_Y: usize = 65535;

/// Field by field as in `kernels/mixup/params.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    clips: u64,
    n: i32,
    frames: i32,
    height: i32,
    width: i32,
    channels: i32,
    pitch: i32,
    top: i32,
    left: i32,
    box_height: i32,
    box_width: i32,
    keep: f32,
    reserved: i32,
}

const _: () = assert!(size_of::<Params>() == 56);

pub(super) fn blend(stream: &Stream, op: &Mixup, clips: &Tensor) -> Result<()> {
    let (shape, pitch) = (clips.shape(), clips.pitch_c());
    let elements = shape.t * op.rows.len() * op.columns.len() * shape.c;
    if [elements, shape.n, shape.h, shape.w, pitch].iter().any(|size| *size > i32::MAX as usize) {
        let message = format!("the elements of a clip and the channel pitch must be below 2^31, got {shape}");
        return Err(Error::unsupported(OP, message));
    }
    let (kernel, vector) = kernel(clips);
    let blocks = (elements / vector).div_ceil(THREADS) as u32;
    let grid = [blocks, (shape.n / 2).min(MAX_GRID_Y) as u32, 1];
    let config = LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 };
    let params = Params {
        clips: clips.memory().address(),
        n: shape.n as i32,
        frames: shape.t as i32,
        height: shape.h as i32,
        width: shape.w as i32,
        channels: shape.c as i32,
        pitch: pitch as i32,
        top: op.rows.start as i32,
        left: op.columns.start as i32,
        box_height: op.rows.len() as i32,
        box_width: op.columns.len() as i32,
        keep: op.keep,
        reserved: 0,
    };
    launch::run(stream, OP, kernel, config, &[], &[clips.memory()], &params)
}

/// Four channels a thread where channels, pitch and address allow it.
fn kernel(clips: &Tensor) -> (&'static str, usize) {
    let dtype = clips.dtype();
    let is_wide = clips.shape().c.is_multiple_of(4)
        && clips.pitch_c().is_multiple_of(4)
        && clips.memory().address().is_multiple_of(4 * dtype.size_bytes() as u64);
    let name = match (is_wide, dtype) {
        (true, DType::Bf16) => "mixup_blend_vector4_bf16",
        (true, DType::F16) => "mixup_blend_vector4_f16",
        (true, _) => "mixup_blend_vector4_f32",
        (false, DType::Bf16) => "mixup_blend_scalar_bf16",
        (false, DType::F16) => "mixup_blend_scalar_f16",
        (false, _) => "mixup_blend_scalar_f32",
    };
    (name, if is_wide { 4 } else { 1 })
}
