//! Where the rows of `tap_sum` come from and go to.

use std::ops::Range;

use smallvec::SmallVec;

use super::dispatch::SharedMut;
use super::scratch::{self, Plain, Scratch};

/// Taps of an axis, as a rule at most: more take memory from the heap.
pub const MANY_TAPS: usize = 8;

/// Where the rows of one axis of a grid come from and go to.
pub struct AxisMap {
    /// Number of coordinates.
    pub count: usize,
    /// Offset in `c` of the first, and distance of two.
    pub to_first: usize,
    /// Distance in `c` of two.
    pub to_step: usize,
    /// Distance in `a` of two.
    pub from_step: usize,
    /// The taps.
    pub taps: SmallVec<[TapMap; MANY_TAPS]>,
}

/// What a tap of an axis reads.
pub struct TapMap {
    /// Coordinates that read `a`; the others read zeros.
    pub inside: Range<usize>,
    /// Offset in `a` of the first of them.
    pub first: usize,
}

impl AxisMap {
    fn to(&self, coordinate: usize) -> usize {
        self.to_first + coordinate * self.to_step
    }

    fn from(&self, tap: &TapMap, coordinate: usize) -> Option<usize> {
        tap.inside.contains(&coordinate).then(|| tap.first + (coordinate - tap.inside.start) * self.from_step)
    }
}

/// Rows: a batch of three-dimensional grids (the last axis runs fastest). Offsets of the axes add up, for the source as
/// for the destination. Taps are all combinations of the axes' taps, the last axis' running fastest.
pub struct Grid {
    /// Number of grids.
    pub batch: usize,
    /// Offset in `a` from one to the next.
    pub from_pitch: usize,
    /// Offset in `c` from one to the next.
    pub to_pitch: usize,
    /// The axes.
    pub axes: [AxisMap; 3],
}

impl Grid {
    pub(super) fn num_rows(&self) -> usize {
        self.axes.iter().fold(self.batch, |n, axis| n.saturating_mul(axis.count))
    }

    /// Number of taps of each row.
    pub fn num_taps(&self) -> usize {
        self.axes.iter().fold(1, |n, axis| n.saturating_mul(axis.taps.len()))
    }

    /// Panics unless all rows of `k` and `n` elements lie inside `a_len` and `c_len`, and no two rows of `c` overlap. (A sum
    /// that is too large for its type stays too large: wrapped around it would pass.)
    pub(super) fn check(&self, a_len: usize, k: usize, c_len: usize, n: usize) {
        let last = self.batch.saturating_sub(1);
        let mut a_end = self.from_pitch.saturating_mul(last).saturating_add(k);
        let mut row_end = n;
        let end = |first: usize, count: usize, step: usize| match count {
            0 => 0,
            _ => first.saturating_add(step.saturating_mul(count - 1)),
        };
        for axis in self.axes.iter().rev() {
            let is_inside = |tap: &TapMap| tap.inside.start <= tap.inside.end && tap.inside.end <= axis.count;
            assert!(axis.taps.iter().all(is_inside), "a tap maps coordinates of its axis");
            assert!(axis.count < 2 || row_end <= axis.to_step, "rows must not overlap");
            row_end = row_end.saturating_add(end(axis.to_first, axis.count, axis.to_step));
            let ends = axis.taps.iter().map(|tap| end(tap.first, tap.inside.len(), axis.from_step));
            a_end = a_end.saturating_add(ends.max().unwrap_or(0));
        }
        assert!(self.batch < 2 || row_end <= self.to_pitch, "rows must not overlap");
        assert!(self.to_pitch.saturating_mul(last).saturating_add(row_end) <= c_len, "rows must lie inside c");
        assert!(a_end <= a_len, "rows must lie inside a");
    }
}

/// Where a row comes from.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct From(*const f32);
// SAFETY: an address, whatever it is.
unsafe impl Plain for From {}

/// Where a row goes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct To(*mut f32);
// SAFETY: as above.
unsafe impl Plain for To {}

/// For the rows of one task: where they come from, tap by tap, and where they go.
pub(super) struct RowTable {
    pub num_rows: usize,
    from: Scratch<From>, // [tap][row]
    to: Scratch<To>,     // [row]
}

impl RowTable {
    /// For `rows` of `grid` in `a` and `c`; those outside of the grid are `zeros`. Walks them by segments of the last axis: nothing is
    /// divided or looked up per row and tap.
    pub fn new(grid: &Grid, a: &[f32], zeros: &[f32], c: SharedMut, rows: Range<usize>) -> RowTable {
        let [t, h, w] = &grid.axes;
        let mut from = scratch::filled(rows.len() * grid.num_taps(), From(zeros.as_ptr()));
        let mut to = scratch::filled(rows.len(), To(std::ptr::null_mut()));
        let mut row = rows.start;
        while row < rows.end {
            let (line, first) = (row / w.count, row % w.count);
            let count = (w.count - first).min(rows.end - row);
            let (n, jt, jh) = (line / (t.count * h.count), line / h.count % t.count, line % h.count);
            let segment = row - rows.start;
            let to_line = c.get().wrapping_add(n * grid.to_pitch + t.to(jt) + h.to(jh));
            for (to, jw) in to[segment..][..count].iter_mut().zip(first..) {
                *to = To(to_line.wrapping_add(w.to(jw)));
            }
            let lines = t.taps.iter().flat_map(|kt| h.taps.iter().map(move |kh| (t.from(kt, jt), h.from(kh, jh))));
            for (i, line) in lines.enumerate() {
                let (Some(from_t), Some(from_h)) = line else { continue };
                let from_line = a.as_ptr().wrapping_add(n * grid.from_pitch + from_t + from_h);
                for (kw, tap) in w.taps.iter().enumerate() {
                    let (start, end) = (tap.inside.start.max(first), tap.inside.end.min(first + count));
                    if start >= end {
                        continue;
                    }
                    let first_row = (i * w.taps.len() + kw) * rows.len() + segment + start - first;
                    let mut at = from_line.wrapping_add(tap.first + (start - tap.inside.start) * w.from_step);
                    for from in &mut from[first_row..][..end - start] {
                        *from = From(at);
                        at = at.wrapping_add(w.from_step);
                    }
                }
            }
            row += count;
        }
        RowTable { num_rows: rows.len(), from, to }
    }

    /// Where the rows from `row` on come from at a tap; other taps are [`RowTable::num_rows`] further.
    pub fn from(&self, tap: usize, row: usize) -> *const *const f32 {
        self.from[tap * self.num_rows + row..].as_ptr().cast()
    }

    /// Where the rows from `row` on go.
    pub fn to(&self, row: usize) -> *const *mut f32 {
        self.to[row..].as_ptr().cast()
    }
}
