//! Hand-written CUDA kernels for video training, and a Rust host layer that trains video networks with the multigrid
//! method (Wu et al., CVPR 2020) on them, so that batches are reshaped on the device.
//!
//! | concept | type |
//! |---|---|
//! | where work runs, memory there | [`device::Device`], [`device::Buffer`], [`device::Tensor`] |
//! | one operation of a training step | a module of [`ops`] |
//! | the shape of a step | [`shape::StepShape`] |
//! | which shape comes when | [`multigrid`] |
//! | where clips come from | [`clip`] |
//! | a network | [`model`] |
//! | a run | [`train`] |
//! | where the time of a step goes | [`profile`] |
//! | weights in the formats of others | [`weights`] |
//!
//! The order to read in is the order in which the data moves: [`multigrid`], [`clip`], [`ops::resample`], [`model`],
//! [`optimizer`], [`train`].
//!
//! ```
//! use vcycle::device::{Device, Tensor};
//! use vcycle::ops::pointwise;
//! use vcycle::shape::ActivationShape;
//!
//! let device = Device::Cpu;
//! let shape = ActivationShape::new(1, 1, 2, 2, 1);
//! let a = Tensor::from_host(&device, shape, &[1.0f32, 2.0, 3.0, 4.0])?;
//! let b = Tensor::from_host(&device, shape, &[10.0f32, 20.0, 30.0, 40.0])?;
//! pointwise::add(&device.stream()?, &a, &b)?;
//! assert_eq!(b.read::<f32>()?, [11.0, 22.0, 33.0, 44.0]);
//! # Ok::<(), vcycle::Error>(())
//! ```
#![deny(missing_docs)]

mod chart;
pub mod checkpoint;
pub mod clip;
pub mod config;
pub mod device;
pub mod error;
pub mod json_stats;
pub mod labels;
pub mod metrics;
pub mod model;
pub mod multigrid;
pub mod ops;
pub mod optimizer;
pub mod profile;
pub mod shape;
pub mod test;
pub mod train;
pub mod upload;
pub mod weights;

pub use error::{Error, Result};

/// The code blocks of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
