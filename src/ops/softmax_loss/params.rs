//! What the kernels take, field by field as in `kernels/softmax_loss/params.cuh`.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub logits: u64,
    pub output: u64,
    pub labels: u64,
    pub targets: u64,
    pub loss: u64,
    pub counters: u64,
    pub loss_scale: u64,
    pub skip: u64,
    pub classes: i32,
    pub logits_pitch: i32,
    pub output_pitch: i32,
    pub targets_pitch: i32,
    pub scale: f32,
    pub smoothing: f32,
}

const _: () = assert!(size_of::<Params>() == 88);
