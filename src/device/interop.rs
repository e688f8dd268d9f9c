//! Memory and streams of other CUDA code in the same process: a PyTorch extension, `cust`, a decoder. Device memory that
//! is already there is used where it lies, and our memory ([`Slice::address`](super::Slice::address)) and streams are
//! handed out.
//!
//! Everything runs in the GPU's primary context, which is what the CUDA runtime, PyTorch and `cust::quick_init` use.

use cudarc::driver::sys;

use super::{Buffer, CudaDevice, Stream};
use crate::device::Device;
use crate::error::Result;

impl Stream {
    /// A stream that wraps `handle` (a `CUstream`) and does not destroy it. A null handle is the default stream.
    ///
    /// # Safety
    /// `handle` is a stream of the primary context of `device`, and lives as long as the result and its clones.
    pub unsafe fn from_raw(device: &CudaDevice, handle: *mut std::ffi::c_void) -> Stream {
        // SAFETY: the caller's duty.
        let stream = device.context().map(|context| unsafe { context.wrap_borrowed_stream(handle as sys::CUstream) });
        Stream::wrap(Device::Cuda(device.clone()), stream)
    }

    /// The `CUstream`, which this stream keeps owning; `None` where there is no CUDA.
    pub fn raw_handle(&self) -> Option<*mut std::ffi::c_void> {
        self.cuda.as_ref().map(|stream| stream.cu_stream().cast())
    }
}

impl Buffer {
    /// A buffer over `len_bytes` of device memory at `address` that someone else owns; it is not freed.
    ///
    /// # Safety
    /// The range is device memory of `device`, aligned to 256 bytes, initialised, and lives as long as the result, its
    /// clones and slices. Nobody else writes to it while work on it is queued here.
    ///
    /// # Errors
    /// An address that is not aligned.
    pub unsafe fn from_raw(device: &CudaDevice, address: u64, len_bytes: usize) -> Result<Buffer> {
        // SAFETY: the caller's duty.
        unsafe { Buffer::borrowed(device, address, len_bytes) }
    }
}

impl CudaDevice {
    /// The primary context (`CUcontext`) that everything of this device runs in; null for a device that is only described. It must
    /// not be released or destroyed.
    pub fn raw_context(&self) -> *mut std::ffi::c_void {
        self.context().map_or(std::ptr::null_mut(), |context| context.cu_ctx().cast())
    }
}
