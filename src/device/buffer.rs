//! Device memory: [`Buffer`] owns it, [`Slice`] is a typed part of a buffer.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::{Arc, RwLock};

use cudarc::driver::result;

use super::graph::refuse_in_capture;
use super::{CudaDevice, Device};
use crate::error::{Error, Result};

/// Alignment of every buffer, in bytes: what TMA and vector loads ask for, and a multiple of a cache line.
pub const ALIGNMENT_BYTES: usize = 256;

/// Type of the stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Bytes: decoded frames.
    U8,
    /// Unsigned 32-bit integers: labels, indices, tables.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }
}

/// A Rust type that can be stored in a [`Buffer`].
pub trait Element: bytemuck::Pod + Send + Sync {
    /// Its [`DType`].
    const DTYPE: DType;
}

macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f32 => F32, half::bf16 => Bf16, half::f16 => F16, u8 => U8, u32 => U32);

/// An owned piece of device memory, zeroed when made. Cloning shares it; it is freed with the last clone or slice.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub(super) memory: Arc<Memory>,
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) device: Device,
    pub(super) len_bytes: usize,
    pub(super) place: Place,
    /// Taken for the duration of a host-side op: shared to read, exclusive to write.
    pub(super) lock: RwLock<()>,
}

/// Where memory lies, which says who frees it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Ordinary memory of the process.
    Host(NonNull<u8>),
    /// Memory of the emulator: the host reaches it, and every byte outside of it is watched.
    #[cfg(feature = "simt")]
    Simt(NonNull<u8>),
    /// A GPU's memory.
    Cuda(u64),
    /// A GPU's memory that someone else frees.
    Borrowed(u64),
}

// SAFETY: the memory is reached only through `with_host`, `Slice::write_bytes` and `Slice::read_bytes`, which hold `lock`
// shared for reading and exclusively for writing, and through kernels, whose duties `launch` states.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        match (self.place, &self.device) {
            // SAFETY: it came from `alloc_zeroed` with this very layout in `Buffer::zeroed`.
            (Place::Host(start), _) => unsafe { dealloc(start.as_ptr(), layout(self.len_bytes)) },
            #[cfg(feature = "simt")]
            // SAFETY: it came from `simt::allocate`, and emulated work is done when its launch returns.
            (Place::Simt(start), _) => unsafe { super::simt::free(start) },
            // SAFETY: it came from `allocate` of that device in `Buffer::zeroed`.
            (Place::Cuda(address), Device::Cuda(device)) => unsafe { device.free(address) },
            (Place::Cuda(_) | Place::Borrowed(_), _) => {}
        }
    }
}

impl Memory {
    /// Where the host reaches it, if it does.
    pub(super) fn host(&self) -> Option<NonNull<u8>> {
        match self.place {
            Place::Host(start) => Some(start),
            #[cfg(feature = "simt")]
            Place::Simt(start) => Some(start),
            Place::Cuda(_) | Place::Borrowed(_) => None,
        }
    }

    /// Where kernels reach it.
    fn address(&self) -> u64 {
        match self.place {
            Place::Host(start) => start.as_ptr() as u64,
            #[cfg(feature = "simt")]
            Place::Simt(start) => start.as_ptr() as u64,
            Place::Cuda(address) | Place::Borrowed(address) => address,
        }
    }
}

fn layout(len_bytes: usize) -> Layout {
    Layout::from_size_align(len_bytes.max(1), ALIGNMENT_BYTES).expect("size was checked when the buffer was made")
}

thread_local! {
    static NUM_MADE: Cell<u64> = const { Cell::new(0) };
}

impl Buffer {
    /// `len_bytes` of zeroed memory on `device`, aligned to 256 bytes (on `Simt` to 16, so that the end can touch a guard
    /// page).
    pub fn zeroed(device: &Device, len_bytes: usize) -> Result<Buffer> {
        let out_of_memory =
            || Error::Driver { op: "allocate".into(), message: format!("there is no memory of {len_bytes} bytes") };
        Layout::from_size_align(len_bytes.max(1), ALIGNMENT_BYTES).map_err(|_| out_of_memory())?;
        refuse_in_capture(device, "an allocation")?;
        let place = match device {
            // SAFETY: the layout has a non-zero size.
            Device::Cpu => {
                Place::Host(NonNull::new(unsafe { alloc_zeroed(layout(len_bytes)) }).ok_or_else(out_of_memory)?)
            }
            Device::Cuda(device) => Place::Cuda(device.allocate(len_bytes)?),
            #[cfg(not(feature = "simt"))]
            Device::Simt => return Err(Error::NoDevice("this program was built without the feature `simt`".into())),
            #[cfg(feature = "simt")]
            Device::Simt => Place::Simt(super::simt::allocate(len_bytes).ok_or_else(out_of_memory)?),
        };
        Ok(Buffer::of(device.clone(), len_bytes, place))
    }

    /// Buffers that this thread has made so far. Its difference around a training step must be zero.
    pub fn count_made_on_this_thread() -> u64 {
        NUM_MADE.get()
    }

    fn of(device: Device, len_bytes: usize, place: Place) -> Buffer {
        NUM_MADE.set(NUM_MADE.get() + 1);
        Buffer { memory: Arc::new(Memory { device, len_bytes, place, lock: RwLock::new(()) }) }
    }

    /// # Safety
    /// As [`Buffer::from_raw`].
    pub(super) unsafe fn borrowed(device: &CudaDevice, address: u64, len_bytes: usize) -> Result<Buffer> {
        if !address.is_multiple_of(ALIGNMENT_BYTES as u64) {
            return Err(Error::shape("buffer", format!("address {address:#x} is no multiple of {ALIGNMENT_BYTES}")));
        }
        Ok(Buffer::of(Device::Cuda(device.clone()), len_bytes, Place::Borrowed(address)))
    }

    /// A new buffer that holds `values`, as a slice over the whole of it.
    pub fn from_host<T: Element>(device: &Device, values: &[T]) -> Result<Slice> {
        let slice = Buffer::zeroed(device, std::mem::size_of_val(values))?.slice::<T>(0, values.len())?;
        slice.write(values)?;
        Ok(slice)
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.memory.device
    }

    /// Whether both are the same memory.
    pub fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }

    /// Its size.
    pub fn len_bytes(&self) -> usize {
        self.memory.len_bytes
    }

    /// `len` elements of type `T` from byte `offset_bytes` on.
    pub fn slice<T: Element>(&self, offset_bytes: usize, len: usize) -> Result<Slice> {
        self.slice_of(T::DTYPE, offset_bytes, len)
    }

    /// `len` elements of type `dtype` from byte `offset_bytes` on. The offset must be a multiple of the element's size.
    pub fn slice_of(&self, dtype: DType, offset_bytes: usize, len: usize) -> Result<Slice> {
        let end = len.checked_mul(dtype.size_bytes()).and_then(|b| b.checked_add(offset_bytes));
        if end.is_none_or(|e| e > self.len_bytes()) || !offset_bytes.is_multiple_of(dtype.size_bytes()) {
            return Err(Error::shape(
                "slice",
                format!("{len} x {dtype:?} at byte {offset_bytes} do not fit a buffer of {} bytes", self.len_bytes()),
            ));
        }
        Ok(Slice { buffer: self.clone(), dtype, offset_bytes, len })
    }
}

/// A typed part of a [`Buffer`]. Cheap to clone; keeps the buffer alive.
#[derive(Clone, Debug)]
pub struct Slice {
    pub(super) buffer: Buffer,
    pub(super) dtype: DType,
    pub(super) offset_bytes: usize,
    pub(super) len: usize,
}

impl Slice {
    /// `len` elements from element `start` on.
    pub fn part(&self, start: usize, len: usize) -> Result<Slice> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::shape("slice", format!("{start}..{start}+{len} of a slice of {}", self.len)));
        }
        Ok(Slice { offset_bytes: self.offset_bytes + start * self.dtype.size_bytes(), len, ..self.clone() })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    /// The buffer that it is a part of.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Byte offset in the buffer.
    pub fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }

    /// Its size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len * self.dtype.size_bytes()
    }

    /// Copies `values` to the device: after the work that is queued there, and done when the call returns.
    pub fn write<T: Element>(&self, values: &[T]) -> Result<()> {
        if values.len() != self.len {
            return Err(Error::shape("write", format!("expected {} elements, got {}", self.len, values.len())));
        }
        super::host_access::check_dtype::<T>(self.dtype)?;
        self.write_bytes(bytemuck::cast_slice(values))
    }

    /// Copies the elements to the host, after the work that is queued on the device.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        super::host_access::check_dtype::<T>(self.dtype)?;
        let mut values = vec![T::zeroed(); self.len];
        self.read_bytes(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Address of the first element, as kernels see it: a device pointer on `Cuda`, a host pointer elsewhere. It stays valid
    /// as long as this slice.
    pub fn address(&self) -> u64 {
        self.buffer.memory.address() + self.offset_bytes as u64
    }

    /// Fails unless the memory is on `device`.
    pub(crate) fn check_device(&self, device: &Device, op: &'static str) -> Result<()> {
        if self.device() == device {
            return Ok(());
        }
        Err(Error::shape(op, format!("the stream is on {device}, the memory on {}", self.device())))
    }

    /// Copies `bytes` (as many as the slice has) to the slice and waits.
    pub(super) fn write_bytes(&self, bytes: &[u8]) -> Result<()> {
        debug_assert_eq!(bytes.len(), self.len_bytes());
        let memory = &self.buffer.memory;
        refuse_in_capture(&memory.device, "a copy from the host")?;
        match (memory.host(), &memory.device) {
            (Some(start), _) => {
                let _guard = memory.lock.write().unwrap_or_else(|p| p.into_inner());
                // SAFETY: the range was checked when the slice was made; the lock is held exclusively.
                unsafe {
                    start.as_ptr().add(self.offset_bytes).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                }
                Ok(())
            }
            (None, Device::Cuda(device)) if !device.is_there() => Ok(()),
            (None, Device::Cuda(device)) => {
                device.synchronize()?;
                // SAFETY: the range was checked when the slice was made, and the device is idle.
                device.with_context("write", || unsafe { result::memcpy_htod_sync(self.address(), bytes) })
            }
            (None, _) => unreachable!("only a GPU's memory is out of the host's reach"),
        }
    }

    /// Copies the slice to `bytes` (as many as the slice has) and waits.
    pub(super) fn read_bytes(&self, bytes: &mut [u8]) -> Result<()> {
        debug_assert_eq!(bytes.len(), self.len_bytes());
        let memory = &self.buffer.memory;
        refuse_in_capture(&memory.device, "a copy to the host")?;
        match (memory.host(), &memory.device) {
            (Some(start), _) => {
                let _guard = memory.lock.read().unwrap_or_else(|p| p.into_inner());
                // SAFETY: the range was checked when the slice was made; the lock is held.
                unsafe {
                    bytes.as_mut_ptr().copy_from_nonoverlapping(start.as_ptr().add(self.offset_bytes), bytes.len());
                }
                Ok(())
            }
            (None, Device::Cuda(device)) if !device.is_there() => {
                bytes.fill(0);
                Ok(())
            }
            (None, Device::Cuda(device)) => {
                device.synchronize()?;
                // SAFETY: the range was checked when the slice was made, and the device is idle.
                device.with_context("read", || unsafe { result::memcpy_dtoh_sync(bytes, self.address()) })
            }
            (None, _) => unreachable!("only a GPU's memory is out of the host's reach"),
        }
    }
}
