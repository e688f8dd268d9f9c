//! What the kernels take, field by field as in `kernels/linear/params.cuh`.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Operand {
    pub address: u64,
    pub pitch: i32,
    pub is_aligned: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub a: Operand,
    pub b: Operand,
    pub output: u64,
    pub bias: u64,
    pub grad_bias: u64,
    pub partials: u64,
    pub tickets: u64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub output_pitch: i32,
    pub k_per_split: i32,
    pub k_together: i32,
    pub accumulates: i32,
    pub n_tiles: i32,
    pub is_output_f32: i32,
    pub are_pairs: i32,
}

const _: () = assert!(size_of::<Operand>() == 16 && size_of::<Params>() == 112);
