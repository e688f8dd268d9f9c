//! What the CPU forms of the memory-bound ops share: positions ("rows" of `c` channels) cut into blocks, one task each.
//!
//! Blocks depend on sizes alone, never on the number of threads: sums that are formed per block and joined in block order
//! have the same bits on any machine.

use std::ops::Range;

use rayon::prelude::*;

/// Elements of a block: 64 KiB, so that a block which is read twice comes from the cache the second time.
pub(crate) const BLOCK_ELEMENTS: usize = 16 * 1024;

/// Fewest rows of a block: what is stored per block and channel stays small against the block.
const MIN_BLOCK_ROWS: usize = 16;

/// Channel count from which a row alone fills the vector units.
const WIDE: usize = 64;

/// Runs `f` with the widest vector instructions of this machine. `f` must be marked `#[inline(always)]` all the way down.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Cuts `rows` into blocks.
pub(crate) fn blocks(rows: Range<usize>, c: usize) -> impl Iterator<Item = Range<usize>> {
    let per_block = (BLOCK_ELEMENTS / c.max(1)).max(MIN_BLOCK_ROWS);
    rows.clone().step_by(per_block).map(move |start| start..(start + per_block).min(rows.end))
}

/// Rows that are worked on together: without gaps, several rows of few channels form one long row.
pub(crate) fn rows_together(c: usize, pitches: &[usize]) -> usize {
    if pitches.iter().all(|&p| p == c) { lanes(c) } else { 1 }
}

/// Partial sums that are kept for each of `c` channels: row `r` of a block adds to number `r % lanes`, with or without gaps.
fn lanes(c: usize) -> usize {
    (WIDE / c.max(1)).max(1)
}

/// The elements of the rows `rows`.
pub(crate) fn part(data: &[f32], pitch: usize, rows: &Range<usize>) -> Range<usize> {
    rows.start * pitch..(rows.end * pitch).min(data.len())
}

/// The elements of each of `blocks`, which follow one another without a gap from row 0 on.
pub(crate) fn split<'a, T>(mut data: &'a mut [T], pitch: usize, blocks: &[Range<usize>]) -> Vec<&'a mut [T]> {
    let mut parts = Vec::with_capacity(blocks.len());
    for rows in blocks {
        let (part, rest) = data.split_at_mut((rows.len() * pitch).min(data.len()));
        parts.push(part);
        data = rest;
    }
    parts
}

/// Runs `work` for every item, in parallel where there are several.
pub(crate) fn for_each<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync + Send) {
    match items.len() {
        0 | 1 => items.into_iter().for_each(work),
        _ => items.into_par_iter().for_each(work),
    }
}

/// How a block of `rows` rows is walked: several rows at a time where there are no gaps and few channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    rows: usize,
    c: usize,
    together: usize,
}

impl Walk {
    /// Of `rows` rows of `c` channels, `together` at a time: see [`rows_together`].
    pub(crate) fn new(rows: usize, c: usize, together: usize) -> Walk {
        Walk { rows, c, together }
    }

    /// Channels of a row.
    pub(crate) fn channels(&self) -> usize {
        self.c
    }

    /// Rows of the block.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of the longest row that is walked.
    pub(crate) fn width(&self) -> usize {
        self.together * self.c
    }

    /// Zeros to sum into: `[lanes][c]`.
    pub(crate) fn zeroed_sums(&self) -> Vec<f32> {
        vec![0.0; lanes(self.c) * self.c]
    }

    /// Index and number of elements of each row that is walked.
    #[inline(always)]
    pub(crate) fn steps(self) -> impl Iterator<Item = (usize, usize)> {
        let last = self.rows.div_ceil(self.together);
        (0..last).map(move |k| (k, (self.rows - k * self.together).min(self.together) * self.c))
    }

    /// The elements of [`Walk::zeroed_sums`] that row `k` of the walk, which has `width` elements, adds to.
    #[inline(always)]
    pub(crate) fn sums(&self, k: usize, width: usize) -> Range<usize> {
        let first = k * self.together % lanes(self.c) * self.c;
        first..first + width
    }
}

/// Rows of a block in an array, to read.
#[derive(Clone, Copy)]
pub(crate) struct Strip<'a> {
    /// From the first row of the block on.
    pub(crate) data: &'a [f32],
    /// Elements from one row to the next.
    pub(crate) pitch: usize,
}

impl<'a> Strip<'a> {
    /// The rows `rows` of `all`.
    pub(crate) fn new(all: crate::device::ActRef<'a>, rows: &Range<usize>) -> Self {
        Strip { data: &all.data[part(all.data, all.pitch_c, rows)], pitch: all.pitch_c }
    }

    /// Row `k` of the walk, which has `width` elements.
    #[inline(always)]
    pub(crate) fn row(&self, walk: &Walk, k: usize, width: usize) -> &'a [f32] {
        &self.data[k * walk.together * self.pitch..][..width]
    }
}

/// Rows of a block in an array, to write.
pub(crate) struct StripMut<'a> {
    /// From the first row of the block on.
    pub(crate) data: &'a mut [f32],
    /// Elements from one row to the next.
    pub(crate) pitch: usize,
}

impl StripMut<'_> {
    /// Row `k` of the walk, which has `width` elements.
    #[inline(always)]
    pub(crate) fn row(&mut self, walk: &Walk, k: usize, width: usize) -> &mut [f32] {
        &mut self.data[k * walk.together * self.pitch..][..width]
    }
}

/// The rows of each of `blocks`, as [`split`].
pub(crate) fn strips<'a>(all: crate::device::ActMut<'a>, blocks: &[Range<usize>]) -> Vec<StripMut<'a>> {
    let pitch = all.pitch_c;
    split(all.data, pitch, blocks).into_iter().map(|data| StripMut { data, pitch }).collect()
}
