//! What the kernels take, field by field as in `kernels/pool3d/params.cuh` and `windows.cuh`.

use bytemuck::{Pod, Zeroable};

use super::Pool3d;
use crate::ops::batch_norm::params::{GradientTables, Partials};
use crate::ops::divide::Divider;
use crate::ops::row_plan::RowTiles;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct AxisParams {
    input: i32,
    output: i32,
    kernel: i32,
    stride: i32,
    padding: i32,
    by_stride: Divider,
    by_size: Divider,
}

impl AxisParams {
    /// The t, h and w axes; `walks_input`: the kernel makes an input position at a time, else an output position.
    pub(super) fn of(op: &Pool3d, walks_input: bool) -> [AxisParams; 3] {
        let (i, o) = (op.input, op.output());
        let (inputs, outputs) = ([i.t, i.h, i.w], [o.t, o.h, o.w]);
        [0, 1, 2].map(|a| AxisParams {
            input: inputs[a] as i32,
            output: outputs[a] as i32,
            kernel: op.kernel[a] as i32,
            stride: op.stride[a] as i32,
            padding: op.padding[a] as i32,
            by_stride: Divider::new(op.stride[a]),
            by_size: Divider::new(if walks_input { inputs[a] } else { outputs[a] }),
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub from: u64,
    pub to: u64,
    pub indices: u64,
    pub table: u64,
    pub axes: [AxisParams; 3],
    pub tiles: RowTiles,
    pub from_pitch: i32,
    pub to_pitch: i32,
    pub channels: i32,
    pub column: i32,
    pub index_bytes: i32,
    pub accumulates: i32,
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct NormParams {
    pub pool: Params,
    pub y: u64,
    pub at: Partials,
    pub norm: GradientTables,
    pub y_pitch: i32,
    pub reserved: i32,
}

const _: () = assert!(size_of::<AxisParams>() == 44 && size_of::<Params>() == 224 && size_of::<NormParams>() == 320);
