//! Executors and their memory: `Cpu` (native Rust), `Cuda` (the fatbin through the driver), `Simt` (the same kernels as
//! host C++). Must not know of ops, models or files. All `unsafe` of the crate is here.
//!
//! | concept | type |
//! |---|---|
//! | where work runs | [`Device`], chosen by [`Device::select`] |
//! | memory there | [`Buffer`], and a typed part of one: [`Slice`] |
//! | in-order queue of work | [`Stream`] |
//! | a point in a stream, to wait for or to measure between | [`Event`] |
//! | host memory that copies overlap with | [`Pinned`] |
//! | activations in memory | [`Tensor`] |
//! | a tensor as TMA sees it | [`TensorMap`] |
//! | a kernel on its way to the device | [`launch`] |
//! | launches captured once and started as one | [`Graph`] |
//! | names on the time lines of NVIDIA's profilers | [`nvtx`] |
//! | memory and streams of other CUDA code | [`interop`] |

mod buffer;
pub mod cpu;
mod cuda;
#[cfg(feature = "cust")]
pub mod cust_interop;
mod event;
mod graph;
mod host_access;
pub mod interop;
pub mod kernels;
mod known_gpus;
pub mod launch;
pub mod nvtx;
mod pinned;
mod select;
#[cfg(feature = "simt")]
pub mod simt;
mod stream;
mod tensor;
mod tensor_map;

pub use buffer::{Buffer, DType, Element, Slice};
pub use cuda::{CudaDevice, Gpu};
pub use event::Event;
pub use graph::Graph;
pub use host_access::{HostRead, HostWrite, with_host, with_host_lists};
pub use known_gpus::KNOWN_GPUS;
pub use launch::{LaunchConfig, Launched, recorded};
pub use pinned::Pinned;
pub use stream::Stream;
pub use tensor::{ActMut, ActRef, Tensor};
pub use tensor_map::{Im2col, OutOfBounds, Swizzle, TensorLayout, TensorMap};

use crate::error::{Error, Result};

/// Where work runs. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// Native Rust on the host's cores.
    Cpu,
    /// A GPU, through its driver.
    Cuda(CudaDevice),
    /// The CUDA kernels on the host's cores, emulated: for tests. Slow, and strict about races and bounds.
    Simt,
}

impl Device {
    /// Waits until all work queued on the device has finished.
    pub fn synchronize(&self) -> Result<()> {
        graph::refuse_in_capture(self, "waiting for the device")?;
        match self {
            Device::Cuda(cuda) => cuda.synchronize(),
            _ => Ok(()),
        }
    }

    /// A new in-order queue of work.
    pub fn stream(&self) -> Result<Stream> {
        Stream::new(self)
    }

    /// Where a kernel is asked for that the device has not.
    pub(crate) fn no_kernel(&self, op: &str) -> Error {
        Error::unsupported(op, format!("there is no kernel for {self} yet; use the cpu executor"))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(cuda) => write!(f, "cuda:{} ({})", cuda.gpu().ordinal, cuda.gpu().name),
            Device::Simt => write!(f, "simt"),
        }
    }
}
