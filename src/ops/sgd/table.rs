//! The ranges of a parameter array, cut into tasks and kept on the device.

use bytemuck::{Pod, Zeroable};

use super::{ParamRange, check_ranges};
use crate::device::{Buffer, Device, Slice};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;

/// Elements of a tile (`SGD_TILE` in the kernels).
const TILE: usize = 4096;

/// Elements `begin .. begin + len`, all in one tile (`SgdTask` in the kernels).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Task {
    pub begin: u64,
    pub len: u32,
    pub weight_decay: f32,
}

const _: () = assert!(size_of::<Task>() == 16);

/// The ranges of a flat parameter array, made once and used by every step: the kernels read them from the device.
#[derive(Clone, Debug)]
pub struct RangeTable {
    ranges: Vec<ParamRange>,
    /// The ranges cut into the tasks of the CPU.
    blocks: Vec<ParamRange>,
    len: usize,
    num_tasks: usize,
    tasks: Slice,
}

impl RangeTable {
    /// For arrays of `len` elements on `device`. Elements in no range are never touched.
    ///
    /// # Errors
    /// `ranges` out of order, overlapping or past the end; no memory.
    pub fn new(device: &Device, ranges: &[ParamRange], len: usize) -> Result<RangeTable> {
        check_ranges("sgd", ranges, len)?;
        let tasks: Vec<Task> = ranges.iter().flat_map(tasks_of).collect();
        if tasks.len() > i32::MAX as usize {
            return Err(Error::unsupported("sgd", format!("{} tasks of at most {TILE} elements", tasks.len())));
        }
        let words: &[u32] = bytemuck::cast_slice(&tasks);
        let (ranges, blocks) = (ranges.to_vec(), super::cpu::blocks(ranges).collect());
        Ok(RangeTable { ranges, blocks, len, num_tasks: tasks.len(), tasks: Buffer::from_host(device, words)? })
    }

    /// The ranges.
    pub fn ranges(&self) -> &[ParamRange] {
        &self.ranges
    }

    pub(super) fn blocks(&self) -> &[ParamRange] {
        &self.blocks
    }

    /// Bytes of [`Guard::workspace`](super::Guard::workspace).
    pub fn workspace_bytes(&self) -> usize {
        TICKET_BYTES + 4 * self.num_tasks
    }

    /// Elements of the arrays.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn num_tasks(&self) -> usize {
        self.num_tasks
    }

    pub(super) fn tasks(&self) -> &Slice {
        &self.tasks
    }
}

/// A range cut at the multiples of [`TILE`].
fn tasks_of(range: &ParamRange) -> impl Iterator<Item = Task> + '_ {
    let end = range.start + range.len;
    (range.start / TILE..end.div_ceil(TILE)).filter(|_| range.len > 0).map(move |tile| {
        let begin = range.start.max(tile * TILE);
        let len = (end.min((tile + 1) * TILE) - begin) as u32;
        Task { begin: begin as u64, len, weight_decay: range.weight_decay }
    })
}

#[test]
fn ranges_are_cut_at_tiles() {
    let cut = |start, len| -> Vec<(u64, u32)> {
        tasks_of(&ParamRange { start, len, weight_decay: 0.5 }).map(|t| (t.begin, t.len)).collect()
    };
    assert_eq!(cut(0, 4096), [(0, 4096)]);
    assert_eq!(cut(4095, 4098), [(4095, 1), (4096, 4096), (8192, 1)]);
    assert_eq!(cut(4096, 0), []);
    assert_eq!(cut((1 << 33) + 4090, 7), [((1 << 33) + 4090, 6), ((1 << 33) + 4096, 1)]);
}
