//! What the kernels take, field by field as in `kernels/attention/params.cuh`.

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
    pub query: Operand,
    pub key: Operand,
    pub value: Operand,
    pub output: Operand,
    pub grad_output: Operand,
    pub grad_query: Operand,
    pub grad_key: Operand,
    pub grad_value: Operand,
    pub log2_sum: u64,
    pub delta: u64,
    pub queries: i32,
    pub keys: i32,
    pub depth: i32,
    pub is_softmax: i32,
    pub scale: f32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Operand>() == 16 && size_of::<Params>() == 168);
