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
    match pitches.iter().all(|&p| p == c) {
        true => (WIDE / c.max(1)).max(1),
        false => 1,
    }
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
