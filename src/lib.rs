//! Hand-written CUDA kernels for video training, and a Rust host layer that trains video networks with the multigrid
//! method (Wu et al., CVPR 2020) on them, so that batches are reshaped on the device.
#![deny(missing_docs)]

pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod device;
pub mod error;
pub mod metrics;
pub mod model;
pub mod multigrid;
pub mod ops;
pub mod optimizer;
pub mod shape;
pub mod train;

pub use error::{Error, Result};
