//! Safe access of CPU ops to buffers: what is written overlaps nothing else, and nobody else is at it.

use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use smallvec::SmallVec;

use super::buffer::{Element, Memory, Slice};
use super::{DType, Device};
use crate::error::{Error, Result};

/// Elements that an op may read.
#[derive(Clone, Copy)]
pub struct HostRead<'a> {
    dtype: DType,
    bytes: &'a [u8],
}

/// Elements that an op may write.
pub struct HostWrite<'a> {
    dtype: DType,
    bytes: &'a mut [u8],
}

pub(super) fn check_dtype<T: Element>(dtype: DType) -> Result<()> {
    if dtype == T::DTYPE {
        return Ok(());
    }
    Err(Error::shape("host access", format!("expected elements of type {:?}, got {dtype:?}", T::DTYPE)))
}

impl<'a> HostRead<'a> {
    /// The elements, if they are of type `T`.
    pub fn get<T: Element>(self) -> Result<&'a [T]> {
        check_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice(self.bytes))
    }
}

impl<'a> HostWrite<'a> {
    /// The elements, if they are of type `T`.
    pub fn get_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        check_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice_mut(self.bytes))
    }

    /// The elements for the whole of the access, if they are of type `T`.
    pub fn into_mut<T: Element>(self) -> Result<&'a mut [T]> {
        check_dtype::<T>(self.dtype)?;
        Ok(bytemuck::cast_slice_mut(self.bytes))
    }
}

pub(super) enum Guard<'a> {
    Read { _guard: RwLockReadGuard<'a, ()> },
    Write { _guard: RwLockWriteGuard<'a, ()> },
}

/// Runs `op` with host slices of `reads` and `writes`. Waits for other ops that use the same buffers; must not be
/// nested on the same buffer. Ops that share a buffer must not be called from several tasks of one rayon pool either: a
/// thread that waits inside one op may be given the other, which then waits for it for ever.
///
/// # Errors
/// A slice that is not in host memory, and a written slice that overlaps any other non-empty slice.
pub fn with_host<const R: usize, const W: usize, O>(
    reads: [&Slice; R],
    writes: [&Slice; W],
    op: impl FnOnce([HostRead<'_>; R], [HostWrite<'_>; W]) -> Result<O>,
) -> Result<O> {
    check_on_host(&reads, &writes)?;
    check_overlap(&reads, &writes)?;
    let _guards = lock_all(&reads, &writes);
    // SAFETY (both): the locks of all buffers are held until `op` returns, and written ranges overlap nothing.
    let read = reads.map(|s| unsafe { host_read(s) });
    let write = writes.map(|s| unsafe { host_write(s) });
    op(read, write)
}

/// As [`with_host`], for numbers of slices that are known only at run time.
///
/// # Errors
/// As [`with_host`].
pub fn with_host_lists<O>(
    reads: &[&Slice],
    writes: &[&Slice],
    op: impl FnOnce(Vec<HostRead<'_>>, Vec<HostWrite<'_>>) -> Result<O>,
) -> Result<O> {
    check_on_host(reads, writes)?;
    check_overlap(reads, writes)?;
    let _guards = lock_all(reads, writes);
    // SAFETY (both): as in `with_host`.
    let read = reads.iter().map(|s| unsafe { host_read(s) }).collect();
    let write = writes.iter().map(|s| unsafe { host_write(s) }).collect();
    op(read, write)
}

/// # Safety
/// The lock of the buffer is held for the lifetime of the result, and no [`host_write`] range of that time overlaps it.
/// (The range was checked when the slice was made, and the bytes were zeroed when allocated.)
unsafe fn host_read<'a>(slice: &'a Slice) -> HostRead<'a> {
    // SAFETY: the duties above.
    let bytes = unsafe { std::slice::from_raw_parts(start(slice), slice.len * slice.dtype.size_bytes()) };
    HostRead { dtype: slice.dtype, bytes }
}

/// # Safety
/// The lock of the buffer is held exclusively for the lifetime of the result, and no other range of that time overlaps it.
unsafe fn host_write<'a>(slice: &'a Slice) -> HostWrite<'a> {
    // SAFETY: the duties above.
    let bytes = unsafe { std::slice::from_raw_parts_mut(start(slice), slice.len * slice.dtype.size_bytes()) };
    HostWrite { dtype: slice.dtype, bytes }
}

fn start(slice: &Slice) -> *mut u8 {
    let Some(host) = slice.buffer.memory.host() else { unreachable!("`check_on_host` lets host memory pass only") };
    // SAFETY: the offset lies inside the allocation; checked when the slice was made.
    unsafe { host.as_ptr().add(slice.offset_bytes) }
}

fn range(slice: &Slice) -> (*const Memory, usize, usize) {
    let len_bytes = slice.len * slice.dtype.size_bytes();
    (std::sync::Arc::as_ptr(&slice.buffer.memory), slice.offset_bytes, slice.offset_bytes + len_bytes)
}

pub(super) fn check_overlap(reads: &[&Slice], writes: &[&Slice]) -> Result<()> {
    for (i, write) in writes.iter().enumerate() {
        let (memory, start, end) = range(write);
        for other in reads.iter().chain(&writes[i + 1..]) {
            let (other_memory, other_start, other_end) = range(other);
            if memory == other_memory && start.max(other_start) < end.min(other_end) {
                return Err(Error::shape(
                    "host access",
                    format!(
                        "bytes {start}..{end} are written and overlap {other_start}..{other_end} of the same buffer"
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn check_on_host(reads: &[&Slice], writes: &[&Slice]) -> Result<()> {
    match reads.iter().chain(writes).find(|slice| *slice.device() != Device::Cpu) {
        None => Ok(()),
        Some(slice) => Err(Error::unsupported("host access", format!("the memory is on {}", slice.device()))),
    }
}

/// Buffers that an op uses, as a rule at most.
const MANY: usize = 16;

pub(super) type Guards<'a> = SmallVec<[Guard<'a>; MANY]>;

/// Locks the buffers, those written exclusively, until the result is dropped.
pub(super) fn lock_all<'a>(reads: &[&'a Slice], writes: &[&'a Slice]) -> Guards<'a> {
    let mut wanted: SmallVec<[(&'a Memory, bool); MANY]> = SmallVec::new();
    let all = reads.iter().map(|s| (s, false)).chain(writes.iter().map(|s| (s, true)));
    for (slice, is_written) in all {
        let memory: &'a Memory = &slice.buffer.memory;
        match wanted.iter_mut().find(|(m, _)| std::ptr::eq(*m, memory)) {
            Some(entry) => entry.1 |= is_written,
            None => wanted.push((memory, is_written)),
        }
    }
    // One order for everybody, so that two ops cannot wait for each other.
    wanted.sort_by_key(|(memory, _)| std::ptr::from_ref(*memory));
    // A poisoned lock only says that an op panicked; the numbers in the buffer are still numbers.
    wanted
        .into_iter()
        .map(|(memory, is_written)| match is_written {
            true => Guard::Write { _guard: memory.lock.write().unwrap_or_else(|p| p.into_inner()) },
            false => Guard::Read { _guard: memory.lock.read().unwrap_or_else(|p| p.into_inner()) },
        })
        .collect()
}
