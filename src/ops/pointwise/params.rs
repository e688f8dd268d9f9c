//! What the kernels take, field by field as in `kernels/pointwise/params.cuh`.

use bytemuck::{Pod, Zeroable};

use crate::ops::row_plan::RowTiles;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub input: u64,
    pub output: u64,
    pub tiles: RowTiles,
    pub input_pitch: i32,
    pub output_pitch: i32,
    pub channels: i32,
    pub column: i32,
    pub value: f32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct CastParams {
    pub input: u64,
    pub output: u64,
    pub scale: u64,
    pub len: i64,
    pub is_aligned: i32,
    pub reserved: i32,
}

const _: () = assert!(size_of::<Params>() == 72 && size_of::<CastParams>() == 40);
