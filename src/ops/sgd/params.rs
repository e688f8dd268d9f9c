//! What the kernels take, field by field as in `kernels/sgd/params.cuh`.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct CheckParams {
    pub tasks: u64,
    pub grads: u64,
    pub partials: u64,
    pub ticket: u64,
    pub state: u64,
    pub skip_flag: u64,
    pub num_tasks: u32,
    pub first_step: u32,
    pub max_grad_norm: f32,
    pub growth: f32,
    pub backoff: f32,
    pub max_loss_scale: f32,
    pub growth_interval: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct UpdateParams {
    pub tasks: u64,
    pub params: u64,
    pub grads: u64,
    pub momentum: u64,
    pub copy: u64,
    pub lr_address: u64,
    pub state: u64,
    pub lr: f32,
    pub momentum_factor: f32,
    pub take: f32,
    pub max_grad_value: f32,
    pub nesterov: u32,
    pub first_step: u32,
}

const _: () = assert!(size_of::<CheckParams>() == 80 && size_of::<UpdateParams>() == 80);
