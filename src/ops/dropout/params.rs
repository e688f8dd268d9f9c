//! What the kernels take, field by field as in `kernels/dropout/params.cuh`.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub from: u64,
    pub to: u64,
    pub seed: u64,
    pub step: u64,
    pub step_address: u64,
    pub first_clip: u64,
    pub n: i32,
    pub rows: i32,
    pub channels: i32,
    pub from_pitch: i32,
    pub to_pitch: i32,
    pub threshold: u32,
    pub scale: f32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Params>() == 80);
