//! Host memory that the device copies from and to by itself, while the host does other things.

use std::ptr::NonNull;

use cudarc::driver::{result, sys};

use super::graph::refuse_in_capture;
use super::{CudaDevice, Device, Event};
use crate::error::{Error, Result};

/// Page-locked host memory, zeroed when made (ordinary memory on `Cpu` and `Simt`). It knows the last copy that uses it:
/// every access waits for that copy.
pub struct Pinned {
    memory: Memory,
    last_copy: Option<Event>,
}

enum Memory {
    Host(Vec<u8>),
    Cuda { device: CudaDevice, start: NonNull<u8>, len: usize },
}

// SAFETY: the memory is owned, and reached only through `&self` and `&mut self`.
unsafe impl Send for Pinned {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` bytes for copies from and to `device`.
    pub fn zeroed(device: &Device, len: usize) -> Result<Pinned> {
        refuse_in_capture(device, "an allocation of pinned memory")?;
        let memory = match device {
            Device::Cuda(device) if device.is_there() => {
                let start = device.with_context(&format!("allocate {len} bytes of pinned memory"), || {
                    // Portable: usable from every context. Not write-combined: that would be slow to read back.
                    // SAFETY: the memory is zeroed before anyone sees it, and freed by the drop alone.
                    unsafe {
                        let start = result::malloc_host(len.max(1), sys::CU_MEMHOSTALLOC_PORTABLE)?.cast::<u8>();
                        start.write_bytes(0, len.max(1));
                        Ok(start)
                    }
                })?;
                let start = NonNull::new(start).ok_or_else(|| Error::Driver {
                    op: "allocate pinned memory".into(),
                    message: "the driver gave no memory".into(),
                })?;
                Memory::Cuda { device: device.clone(), start, len }
            }
            _ => Memory::Host(vec![0; len]),
        };
        Ok(Pinned { memory, last_copy: None })
    }

    /// Its size.
    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::Host(bytes) => bytes.len(),
            Memory::Cuda { len, .. } => *len,
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, after the last copy has finished.
    pub fn bytes(&self) -> Result<&[u8]> {
        self.last_copy.as_ref().map_or(Ok(()), Event::synchronize)?;
        Ok(self.raw_bytes())
    }

    /// The bytes to write, after the last copy has finished.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        self.last_copy.take().map_or(Ok(()), |event| event.synchronize())?;
        Ok(self.raw_bytes_mut())
    }

    /// The bytes, whatever copies are under way.
    pub(super) fn raw_bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Host(bytes) => bytes,
            // SAFETY: allocated and initialised with this size in `zeroed`, freed only by the drop.
            Memory::Cuda { start, len, .. } => unsafe { std::slice::from_raw_parts(start.as_ptr(), *len) },
        }
    }

    pub(super) fn raw_bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Host(bytes) => bytes,
            // SAFETY: as above, and `self` is borrowed exclusively.
            Memory::Cuda { start, len, .. } => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *len) },
        }
    }

    /// The end of the last copy that uses this memory.
    pub(super) fn last_copy(&self) -> Option<&Event> {
        self.last_copy.as_ref()
    }

    /// `event` comes after a copy that uses this memory.
    pub(super) fn used_until(&mut self, event: Event) {
        self.last_copy = Some(event);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Memory::Cuda { device, start, .. } = &self.memory {
            // If waiting or freeing fails the context is gone, and the memory with it.
            let _ = self.last_copy.take().map_or(Ok(()), |event| event.synchronize());
            // SAFETY: allocated by `malloc_host` in `zeroed`, freed once, no copy is under way any more.
            let _ = device.with_context("free pinned memory", || unsafe { result::free_host(start.as_ptr().cast()) });
        }
    }
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({} bytes)", self.len())
    }
}
