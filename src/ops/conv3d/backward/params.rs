//! What the kernels take, field by field as in `kernels/conv3d/backward_params.cuh`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::ops::conv3d::params::GradNormParams;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub g: u64,
    pub grad_table: u64,
    pub y: u64,
    pub x: u64,
    pub scale_shift: u64,
    pub add: u64,
    pub filter: u64,
    pub grad_input: u64,
    pub grad_filter: u64,
    pub tickets: u64,
    pub norm_partials: u64,
    pub partials: u64,
    pub norms: [GradNormParams; 2],
    pub g_pitch: i32,
    pub y_pitch: i32,
    pub x_pitch: i32,
    pub add_pitch: i32,
    pub grad_input_pitch: i32,
    pub c_in: i32,
    pub c_out: i32,
    pub columns: i32,
    pub rows: i32,
    pub rows_per_split: i32,
    pub splits: i32,
    pub tiles_per_part: i32,
    pub parts_per_split: i32,
    pub num_parts: i32,
    pub has_mask: i32,
    pub num_norms: i32,
    pub accumulates: i32,
    pub tile_co: i32,
    pub tile_ci: i32,
    pub tables_at: i32,
    pub stages_at: i32,
    pub stage_bytes: i32,
    pub y_at: i32,
    pub x_at: i32,
    pub result_at: i32,
    pub result_step: i32,
    pub norm_at: [i32; 2],
}

const _: () = assert!(size_of::<Params>() == 352 && offset_of!(Params, norms) == 96);
const _: () = assert!(offset_of!(Params, g_pitch) == 240 && offset_of!(Params, tables_at) == 316);
