//! What the kernels take, field by field as in `kernels/conv3d/grad_filter_params.cuh`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use crate::ops::conv3d::params::PrologueParams;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct AxisParams {
    pub output: i32,
    pub input: i32,
    pub tile: i32,
    pub num_tiles: i32,
    pub first: i32,
    pub stride: i32,
    pub dilation: i32,
    pub box_step: i32,
    pub row_pixels: i32,
    pub tap_pixels: i32,
    pub taps: i32,
}

/// Rows of 16-byte chunks in shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct RowLayout {
    pub pitch: i32,
    pub shift: i32,
    pub mask: i32,
}

impl RowLayout {
    /// Rows of `chunks` chunks without bank conflicts: swizzled, or with an odd pitch.
    pub fn of(chunks: usize) -> RowLayout {
        let (pitch, shift, mask) = match chunks {
            2 => (2, 2, 1),
            4 => (4, 1, 3),
            8 | 16 => (chunks as i32, 0, 7),
            _ => (chunks as i32 | 1, 0, 0),
        };
        RowLayout { pitch, shift, mask }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct PoolParams {
    pub indices: u64,
    pub scale_shift: u64,
    /// Along h and w, as all pairs here.
    pub size: [i32; 2],
    pub kernel: [i32; 2],
    pub stride: [i32; 2],
    pub padding: [i32; 2],
    pub windows: [i32; 2],
    pub box_rows: i32,
    pub places_offset: i32,
    pub gradient_offset: i32,
    pub indices_offset: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub input: u64,
    pub grad_output: u64,
    pub grad_filter: u64,
    pub grad_bias: u64,
    pub partials: u64,
    pub input_prologue: PrologueParams,
    pub grad_prologue: PrologueParams,
    pub axes: [AxisParams; 3],
    pub last_input_t: i32,
    pub grad_t: i32,
    pub last_grad_t: i32,
    pub grad_first_t: i32,
    pub grad_taps: i32,
    pub grad_tap_rows: i32,
    pub grad_box_rows: i32,
    pub num_outer: i32,
    pub outer_per_split: i32,
    pub input_pitch: i32,
    pub grad_pitch: i32,
    pub c_in: i32,
    pub c_out: i32,
    pub num_tiles: i32,
    pub tiles_per_part: i32,
    pub num_parts: i32,
    pub tiles_per_split: i32,
    pub parts_per_split: i32,
    pub accumulates: i32,
    pub taps_per_block: i32,
    pub num_tap_blocks: i32,
    pub slab_chunks: i32,
    pub num_slabs: i32,
    pub out_chunks: i32,
    pub num_out_blocks: i32,
    pub warps: [i32; 3],
    pub units: i32,
    pub out_octets: i32,
    pub input_granule: i32,
    pub grad_granule: i32,
    pub has_pixel_pairs: i32,
    pub filter_w: i32,
    pub rows: i32,
    pub input_rows: RowLayout,
    pub grad_rows: RowLayout,
    pub box_offset: i32,
    pub factors_offset: i32,
    pub stages_offset: i32,
    pub second_input_offset: i32,
    pub grad_offset: i32,
    pub second_grad_offset: i32,
    pub stage_bytes: i32,
    pub num_blocks: i32,
    pub warps_per_sum: i32,
    pub warps_per_split: i32,
    pub pool: PoolParams,
}

const _: () = assert!(size_of::<AxisParams>() == 44);
const _: () = assert!(size_of::<PoolParams>() == 72 && size_of::<Params>() == 560 && offset_of!(Params, axes) == 152);
const _: () = assert!(offset_of!(Params, last_input_t) == 284 && offset_of!(Params, stage_bytes) == 472);
