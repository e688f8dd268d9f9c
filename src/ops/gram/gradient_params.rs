//! What `gram_gradient.cu` takes, field by field as in `kernels/gram/gradient_params.cuh`.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct GradientParams {
    pub products: u64,
    pub grad_sums: u64,
    pub moments: u64,
    pub stats: u64,
    pub gamma: u64,
    pub filter: u64,
    pub grad_table: u64,
    pub back_filter: u64,
    pub back_shift: u64,
    pub grad_filter: u64,
    pub grad_gamma: u64,
    pub grad_beta: u64,
    pub rows_per_split: u64,
    pub rows_of_last: u64,
    pub c_in: i32,
    pub c_out: i32,
    pub splits: i32,
    pub accumulates: i32,
}

const _: () = assert!(size_of::<GradientParams>() == 14 * 8 + 16);
