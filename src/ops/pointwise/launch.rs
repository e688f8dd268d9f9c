//! Chooses the kernel, fills its params and starts it, on the GPU and on the emulator. Shapes have been checked.

use super::params::{CastParams, Params};
use crate::device::{DType, LaunchConfig, Slice, Stream, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::check;
use crate::ops::row_plan::{RowPlan, RowWork, THREADS, Variants, is_wide, pitch, variants};

/// Elements of a thread of the casts (`CAST` in the kernel).
const CAST: usize = 8;

/// What is done with each element.
#[derive(Clone, Copy)]
pub(super) enum Method {
    Copy,
    Add,
    Fill(f32),
}

impl Method {
    fn variants(self) -> Variants {
        match self {
            Method::Copy => variants!("pointwise_copy"),
            Method::Add => variants!("pointwise_add"),
            Method::Fill(_) => variants!("pointwise_fill"),
        }
    }
}

/// `input` is `output` for fill.
pub(super) fn run(stream: &Stream, name: &'static str, method: Method, input: &Tensor, output: &Tensor) -> Result<()> {
    let shape = output.shape();
    let rows = shape.num_positions();
    let wide = is_wide(&[input, output]);
    let dtype = output.dtype();
    let work = RowWork {
        rows,
        rows_of_batch: rows,
        rows_per_split: rows,
        channels: shape.c,
        dtype,
        is_wide: wide,
        batch: 4,
        is_sum: false,
    };
    let plan = RowPlan::new(name, method.variants(), &work)?;
    plan.print(name);
    let params = Params {
        input: input.memory().address(),
        output: output.memory().address(),
        tiles: plan.tiles,
        input_pitch: pitch(name, input)?,
        output_pitch: pitch(name, output)?,
        channels: shape.c as i32,
        column: plan.column as i32,
        value: if let Method::Fill(value) = method { value } else { 0.0 },
        reserved: 0,
    };
    // A thread reads an element before it writes it.
    let read = (!check::same_memory(input, output)).then_some(input.memory());
    let reads: Vec<&Slice> = read.into_iter().collect();
    launch::run(stream, name, plan.kernel, plan.launch_each(), &reads, &[output.memory()], &params)
}

pub(super) fn cast(
    stream: &Stream,
    name: &'static str,
    input: &Slice,
    output: &Slice,
    scale: Option<&Slice>,
) -> Result<()> {
    let kernel = match (input.dtype(), output.dtype()) {
        (DType::F32, DType::F32) => "pointwise_cast_f32_to_f32",
        (DType::F32, DType::Bf16) => "pointwise_cast_f32_to_bf16",
        (DType::F32, DType::F16) => "pointwise_cast_f32_to_f16",
        (DType::Bf16, DType::F32) => "pointwise_cast_bf16_to_f32",
        (DType::F16, DType::F32) => "pointwise_cast_f16_to_f32",
        (from, to) => return Err(Error::unsupported(name, format!("no kernel casts {from:?} to {to:?}"))),
    };
    let blocks = input.len().div_ceil(THREADS * CAST);
    if blocks > i32::MAX as usize {
        return Err(Error::unsupported(name, format!("too many elements: {}", input.len())));
    }
    let params = CastParams {
        input: input.address(),
        output: output.address(),
        scale: scale.map_or(0, Slice::address),
        len: input.len() as i64,
        is_aligned: i32::from((input.address() | output.address()).is_multiple_of(16)),
        reserved: 0,
    };
    let config = LaunchConfig { grid: [blocks as u32, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes: 0 };
    let reads: Vec<&Slice> = [Some(input), scale].into_iter().flatten().collect();
    launch::run(stream, name, kernel, config, &reads, &[output], &params)
}
