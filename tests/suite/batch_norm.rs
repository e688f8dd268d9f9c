//! Batch norm: golden files, exact and random comparisons with the reference, strides, splits, memory in place.

mod golden_files;
mod refused;
mod rig;
mod same_bits;
mod values;
