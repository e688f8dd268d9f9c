//! Executors and their memory: `Cpu` (native Rust), `Cuda` (the fatbin through the driver), `Simt` (the same kernels as
//! host C++). Must not know of ops, models or files. All `unsafe` of the crate is here, but for two named wrappers.
//!
//! | concept | type |
//! |---|---|
//! | where work runs | [`Device`] |
//! | memory there | [`Buffer`], and a typed part of one: [`Slice`] |
//! | in-order queue of work | [`Stream`] |
//! | activations in memory | [`Tensor`] |

mod buffer;
mod host_access;
mod tensor;

pub use buffer::{Buffer, DType, Element, Slice};
pub use host_access::{HostRead, HostWrite, with_host, with_host_lists};
pub use tensor::{ActMut, ActRef, Tensor};

use crate::error::Result;

/// Where work runs. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// Native Rust on the host's cores.
    Cpu,
}

impl Device {
    /// Waits until all work queued on the device has finished.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
        }
    }

    /// A new in-order queue of work.
    pub fn stream(&self) -> Result<Stream> {
        match self {
            Device::Cpu => Ok(Stream { device: self.clone() }),
        }
    }
}

/// An in-order queue of work on one device. On `Cpu` and `Simt` work is done when the call returns.
#[derive(Clone, Debug)]
pub struct Stream {
    device: Device,
}

impl Stream {
    /// The device that the stream belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all work queued on the stream has finished.
    pub fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }
}
