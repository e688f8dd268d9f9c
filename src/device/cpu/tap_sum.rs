//! `c[row][n] = init + sum over taps and k of a[source(row, tap) + k] * b[tap][k][n]`: the sum behind a convolution's
//! forward and input gradient. Nothing is copied: a row of `a` is found by its offset, one outside the grid is a row of
//! zeros. Accumulators stay in registers over all taps; `b` is packed so that it is read once, in order.

use std::ops::Range;

use rayon::prelude::*;

use super::Isa;
use super::dispatch::SharedMut;
use super::scratch;
use super::tap_grid::{Grid, RowTable};
use super::tap_pairs::run_pairs;
use super::tap_tile::{Tile, TileInit, max_vectors, run_tile, tile_rows};

/// Rows that one task works on, so that what it reads of `a` stays in the second-level cache.
const TASK_ROWS: usize = 192;

/// Rows up to which one task takes all of them, so that it can pack for itself.
const SHORT_ROWS: usize = 512;

/// Bytes of `b` that are used for all rows of a task before the next are read: a part of the second-level cache.
const B_BLOCK_BYTES: usize = 160 << 10;

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

    fn num_blocks(&self) -> usize {
        self.n.div_ceil(self.isa.lanes()).div_ceil(max_vectors(self.isa))
    }

    /// First column and packed width of a block.
    fn block(&self, i: usize) -> Block {
        let vectors = self.n.div_ceil(self.isa.lanes());
        // As even as possible: a narrow last block would waste its loads of `a`.
        let start = |i: usize| vectors * i / self.num_blocks() * self.isa.lanes();
        Block { first: start(i), width: start(i + 1) - start(i) }
    }

    /// Floats that `k` rows of a tap take in a block.
    fn offset(&self, k: usize, width: usize) -> usize {
        if self.has_pairs { k.div_ceil(2) * width } else { k * width }
    }

    /// Packs some taps, or a part of one, of a block.
    fn pack(&self, b: &dyn Columns, part: &Part, k: usize, Block { first, width }: Block, to: &mut [f32]) {
        if !self.has_pairs {
            let start = part.tap * k + part.k_first;
            return b.pack(start..start + part.num_taps * part.k, first, width, to);
        }
        let mut plain = scratch::take::<f32>(part.k * self.n);
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

    /// The parts of `taps` of `k` rows that are packed and used together.
    fn parts(&self, taps: usize, k: usize, width: usize) -> Parts {
        let k_block = B_BLOCK_BYTES / (width * size_of::<f32>());
        Parts { taps, k, taps_step: (k_block / k).clamp(1, taps), k_step: k.min(k_block) }
    }

    /// Where a part of a block lies in the packed form of `taps` of `k` rows.
    fn range(&self, [taps, k]: [usize; 2], Block { first, width }: Block, part: &Part) -> Range<usize> {
        let block = self.offset(k, first) * taps;
        let start = block + part.tap * self.offset(k, width) + self.offset(part.k_first, width);
        start..start + part.num_taps * self.offset(part.k, width)
    }
}

/// A block of columns.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    width: usize,
}

/// How the rows of a block are cut: into several whole taps, or parts of one.
struct Parts {
    taps: usize,
    k: usize,
    taps_step: usize,
    k_step: usize,
}

impl Parts {
    fn len(&self) -> usize {
        self.taps.div_ceil(self.taps_step) * self.k.div_ceil(self.k_step)
    }

    fn get(&self, i: usize) -> Part {
        let per_tap = self.k.div_ceil(self.k_step);
        let (tap, k_first) = (i / per_tap * self.taps_step, i % per_tap * self.k_step);
        Part { tap, num_taps: self.taps_step.min(self.taps - tap), k_first, k: self.k_step.min(self.k - k_first) }
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
    let num_blocks = panels.num_blocks();
    // The cut into tasks decides who forms a sum, not how: it may depend on the number of threads.
    let is_short = num_rows <= SHORT_ROWS && num_blocks >= 2 * rayon::current_num_threads();
    let row_tasks = if is_short { 1 } else { num_rows.div_ceil(TASK_ROWS) };
    let blocks_per_task = if row_tasks >= 32 { num_blocks } else { 1 };
    let column_tasks = num_blocks.div_ceil(blocks_per_task);
    let zeros = scratch::filled(k, 0f32);
    let (c, zeros) = (SharedMut::new(c), &zeros[..]);
    // With one task for all rows of a block, it packs what it needs next: that never leaves its cache.
    let packed = (row_tasks > 1).then(|| pack_all(panels, [num_taps, k], b, packed));
    let sum = Sum { panels, num_taps, k, b, packed, init };
    (0..row_tasks * column_tasks).into_par_iter().for_each(|task| {
        let (row_task, column_task) = (task / column_tasks, task % column_tasks);
        let rows = num_rows * row_task / row_tasks..num_rows * (row_task + 1) / row_tasks;
        let table = RowTable::new(grid, a, zeros, c, rows);
        let blocks = (0..num_blocks).skip(column_task * blocks_per_task).take(blocks_per_task);
        blocks.for_each(|block| sum.run(&table, panels.block(block)));
    });
}

/// Packs all blocks, one after the other.
fn pack_all<'a>(panels: &Panels, [taps, k]: [usize; 2], b: &dyn Columns, packed: &'a mut [f32]) -> &'a [f32] {
    let packed = &mut packed[..panels.packed_len(taps, k)];
    let (shared, len) = (SharedMut::new(packed), packed.len());
    let num_blocks = panels.num_blocks();
    // Wider blocks have more parts.
    let most_parts = (0..num_blocks).map(|i| panels.parts(taps, k, panels.block(i).width).len()).max().unwrap_or(0);
    (0..num_blocks * most_parts).into_par_iter().for_each(|i| {
        let block = panels.block(i / most_parts);
        let parts = panels.parts(taps, k, block.width);
        if i % most_parts < parts.len() {
            let part = parts.get(i % most_parts);
            let range = panels.range([taps, k], block, &part);
            assert!(range.end <= len, "a part lies inside of all");
            // SAFETY: just checked; parts of blocks follow one another and do not meet.
            let to = unsafe { std::slice::from_raw_parts_mut(shared.get().add(range.start), range.len()) };
            panels.pack(b, &part, k, block, to);
        }
    });
    packed
}

struct Sum<'a> {
    panels: &'a Panels,
    num_taps: usize,
    k: usize,
    b: &'a dyn Columns,
    packed: Option<&'a [f32]>,
    init: Init<'a>,
}

impl Sum<'_> {
    /// All rows of the table, one block of columns.
    fn run(&self, table: &RowTable, block: Block) {
        let (isa, num_taps) = (self.panels.isa, self.num_taps);
        let (lanes, num_vectors) = (isa.lanes(), block.width / isa.lanes());
        let columns = block.width.min(self.panels.n - block.first);
        let max_rows = tile_rows(isa, num_vectors);
        let parts = self.panels.parts(num_taps, self.k, block.width);
        for (i, part) in (0..parts.len()).map(|i| (i, parts.get(i))) {
            let range = self.panels.range([num_taps, self.k], block, &part);
            // Memory for what the task packs itself.
            let mut own = scratch::take::<f32>(if self.packed.is_some() { 0 } else { range.len() });
            let b = match self.packed {
                Some(packed) => &packed[range],
                None => {
                    self.panels.pack(self.b, &part, self.k, block, &mut own);
                    &own[..]
                }
            };
            let mut tile = Tile {
                from: table.from(part.tap, 0),
                from_pitch: table.num_rows,
                to: table.to(0),
                first_column: block.first,
                num_taps: part.num_taps,
                k_first: part.k_first,
                k: part.k,
                b: b.as_ptr(),
                last_lanes: columns - (num_vectors - 1) * lanes,
                init: match self.init {
                    _ if i > 0 => TileInit::Add,
                    Init::Add => TileInit::Add,
                    Init::Zero => TileInit::Zero,
                    Init::Columns(values) => TileInit::Columns(values[block.first..].as_ptr()),
                },
            };
            for row in (0..table.num_rows).step_by(max_rows) {
                let rows = max_rows.min(table.num_rows - row);
                tile.from = table.from(part.tap, row);
                tile.to = table.to(row);
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
