//! Batch norm: golden files, exact and random comparisons with the reference, strides, splits, memory in place;
//! the kernels, as a whole (`kernels`) and piece by piece (`fused`).

mod fused;
mod golden_files;
mod kernels;
mod refused;
pub(crate) mod rig;
mod same_bits;
mod values;
