//! What the kernels take, field by field as in `kernels/resample/params.cuh`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::Axis;

/// Most pathways of a launch.
pub(super) const MAX_PATHWAYS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct AxisEntry {
    start: f32,
    step: f32,
    lo: i32,
    hi: i32,
}

impl From<&Axis> for AxisEntry {
    fn from(axis: &Axis) -> AxisEntry {
        AxisEntry { start: axis.start, step: axis.step, lo: axis.lo as i32, hi: axis.hi as i32 }
    }
}

/// A clip of the table.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct ClipEntry {
    pub source: u64,
    pub source_bytes: u64,
    pub height: i32,
    pub width: i32,
    pub flip: i32,
    pub origin_bytes: i32,
    pub t: AxisEntry,
    pub y: AxisEntry,
    pub x: AxisEntry,
}

/// A frame of the table: the sample of the t axis, and the frame that it becomes in each pathway (-1: none).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct FrameEntry {
    pub sample: i32,
    pub frame: [i32; MAX_PATHWAYS],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub clips: u64,
    pub frames: u64,
    pub output: [u64; MAX_PATHWAYS],
    pub output_frames: [i32; MAX_PATHWAYS],
    pub pitch_c: [i32; MAX_PATHWAYS],
    pub height: i32,
    pub width: i32,
    pub channels: i32,
    pub tile: i32,
    pub num_tiles: i32,
    pub row_floats: i32,
    pub has_vector_stores: i32,
    pub reserved: i32,
    pub multiply: [f32; 3],
    pub add: [f32; 3],
}

const _: () = assert!(size_of::<ClipEntry>() == 80 && offset_of!(ClipEntry, t) == 32 && offset_of!(ClipEntry, x) == 64);
const _: () = assert!(size_of::<FrameEntry>() == 20);
const _: () = assert!(size_of::<Params>() == 136);
const _: () = assert!(offset_of!(Params, output_frames) == 48 && offset_of!(Params, height) == 80);
const _: () = assert!(offset_of!(Params, tile) == 92 && offset_of!(Params, multiply) == 112);
