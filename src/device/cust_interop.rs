//! Our memory as buffers of the `cust` crate, and `cust`'s contexts and streams for us. Both crates use the GPU's primary
//! context, so handles pass unchanged.
//!
//! | have | want | take |
//! |---|---|---|
//! | [`CudaDevice`] | `cust` context | [`context`] |
//! | [`Slice`] | `cust` buffer | [`device_buffer`] |
//! | `cust` stream | [`Stream`] | [`stream`] |
//! | `cust` buffer | [`Buffer`](super::Buffer) | `Buffer::from_raw(device, buffer.as_device_ptr().as_raw(), len_bytes)` |
//!
//! `cust` cannot wrap a stream that it did not make: let it make the stream, and wrap that one here.

use std::mem::ManuallyDrop;

use cust::memory::{DeviceBuffer, DeviceCopy, DevicePointer};

use super::{CudaDevice, Device, Element, Slice, Stream};
use crate::error::{Error, Result};

/// `cust`'s handle of the context that `device` works in, made current on this thread.
///
/// # Errors
/// [`Error::Driver`] when `cust` is refused by the driver.
pub fn context(device: &CudaDevice) -> Result<cust::context::Context> {
    let open = || {
        cust::init(cust::CudaFlags::empty())?;
        cust::context::Context::new(cust::device::Device::get_device(device.gpu().ordinal as u32)?)
    };
    open().map_err(|e: cust::error::CudaError| Error::Driver { op: "cust context".into(), message: e.to_string() })
}

/// The elements of `slice` as a `cust` buffer, borrowed: it frees nothing.
///
/// # Safety
/// The result is not used after `slice` and its clones are dropped, nor while work of another stream writes to it. It is
/// not taken out of its `ManuallyDrop`.
///
/// # Errors
/// A slice that is not on a GPU, or not of type `T`.
pub unsafe fn device_buffer<T: Element + DeviceCopy>(slice: &Slice) -> Result<ManuallyDrop<DeviceBuffer<T>>> {
    if slice.dtype() != T::DTYPE || !matches!(slice.device(), Device::Cuda(_)) {
        return Err(Error::shape(
            "cust interop",
            format!("expected {:?} on a GPU, got {:?} on {}", T::DTYPE, slice.dtype(), slice.device()),
        ));
    }
    let pointer = DevicePointer::from_raw(slice.address());
    // SAFETY: the range is a live allocation of that length; the caller keeps it alive and does not drop the result.
    Ok(ManuallyDrop::new(unsafe { DeviceBuffer::from_raw_parts(pointer, slice.len()) }))
}

/// `stream` of `cust` as one of ours.
///
/// # Safety
/// `stream` was made in the context of [`context`], and lives as long as the result and its clones.
pub unsafe fn stream(device: &CudaDevice, stream: &cust::stream::Stream) -> Stream {
    // SAFETY: the caller's duty.
    unsafe { Stream::from_raw(device, stream.as_inner().cast()) }
}
