//! Batch norm: golden files, exact and random comparisons with the reference, strides, splits, memory in place.

mod golden_files;
