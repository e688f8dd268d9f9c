//! What the kernels take, field by field as in `kernels/resize/params.cuh`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::Axis;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct AxisParams {
    start: f32,
    step: f32,
    inverse_step: f32,
    size: i32,
    resized: i32,
}

impl From<&Axis> for AxisParams {
    fn from(axis: &Axis) -> AxisParams {
        AxisParams {
            start: axis.start,
            step: axis.step,
            inverse_step: if axis.step > 0.0 { 1.0 / axis.step } else { 0.0 },
            size: axis.size as i32,
            resized: axis.resized as i32,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub from: u64,
    pub to: u64,
    pub axes: [AxisParams; 3],
    pub n: i32,
    pub channels: i32,
    pub from_pitch: i32,
    pub to_pitch: i32,
    pub reserved: i32,
}

const _: () = assert!(size_of::<AxisParams>() == 20 && size_of::<Params>() == 96 && offset_of!(Params, n) == 76);
