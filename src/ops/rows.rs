//! What the CPU forms of the memory-bound ops share: positions ("rows" of `c` channels) cut into blocks, one task each.
//!
//! Blocks depend on sizes alone, never on the number of threads: sums that are formed per block and joined in block order
//! have the same bits on any machine.

use std::ops::Range;

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

/// Rows cut into groups, each of which is cut into blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    rows: usize,
    group_rows: usize,
    block_rows: usize,
}

/// Some rows of one group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Block {
    pub(crate) group: usize,
    pub(crate) rows: Range<usize>,
}

impl Blocks {
    /// `rows` rows of `c` channels; groups have `group_rows`, but for the last.
    pub(crate) fn new(rows: usize, group_rows: usize, c: usize) -> Blocks {
        Blocks::of(rows, group_rows, (BLOCK_ELEMENTS / c.max(1)).max(MIN_BLOCK_ROWS))
    }

    /// Blocks of `block_rows`.
    pub(crate) fn of(rows: usize, group_rows: usize, block_rows: usize) -> Blocks {
        Blocks { rows, group_rows: group_rows.max(1), block_rows: block_rows.max(1) }
    }

    fn per_group(&self) -> usize {
        self.group_rows.div_ceil(self.block_rows)
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        let full = self.rows / self.group_rows;
        full * self.per_group() + (self.rows - full * self.group_rows).div_ceil(self.block_rows)
    }

    /// Block `i`; one without rows behind the last.
    pub(crate) fn get(&self, i: usize) -> Block {
        let group = i / self.per_group();
        let end = ((group + 1) * self.group_rows).min(self.rows);
        let start = (group * self.group_rows + i % self.per_group() * self.block_rows).min(end);
        Block { group, rows: start..(start + self.block_rows).min(end) }
    }

    /// All, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Block> + use<> {
        let blocks = *self;
        (0..blocks.len()).map(move |i| blocks.get(i))
    }
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

/// What the blocks of some rows write, each its own part.
pub(crate) trait Parts: Send + Sized {
    /// Those of the first `blocks` blocks, which have `rows` rows, and of the rest.
    fn cut(self, blocks: usize, rows: usize) -> (Self, Self);
}

impl<A: Parts, B: Parts> Parts for (A, B) {
    fn cut(self, blocks: usize, rows: usize) -> (Self, Self) {
        let ((a, rest_a), (b, rest_b)) = (self.0.cut(blocks, rows), self.1.cut(blocks, rows));
        ((a, b), (rest_a, rest_b))
    }
}

impl<A: Parts> Parts for Option<A> {
    fn cut(self, blocks: usize, rows: usize) -> (Self, Self) {
        self.map(|all| all.cut(blocks, rows)).map_or((None, None), |(part, rest)| (Some(part), Some(rest)))
    }
}

/// So many elements for each block.
pub(crate) struct PerBlock<'a, T> {
    pub(crate) data: &'a mut [T],
    len: usize,
}

impl<'a, T> PerBlock<'a, T> {
    pub(crate) fn new(data: &'a mut [T], len: usize) -> Self {
        PerBlock { data, len }
    }
}

impl<T: Send> Parts for PerBlock<'_, T> {
    fn cut(self, blocks: usize, _: usize) -> (Self, Self) {
        let (data, rest) = self.data.split_at_mut(blocks * self.len);
        (PerBlock { data, ..self }, PerBlock { data: rest, ..self })
    }
}

/// Runs `work` for every block with its parts of `parts`, in parallel where there are several. (Halves of halves: no list of blocks or
/// parts is made.)
pub(crate) fn for_each<P: Parts>(blocks: Blocks, parts: P, work: impl Fn(Block, P) + Sync) {
    let len = blocks.len();
    if len > 0 {
        for_each_of(&blocks, 0..len, parts, &work);
    }
}

fn for_each_of<P: Parts>(blocks: &Blocks, range: Range<usize>, parts: P, work: &(impl Fn(Block, P) + Sync)) {
    let first = blocks.get(range.start);
    if range.len() == 1 {
        return work(first, parts);
    }
    let middle = range.start + range.len() / 2;
    let rows = blocks.get(middle).rows.start - first.rows.start;
    let (left, right) = parts.cut(middle - range.start, rows);
    rayon::join(
        || for_each_of(blocks, range.start..middle, left, work),
        || for_each_of(blocks, middle..range.end, right, work),
    );
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

    /// Elements of the sums of a block: `[lanes][c]`.
    pub(crate) fn sums_len(&self) -> usize {
        lanes(self.c) * self.c
    }

    /// Index and number of elements of each row that is walked.
    #[inline(always)]
    pub(crate) fn steps(self) -> impl Iterator<Item = (usize, usize)> {
        let last = self.rows.div_ceil(self.together);
        (0..last).map(move |k| (k, (self.rows - k * self.together).min(self.together) * self.c))
    }

    /// The sums that row `k` of the walk, which has `width` elements, adds to.
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

/// Rows of one or several blocks in an array, to write.
pub(crate) struct StripMut<'a, T = f32> {
    /// From the first row on.
    pub(crate) data: &'a mut [T],
    /// Elements from one row to the next.
    pub(crate) pitch: usize,
}

impl<'a> StripMut<'a> {
    /// All rows.
    pub(crate) fn new(all: crate::device::ActMut<'a>) -> Self {
        StripMut { data: all.data, pitch: all.pitch_c }
    }

    /// Row `k` of the walk, which has `width` elements.
    #[inline(always)]
    pub(crate) fn row(&mut self, walk: &Walk, k: usize, width: usize) -> &mut [f32] {
        &mut self.data[k * walk.together * self.pitch..][..width]
    }
}

impl<T: Send> Parts for StripMut<'_, T> {
    fn cut(self, _: usize, rows: usize) -> (Self, Self) {
        // The last row ends with its last channel.
        let (data, rest) = self.data.split_at_mut((rows * self.pitch).min(self.data.len()));
        (StripMut { data, ..self }, StripMut { data: rest, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_where_groups_end() {
        let of = |rows, group_rows, block_rows| -> Vec<(usize, Range<usize>)> {
            Blocks::of(rows, group_rows, block_rows).iter().map(|b| (b.group, b.rows)).collect()
        };
        assert_eq!(of(7, 7, 3), [(0, 0..3), (0, 3..6), (0, 6..7)]);
        assert_eq!(of(12, 5, 3), [(0, 0..3), (0, 3..5), (1, 5..8), (1, 8..10), (2, 10..12)]);
        assert_eq!(of(6, 3, 3), [(0, 0..3), (1, 3..6)]);
        assert_eq!(of(0, 3, 3), []);
    }

    #[test]
    fn every_block_gets_its_own_parts() {
        let blocks = Blocks::of(12, 5, 3);
        let (mut rows, mut sums) = (vec![0usize; 12 * 4 - 1], vec![0usize; blocks.len() * 2]);
        let strip = StripMut { data: &mut rows[..], pitch: 4 };
        for_each(blocks, (strip, Some(PerBlock::new(&mut sums, 2))), |block, (strip, sums)| {
            let len = strip.data.len();
            strip.data.fill(block.rows.start);
            sums.expect("it was given").data.fill(block.group * 100 + len);
        });
        let want: Vec<usize> =
            blocks.iter().flat_map(|b| std::iter::repeat_n(b.rows.start, 4 * b.rows.len())).collect();
        assert_eq!(rows[..], want[..47]);
        assert_eq!(sums, [12, 12, 8, 8, 112, 112, 108, 108, 207, 207]);
    }
}
