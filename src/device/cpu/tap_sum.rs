//! `c[row][n] = init + sum over taps and k of a[source(row, tap) + k] * b[tap][k][n]`: the sum behind a convolution's
//! forward and input gradient. Nothing is copied: a row of `a` is found by its offset, one outside the grid is a row of
//! zeros. Accumulators stay in registers over all taps; `b` is packed so that it is read once, in order.

use std::ops::Range;

use rayon::prelude::*;

use super::Isa;
use super::dispatch::SharedMut;
use super::tap_pairs::run_pairs;
use super::tap_tile::{Tile, TileInit, max_vectors, run_tile, tile_rows};

/// Rows that one task works on, so that what it reads of `a` stays in the second-level cache.
const TASK_ROWS: usize = 192;

/// Rows up to which one task takes all of them, so that it can pack for itself.
const SHORT_ROWS: usize = 512;

/// Bytes of `b` that are used for all rows of a task before the next are read: a part of the second-level cache.
const B_BLOCK_BYTES: usize = 160 << 10;

/// Where the rows of one axis of a grid come from and go to.
pub struct AxisMap {
    /// Offset in `c` of each coordinate.
    pub to: Vec<usize>,
    /// Offset in `a` of each coordinate, for each tap; `None` where it reads zeros.
    pub from: Vec<Vec<Option<usize>>>,
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
    fn num_rows(&self) -> usize {
        self.axes.iter().fold(self.batch, |n, axis| n.saturating_mul(axis.to.len()))
    }

    /// Number of taps of each row.
    pub fn num_taps(&self) -> usize {
        self.axes.iter().fold(1, |n, axis| n.saturating_mul(axis.from.len()))
    }

    /// Panics unless all rows of `k` and `n` elements lie inside `a_len` and `c_len`, and no two rows of `c` overlap. (A sum
    /// that is too large for its type stays too large: wrapped around it would pass.)
    fn check(&self, a_len: usize, k: usize, c_len: usize, n: usize) {
        let last = self.batch.saturating_sub(1);
        let mut a_end = self.from_pitch.saturating_mul(last).saturating_add(k);
        let mut row_end = n;
        for axis in self.axes.iter().rev() {
            assert!(axis.from.iter().all(|tap| tap.len() == axis.to.len()), "a tap maps every coordinate");
            assert!(axis.to.windows(2).all(|w| w[0].saturating_add(row_end) <= w[1]), "rows must not overlap");
            row_end = row_end.saturating_add(axis.to.last().copied().unwrap_or(0));
            a_end = a_end.saturating_add(axis.from.iter().flatten().flatten().max().copied().unwrap_or(0));
        }
        assert!(self.batch < 2 || row_end <= self.to_pitch, "rows must not overlap");
        assert!(self.to_pitch.saturating_mul(last).saturating_add(row_end) <= c_len, "rows must lie inside c");
        assert!(a_end <= a_len, "rows must lie inside a");
    }
}

/// The right-hand side: a matrix of `taps * k` rows and `n` columns.
pub trait Columns: Sync {
    /// Writes columns `first..first + width` of some rows to `to`, `width` floats a row; those beyond `n` are 0.
    fn pack(&self, rows: Range<usize>, first: usize, width: usize, to: &mut [f32]);
}

/// How the right-hand side is packed: columns in blocks of a few vectors, each block `[tap][k][its columns]`. At most half
/// a vector of columns: `[tap][k / 2][column][k % 2]`, see `tap_pairs`.
#[derive(Clone)]
pub struct Panels {
    isa: Isa,
    n: usize,
    has_pairs: bool,
}

impl Panels {
    /// For `n` columns.
    pub fn new(isa: Isa, n: usize) -> Panels {
        Panels { isa, n, has_pairs: isa == Isa::Avx512 && n <= isa.lanes() / 2 }
    }

    /// Floats of the packed form of `taps` of `k` rows.
    pub fn packed_len(&self, taps: usize, k: usize) -> usize {
        taps * self.offset(k, self.n.next_multiple_of(self.isa.lanes()))
    }

    /// First column and packed width of each block.
    fn blocks(&self) -> Vec<(usize, usize)> {
        let lanes = self.isa.lanes();
        let vectors = self.n.div_ceil(lanes);
        let num_blocks = vectors.div_ceil(max_vectors(self.isa));
        // As even as possible: a narrow last block would waste its loads of `a`.
        let start = |i: usize| vectors * i / num_blocks * lanes;
        (0..num_blocks).map(|i| (start(i), start(i + 1) - start(i))).collect()
    }

    /// Floats that `k` rows of a tap take in a block.
    fn offset(&self, k: usize, width: usize) -> usize {
        if self.has_pairs { k.div_ceil(2) * width } else { k * width }
    }

    /// Packs some taps, or a part of one, of a block.
    fn pack(&self, b: &dyn Columns, part: &Part, k: usize, (first, width): (usize, usize), to: &mut [f32]) {
        if !self.has_pairs {
            let start = part.tap * k + part.k_first;
            return b.pack(start..start + part.num_taps * part.k, first, width, to);
        }
        let mut plain = vec![0f32; part.k * self.n];
        for (tap, to) in to.chunks_mut(self.offset(part.k, width)).enumerate() {
            let start = (part.tap + tap) * k + part.k_first;
            b.pack(start..start + part.k, first, self.n, &mut plain);
            to.fill(0.0);
            for (row, values) in plain.chunks(self.n).enumerate() {
                let to = to[row / 2 * width + row % 2..].iter_mut().step_by(2);
                to.zip(values).for_each(|(to, value)| *to = *value);
            }
        }
    }

    /// The parts of `taps` of `k` rows that are packed and used together: several whole taps, or a part of one.
    fn parts(&self, taps: usize, k: usize, width: usize) -> Vec<Part> {
        let k_block = B_BLOCK_BYTES / (width * size_of::<f32>());
        let (taps_step, k_step) = ((k_block / k).clamp(1, taps), k.min(k_block));
        let mut parts = vec![];
        for tap in (0..taps).step_by(taps_step) {
            let num_taps = taps_step.min(taps - tap);
            parts.extend((0..k).step_by(k_step).map(|k_first| Part {
                tap,
                num_taps,
                k_first,
                k: k_step.min(k - k_first),
            }));
        }
        parts
    }
}

/// Some whole taps, or a part of the rows of one.
struct Part {
    tap: usize,
    num_taps: usize,
    k_first: usize,
    k: usize,
}

/// What the sums begin with.
#[derive(Clone, Copy)]
pub enum Init<'a> {
    /// Zero: `c` is overwritten.
    Zero,
    /// A value for each column: `c` is overwritten.
    Columns(&'a [f32]),
    /// `c` is added to.
    Add,
}

/// `c[row] = init + sum over taps of a[row, tap][..k] b[tap]` for the rows of `grid`, in parallel. `packed` is scratch memory
/// of the length that `panels` says.
///
/// # Panics
/// Where offsets lie outside the slices, rows of `c` overlap, or there is no tap, no `k` or no column.
#[allow(clippy::too_many_arguments)]
pub fn add_taps(
    grid: &Grid,
    panels: &Panels,
    a: &[f32],
    k: usize,
    b: &dyn Columns,
    packed: &mut [f32],
    c: &mut [f32],
    init: Init,
) {
    let (num_rows, num_taps) = (grid.num_rows(), grid.num_taps());
    assert!(panels.isa.is_available(), "the processor has the instruction set");
    assert!(num_taps > 0 && k > 0 && panels.n > 0, "there is something to sum");
    if let Init::Columns(columns) = init {
        assert_eq!(columns.len(), panels.n, "a first value for each column");
    }
    grid.check(a.len(), k, c.len(), panels.n);
    let blocks = panels.blocks();
    // The cut into tasks decides who forms a sum, not how: it may depend on the number of threads.
    let is_short = num_rows <= SHORT_ROWS && blocks.len() >= 2 * rayon::current_num_threads();
    let row_tasks = if is_short { 1 } else { num_rows.div_ceil(TASK_ROWS) };
    let blocks_per_task = if row_tasks >= 32 { blocks.len() } else { 1 };
    let column_tasks = blocks.len().div_ceil(blocks_per_task);
    let zeros = vec![0f32; k];
    let c = SharedMut::new(c);
    // With one task for all rows of a block, it packs what it needs next: that never leaves its cache.
    let packed = (row_tasks > 1).then(|| pack_all(panels, &blocks, [num_taps, k], b, packed));
    let sum = Sum { grid, panels, a, k, b, packed, zeros: &zeros, c, init };
    (0..row_tasks * column_tasks).into_par_iter().for_each_init(Default::default, |(table, part), task| {
        let (row_task, column_task) = (task / column_tasks, task % column_tasks);
        RowTable::fill(table, &sum, num_rows * row_task / row_tasks..num_rows * (row_task + 1) / row_tasks);
        let blocks = blocks.iter().skip(column_task * blocks_per_task).take(blocks_per_task);
        blocks.for_each(|&block| sum.run(table, part, block));
    });
}

/// Packs all blocks, one after the other.
fn pack_all<'a>(
    panels: &Panels,
    blocks: &[(usize, usize)],
    [taps, k]: [usize; 2],
    b: &dyn Columns,
    packed: &'a mut [f32],
) -> &'a [f32] {
    let packed = &mut packed[..panels.packed_len(taps, k)];
    let mut work = vec![];
    let mut rest = &mut packed[..];
    for &block in blocks {
        for part in panels.parts(taps, k, block.1) {
            let (to, after) = rest.split_at_mut(part.num_taps * panels.offset(part.k, block.1));
            work.push((to, part, block));
            rest = after;
        }
    }
    work.into_par_iter().for_each(|(to, part, block)| panels.pack(b, &part, k, block, to));
    packed
}

/// `len` floats of `memory` from a cache line's start on: vectors that lie across two lines take twice as long to load, and
/// where an allocator puts memory is its own affair.
fn aligned(memory: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE_BYTES: usize = 64;
    memory.resize(len + LINE_BYTES / size_of::<f32>(), 0.0);
    let skipped = memory.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<f32>());
    &mut memory[skipped..skipped + len]
}

struct Sum<'a> {
    grid: &'a Grid,
    panels: &'a Panels,
    a: &'a [f32],
    k: usize,
    b: &'a dyn Columns,
    packed: Option<&'a [f32]>,
    zeros: &'a [f32],
    c: SharedMut,
    init: Init<'a>,
}

/// For the rows of one task: where they come from, tap by tap, and where they go.
#[derive(Default)]
struct RowTable {
    num_rows: usize,
    from: Vec<*const f32>, // [tap][row]
    to: Vec<*mut f32>,     // [row]
}
// SAFETY: the pointers are only used inside the task that filled them, while `Sum` borrows what they point to.
unsafe impl Send for RowTable {}

impl RowTable {
    /// Walks the rows by segments of the last axis: nothing is divided or looked up per row and tap.
    fn fill(&mut self, sum: &Sum, rows: Range<usize>) {
        let [t, h, w] = &sum.grid.axes;
        let (nt, nh, nw) = (t.to.len(), h.to.len(), w.to.len());
        self.num_rows = rows.len();
        self.to.clear();
        self.to.resize(rows.len(), std::ptr::null_mut());
        self.from.clear();
        self.from.resize(rows.len() * sum.grid.num_taps(), sum.zeros.as_ptr());
        let mut row = rows.start;
        while row < rows.end {
            let (line, first) = (row / nw, row % nw);
            let count = (nw - first).min(rows.end - row);
            let (n, jt, jh) = (line / (nt * nh), line / nh % nt, line % nh);
            let segment = row - rows.start;
            let to_line = n * sum.grid.to_pitch + t.to[jt] + h.to[jh];
            for (to, offset) in self.to[segment..].iter_mut().zip(&w.to[first..first + count]) {
                *to = sum.c.get().wrapping_add(to_line + offset);
            }
            let lines = t.from.iter().flat_map(|t| h.from.iter().map(move |h| (t[jt], h[jh])));
            for (i, line) in lines.enumerate() {
                let (Some(from_t), Some(from_h)) = line else { continue };
                let from_line = sum.a.as_ptr().wrapping_add(n * sum.grid.from_pitch + from_t + from_h);
                for (kw, w) in w.from.iter().enumerate() {
                    let rows_of_tap = &mut self.from[(i * sum.grid.axes[2].from.len() + kw) * rows.len() + segment..];
                    for (from, offset) in rows_of_tap.iter_mut().zip(&w[first..first + count]) {
                        if let Some(offset) = offset {
                            *from = from_line.wrapping_add(*offset);
                        }
                    }
                }
            }
            row += count;
        }
    }
}

impl Sum<'_> {
    /// All rows of the table, one block of columns. `own` is the task's memory for what it packs itself.
    fn run(&self, table: &RowTable, own: &mut Vec<f32>, block: (usize, usize)) {
        let (first_column, width) = block;
        let (isa, num_taps) = (self.panels.isa, self.grid.num_taps());
        let (lanes, num_vectors) = (isa.lanes(), width / isa.lanes());
        let columns = width.min(self.panels.n - first_column);
        let max_rows = tile_rows(isa, num_vectors);
        let tap_len = self.panels.offset(self.k, width);
        for (i, part) in self.panels.parts(num_taps, self.k, width).into_iter().enumerate() {
            let part_len = part.num_taps * self.panels.offset(part.k, width);
            let b = match self.packed {
                Some(packed) => {
                    let start = self.panels.offset(self.k, first_column) * num_taps;
                    &packed[start + part.tap * tap_len + self.panels.offset(part.k_first, width)..][..part_len]
                }
                None => {
                    let own = aligned(own, part_len);
                    self.panels.pack(self.b, &part, self.k, block, own);
                    &own[..]
                }
            };
            let mut tile = Tile {
                from: table.from.as_ptr(),
                from_pitch: table.num_rows,
                to: table.to.as_ptr(),
                first_column,
                num_taps: part.num_taps,
                k_first: part.k_first,
                k: part.k,
                b: b.as_ptr(),
                last_lanes: columns - (num_vectors - 1) * lanes,
                init: match self.init {
                    _ if i > 0 => TileInit::Add,
                    Init::Add => TileInit::Add,
                    Init::Zero => TileInit::Zero,
                    Init::Columns(values) => TileInit::Columns(values[first_column..].as_ptr()),
                },
            };
            for row in (0..table.num_rows).step_by(max_rows) {
                let rows = max_rows.min(table.num_rows - row);
                tile.from = table.from[part.tap * table.num_rows + row..].as_ptr();
                tile.to = table.to[row..].as_ptr();
                // SAFETY: `row..row + rows` are rows of the table; its pointers were made from checked offsets, rows of `c`
                // do not overlap and this task alone has these rows and columns; `b` holds the part in the form that
                // the kernel reads; the processor has `isa`.
                unsafe {
                    match self.panels.has_pairs {
                        true => run_pairs(rows, &tile),
                        false => run_tile(isa, rows, num_vectors, &tile),
                    }
                }
            }
        }
    }
}
