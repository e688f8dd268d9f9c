//! In-order queues of work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::{CudaStream, result};

use super::cuda::driver_error;
use super::graph::refuse_in_capture;
use super::{Device, Event, Pinned, Slice};
use crate::error::{Error, Result};

/// An in-order queue of work on one device. On `Cpu` and `Simt` work is done when the call returns.
#[derive(Clone, Debug)]
pub struct Stream {
    device: Device,
    /// Tells streams apart that have no queue of the driver.
    number: usize,
    pub(super) cuda: Option<Arc<CudaStream>>,
}

impl Stream {
    pub(super) fn new(device: &Device) -> Result<Stream> {
        let cuda = match device {
            Device::Cuda(cuda) => cuda.context().map(|c| c.new_stream()).transpose(),
            _ => Ok(None),
        };
        let cuda = cuda.map_err(|e| driver_error("new stream", e))?;
        static NUM_MADE: AtomicUsize = AtomicUsize::new(0);
        Ok(Stream { device: device.clone(), number: NUM_MADE.fetch_add(1, Ordering::Relaxed), cuda })
    }

    pub(super) fn wrap(device: Device, cuda: Option<Arc<CudaStream>>) -> Stream {
        Stream { device, number: 0, cuda }
    }

    /// The same for every clone and for no other stream of the device.
    pub(super) fn id(&self) -> usize {
        self.cuda.as_ref().map_or(self.number, |queue| queue.cu_stream().addr())
    }

    /// The device that the stream belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all work queued on the stream has finished.
    pub fn synchronize(&self) -> Result<()> {
        refuse_in_capture(&self.device, "waiting for the stream")?;
        match &self.cuda {
            None => Ok(()),
            Some(stream) => stream.synchronize().map_err(|e| driver_error("synchronize", e)),
        }
    }

    /// Work queued from now on starts after what `event` recorded.
    pub fn wait(&self, event: &Event) -> Result<()> {
        refuse_in_capture(&self.device, "waiting for an event")?;
        match (&self.cuda, event.cuda()) {
            (Some(stream), Some(event)) => stream.wait(event).map_err(|e| driver_error("wait", e)),
            (None, None) => Ok(()),
            _ => Err(Error::shape("wait", "the event was recorded on another kind of device")),
        }
    }

    /// Queues a copy of the first `to.len()` bytes of `from`; `to` holds bytes. `from` waits for the copy before it can be
    /// written again.
    pub fn upload(&self, from: &mut Pinned, to: &Slice) -> Result<()> {
        self.check_copy("upload", from, to)?;
        let len = to.len_bytes();
        let Some(stream) = &self.cuda else { return to.write_bytes(&from.bytes()?[..len]) };
        self.wait_for_copies(from)?;
        stream.context().bind_to_thread().map_err(|e| driver_error("upload", e))?;
        // SAFETY: both ranges were checked and lie in live allocations. `from` is kept untouched until the event recorded
        // below has passed, also by its drop; freeing `to` waits for the device.
        unsafe { result::memcpy_htod_async(to.address(), &from.raw_bytes()[..len], stream.cu_stream()) }
            .map_err(|e| driver_error("upload", e))?;
        from.used_until(self.record()?);
        Ok(())
    }

    /// Queues a copy of `from`'s bytes to the start of `to`. `to` waits for the copy before it can be read.
    pub fn download(&self, from: &Slice, to: &mut Pinned) -> Result<()> {
        self.check_copy("download", to, from)?;
        let len = from.len_bytes();
        let Some(stream) = &self.cuda else { return from.read_bytes(&mut to.bytes_mut()?[..len]) };
        self.wait_for_copies(to)?;
        stream.context().bind_to_thread().map_err(|e| driver_error("download", e))?;
        // SAFETY: as in `upload`, with the roles exchanged.
        unsafe { result::memcpy_dtoh_async(&mut to.raw_bytes_mut()[..len], from.address(), stream.cu_stream()) }
            .map_err(|e| driver_error("download", e))?;
        to.used_until(self.record()?);
        Ok(())
    }

    /// Copies `bytes` to the start of `to`, in the order of the stream. `bytes` may be reused at once: the driver keeps a
    /// copy of its own. For small tables; it is no part of a captured graph.
    pub fn write_small(&self, bytes: &[u8], to: &Slice) -> Result<()> {
        let element_bytes = to.dtype().size_bytes();
        if !bytes.len().is_multiple_of(element_bytes) {
            return Err(Error::shape("write", format!("{} bytes are no multiple of {element_bytes}", bytes.len())));
        }
        let to = to.part(0, bytes.len() / element_bytes)?;
        to.check_device(&self.device, "write")?;
        refuse_in_capture(&self.device, "a copy of a small table")?;
        let Some(stream) = &self.cuda else { return to.write_bytes(bytes) };
        stream.context().bind_to_thread().map_err(|e| driver_error("write", e))?;
        // SAFETY: the ranges were checked. From pageable memory the call returns after the driver has taken a copy.
        unsafe { result::memcpy_htod_async(to.address(), bytes, stream.cu_stream()) }
            .map_err(|e| driver_error("write", e))
    }

    /// Marks this point of the stream.
    pub fn record(&self) -> Result<Event> {
        Event::record(self)
    }

    /// `pinned` remembers one copy: the next, perhaps of another stream, has to come after it.
    fn wait_for_copies(&self, pinned: &Pinned) -> Result<()> {
        pinned.last_copy().map_or(Ok(()), |event| self.wait(event))
    }

    fn check_copy(&self, op: &'static str, pinned: &Pinned, slice: &Slice) -> Result<()> {
        refuse_in_capture(&self.device, op)?;
        slice.check_device(&self.device, op)?;
        if pinned.len() < slice.len_bytes() {
            let message = format!("{} bytes of pinned memory for {} of the device", pinned.len(), slice.len_bytes());
            return Err(Error::shape(op, message));
        }
        Ok(())
    }
}
