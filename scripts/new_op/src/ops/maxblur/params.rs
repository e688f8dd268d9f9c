//! What the kernels take, field by field as in `kernels/maxblur/params.cuh`.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub input: u64,
    pub output: u64,
    pub n: i32,
    pub t: i32,
    pub h: i32,
    pub w: i32,
    pub channels: i32,
    pub input_pitch: i32,
    pub output_pitch: i32,
    pub reserved: i32,
}

const _: () = assert!(size_of::<Params>() == 48);
