//! Device memory: [`Buffer`] owns it, [`Slice`] is a typed part of a buffer.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, RwLock};

use super::Device;
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
    pub(super) host: NonNull<u8>,
    /// Taken for the duration of a host-side op: shared to read, exclusive to write.
    pub(super) lock: RwLock<()>,
}

// SAFETY: the memory is reached only through `with_host`, which holds `lock` shared for reading and exclusively for writing.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `host` came from `alloc_zeroed` with this very layout in `Buffer::zeroed`.
        unsafe { dealloc(self.host.as_ptr(), layout(self.len_bytes)) }
    }
}

fn layout(len_bytes: usize) -> Layout {
    Layout::from_size_align(len_bytes.max(1), ALIGNMENT_BYTES).expect("size was checked when the buffer was made")
}

impl Buffer {
    /// `len_bytes` of zeroed memory on `device`, aligned to 256 bytes.
    pub fn zeroed(device: &Device, len_bytes: usize) -> Result<Buffer> {
        let out_of_memory =
            || Error::Driver { op: "allocate".into(), message: format!("{len_bytes} bytes are not to be had") };
        Layout::from_size_align(len_bytes.max(1), ALIGNMENT_BYTES).map_err(|_| out_of_memory())?;
        match device {
            Device::Cpu => {
                // SAFETY: the layout has a non-zero size.
                let host = NonNull::new(unsafe { alloc_zeroed(layout(len_bytes)) }).ok_or_else(out_of_memory)?;
                let memory = Memory { device: device.clone(), len_bytes, host, lock: RwLock::new(()) };
                Ok(Buffer { memory: Arc::new(memory) })
            }
        }
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

    /// Copies `values` to the device, and waits for it.
    pub fn write<T: Element>(&self, values: &[T]) -> Result<()> {
        if values.len() != self.len {
            return Err(Error::shape("write", format!("expected {} elements, got {}", self.len, values.len())));
        }
        super::with_host([], [self], |[], [mut to]| {
            to.get_mut::<T>()?.copy_from_slice(values);
            Ok(())
        })
    }

    /// Copies the elements to the host, and waits for it.
    pub fn read<T: Element>(&self) -> Result<Vec<T>> {
        super::with_host([self], [], |[from], []| Ok(from.get::<T>()?.to_vec()))
    }
}
