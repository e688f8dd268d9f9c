//! `c[row][n] = init + sum over taps and k of a[source(row, tap) + k] * b[tap][k][n]`: the sum behind a convolution's
//! forward and input gradient. Nothing is copied: a row of `a` is found by its offset, one outside the grid is a row of
//! zeros. Accumulators stay in registers over all taps; `b` is packed so that it is read once, in order.

use rayon::prelude::*;

use super::Isa;
use super::vector::{Portable, Vector};

/// Rows of a tile for 1, 2, 3, 4 vectors of columns, so that accumulators, columns and a factor fit the registers and
/// there are enough independent sums to hide the latency of a multiply-add.
const fn tile_rows(isa: Isa, num_vectors: usize) -> usize {
    match (isa, num_vectors) {
        (Isa::Avx512, 4) => 6,
        (Isa::Avx512, _) => 8,
        (_, 2) => 6,
        (_, _) => 8,
    }
}

const MAX_TILE_ROWS: usize = 8;

/// Most vectors of columns in a tile.
const fn max_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 | Isa::Portable => 2,
    }
}

/// Rows that one task works on, so that what it reads of `a` stays in the second-level cache.
const TASK_ROWS: usize = 192;

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
        self.batch * self.axes.iter().map(|a| a.to.len()).product::<usize>()
    }

    /// Number of taps of each row.
    pub fn num_taps(&self) -> usize {
        self.axes.iter().map(|a| a.from.len()).product()
    }

    /// Panics unless all rows of `k` and `n` elements lie inside `a_len` and `c_len`, and no two rows of `c` overlap.
    fn check(&self, a_len: usize, k: usize, c_len: usize, n: usize) {
        let mut a_end = self.from_pitch * self.batch.saturating_sub(1) + k;
        let mut row_end = n;
        for axis in self.axes.iter().rev() {
            assert!(axis.from.iter().all(|tap| tap.len() == axis.to.len()), "a tap maps every coordinate");
            assert!(axis.to.windows(2).all(|w| w[0] + row_end <= w[1]), "rows must not overlap");
            row_end += axis.to.last().copied().unwrap_or(0);
            a_end += axis.from.iter().flatten().flatten().max().copied().unwrap_or(0);
        }
        assert!(self.batch < 2 || row_end <= self.to_pitch, "rows must not overlap");
        assert!(self.to_pitch * self.batch.saturating_sub(1) + row_end <= c_len, "rows must lie inside c");
        assert!(a_end <= a_len, "rows must lie inside a");
    }
}

/// How `b` is packed: columns in blocks of a few vectors, each block `[tap][k][its columns]`; columns beyond `n` are 0.
#[derive(Clone)]
pub struct Panels {
    isa: Isa,
    n: usize,
}

impl Panels {
    /// For `n` columns.
    pub fn new(isa: Isa, n: usize) -> Panels {
        Panels { isa, n }
    }

    /// Floats of the packed form of `taps_k` rows.
    pub fn packed_len(&self, taps_k: usize) -> usize {
        self.n.next_multiple_of(self.isa.lanes()) * taps_k
    }

    /// First column and packed width of each block.
    pub fn blocks(&self) -> Vec<(usize, usize)> {
        let lanes = self.isa.lanes();
        let vectors = self.n.div_ceil(lanes);
        let num_blocks = vectors.div_ceil(max_vectors(self.isa));
        // As even as possible: a narrow last block would waste its loads of `a`.
        let start = |i: usize| vectors * i / num_blocks * lanes;
        (0..num_blocks).map(|i| (start(i), start(i + 1) - start(i))).collect()
    }
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

/// `c` is shared by tasks that write disjoint rows and columns of it.
#[derive(Clone, Copy)]
struct SharedMut(*mut f32);
// SAFETY: every task writes only its own rows and columns; `Grid::check` made sure that rows do not overlap.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    fn get(self) -> *mut f32 {
        self.0
    }
}

/// `c[row] = init + sum over taps of a[row, tap][..k] b[tap]` for the rows of `grid`, in parallel. `b` is packed as
/// `panels` says.
///
/// # Panics
/// Where offsets lie outside the slices or rows of `c` overlap.
pub fn add_taps(grid: &Grid, panels: &Panels, a: &[f32], k: usize, b: &[f32], c: &mut [f32], init: Init) {
    let (num_rows, num_taps) = (grid.num_rows(), grid.num_taps());
    assert!(Isa::available().contains(&panels.isa), "the processor has the instruction set");
    assert_eq!(b.len(), panels.packed_len(num_taps * k), "b is packed for these taps");
    if let Init::Columns(columns) = init {
        assert_eq!(columns.len(), panels.n, "a first value for each column");
    }
    grid.check(a.len(), k, c.len(), panels.n);
    let zeros = vec![0f32; k];
    let sum = Sum { grid, panels, a, k, b, zeros: &zeros, c: SharedMut(c.as_mut_ptr()), init };
    let blocks = panels.blocks();
    let row_tasks = num_rows.div_ceil(TASK_ROWS);
    // Few rows: give each block of columns to a task of its own, so that there is work for all threads.
    let blocks_per_task = if row_tasks >= 32 { blocks.len() } else { 1 };
    let column_tasks = blocks.len().div_ceil(blocks_per_task);
    (0..row_tasks * column_tasks).into_par_iter().for_each_init(RowTable::default, |table, task| {
        let (row_task, column_task) = (task / column_tasks, task % column_tasks);
        let rows = num_rows * row_task / row_tasks..num_rows * (row_task + 1) / row_tasks;
        table.fill(&sum, rows);
        blocks
            .iter()
            .skip(column_task * blocks_per_task)
            .take(blocks_per_task)
            .for_each(|&block| sum.run(table, block));
    });
}

struct Sum<'a> {
    grid: &'a Grid,
    panels: &'a Panels,
    a: &'a [f32],
    k: usize,
    b: &'a [f32],
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
    at: Vec<[usize; 4]>,   // [row]: batch and the coordinates
}
// SAFETY: the pointers are only used inside the task that filled them, while `Sum` borrows what they point to.
unsafe impl Send for RowTable {}

impl RowTable {
    fn fill(&mut self, sum: &Sum, rows: std::ops::Range<usize>) {
        let [t, h, w] = &sum.grid.axes;
        let (nt, nh, nw) = (t.to.len(), h.to.len(), w.to.len());
        self.num_rows = rows.len();
        self.at.clear();
        self.at.extend(rows.map(|r| [r / (nt * nh * nw), r / (nh * nw) % nt, r / nw % nh, r % nw]));
        self.to.clear();
        self.to.extend(self.at.iter().map(|&[n, jt, jh, jw]| {
            let offset = n * sum.grid.to_pitch + t.to[jt] + h.to[jh] + w.to[jw];
            // SAFETY: `Grid::check` has seen that the row lies inside `c`.
            unsafe { sum.c.get().add(offset) }
        }));
        self.from.clear();
        for (t, h) in t.from.iter().flat_map(|t| h.from.iter().map(move |h| (t, h))) {
            for w in &w.from {
                self.from.extend(self.at.iter().map(|&[n, jt, jh, jw]| match (t[jt], h[jh], w[jw]) {
                    // SAFETY: `Grid::check` has seen that the row lies inside `a`.
                    (Some(t), Some(h), Some(w)) => unsafe { sum.a.as_ptr().add(n * sum.grid.from_pitch + t + h + w) },
                    _ => sum.zeros.as_ptr(),
                }));
            }
        }
    }
}

impl Sum<'_> {
    /// All rows of the table, one block of columns.
    fn run(&self, table: &RowTable, (first_column, width): (usize, usize)) {
        let isa = self.panels.isa;
        let (lanes, num_taps) = (isa.lanes(), self.grid.num_taps());
        let num_vectors = width / lanes;
        let columns = width.min(self.panels.n - first_column);
        let max_rows = tile_rows(isa, num_vectors);
        let panel = &self.b[first_column * num_taps * self.k..][..width * num_taps * self.k];
        let k_block = (B_BLOCK_BYTES / (width * size_of::<f32>())).max(1);
        // A block of `b` is several whole taps, or a part of one.
        let (taps_step, k_step) = (((k_block / self.k).max(1)).min(num_taps), self.k.min(k_block));
        for tap in (0..num_taps).step_by(taps_step) {
            for k_first in (0..self.k).step_by(k_step) {
                let is_first = tap == 0 && k_first == 0;
                let init = match self.init {
                    _ if !is_first => TileInit::Add,
                    Init::Add => TileInit::Add,
                    Init::Zero => TileInit::Zero,
                    Init::Columns(values) => TileInit::Columns(values[first_column..].as_ptr()),
                };
                let mut tile = Tile {
                    from: table.from[tap * table.num_rows..].as_ptr(),
                    from_pitch: table.num_rows,
                    to: table.to.as_ptr(),
                    first_column,
                    num_taps: taps_step.min(num_taps - tap),
                    k_first,
                    k: k_step.min(self.k - k_first),
                    b: panel[(tap * self.k + k_first) * width..].as_ptr(),
                    last_lanes: columns - (num_vectors - 1) * lanes,
                    init,
                };
                for row in (0..table.num_rows).step_by(max_rows) {
                    let rows = max_rows.min(table.num_rows - row);
                    // SAFETY: `row..row + rows` are rows of the table; its pointers were made from checked offsets; the
                    // block of `b` has `num_taps * k` rows of `width`; the processor has `isa`.
                    unsafe {
                        tile.from = table.from.as_ptr().add(tap * table.num_rows + row);
                        tile.to = table.to.as_ptr().add(row);
                        run_tile(isa, rows, num_vectors, &tile);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum TileInit {
    Zero,
    Columns(*const f32),
    Add,
}

/// One call of a kernel: a few rows, one block of columns, a range of taps or a range of `k`.
struct Tile {
    from: *const *const f32, // [tap][row], `from_pitch` from one tap to the next
    from_pitch: usize,
    to: *const *mut f32, // [row]
    first_column: usize,
    num_taps: usize,
    k_first: usize,
    k: usize,
    b: *const f32, // [tap][k][column]
    last_lanes: usize,
    init: TileInit,
}

/// The kernel: `R` rows, `V` vectors of columns, all accumulators in registers.
///
/// # Safety
/// `X`'s instruction set is there; `from` holds `num_taps` lists of `R` rows of `k_first + k` readable floats, `to` holds
/// `R` rows writable up to the tile's last column and written by nobody else, `b` has `num_taps * k` rows of `V` vectors.
#[inline(always)]
unsafe fn tile<X: Vector, const R: usize, const V: usize>(tile: &Tile) {
    unsafe {
        let mask = X::mask(tile.last_lanes);
        let is_full = tile.last_lanes == X::LANES;
        let mut sums = [[X::splat(0.0); V]; R];
        let load = |from: *const f32, v: usize| match v + 1 < V || is_full {
            true => X::load(from.add(v * X::LANES)),
            false => X::load_masked(from.add(v * X::LANES), mask),
        };
        match tile.init {
            TileInit::Zero => {}
            TileInit::Columns(values) => {
                for sums in &mut sums {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = load(values, v);
                    }
                }
            }
            TileInit::Add => {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = load((*tile.to.add(r)).add(tile.first_column), v);
                    }
                }
            }
        }
        let mut b = tile.b;
        for tap in 0..tile.num_taps {
            let mut rows = [std::ptr::null::<f32>(); R];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = (*tile.from.add(tap * tile.from_pitch + r)).add(tile.k_first);
            }
            for k in 0..tile.k {
                let mut columns = [X::splat(0.0); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    *column = X::load(b.wrapping_add(v * X::LANES));
                }
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let factor = X::broadcast(row.wrapping_add(k));
                    for (column, sum) in columns.iter().zip(sums) {
                        *sum = factor.mul_add(*column, *sum);
                    }
                }
                b = b.wrapping_add(V * X::LANES);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let to = (*tile.to.add(r)).add(tile.first_column);
            for (v, sum) in sums.iter().enumerate() {
                match v + 1 < V || is_full {
                    true => sum.store(to.add(v * X::LANES)),
                    false => sum.store_masked(to.add(v * X::LANES), mask),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const R: usize, const V: usize>(t: &Tile) {
    unsafe { tile::<std::arch::x86_64::__m512, R, V>(t) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const R: usize, const V: usize>(t: &Tile) {
    unsafe { tile::<std::arch::x86_64::__m256, R, V>(t) }
}

unsafe fn tile_portable<const R: usize, const V: usize>(t: &Tile) {
    unsafe { tile::<Portable, R, V>(t) }
}

/// Calls the kernel for `rows` (at most [`MAX_TILE_ROWS`]) and `num_vectors`.
///
/// # Safety
/// As [`tile`], and the processor has `isa`.
unsafe fn run_tile(isa: Isa, rows: usize, num_vectors: usize, t: &Tile) {
    debug_assert!(rows <= MAX_TILE_ROWS);
    macro_rules! by_rows {
        ($kernel:ident, $v:literal) => {
            match rows {
                1 => $kernel::<1, $v>(t),
                2 => $kernel::<2, $v>(t),
                3 => $kernel::<3, $v>(t),
                4 => $kernel::<4, $v>(t),
                5 => $kernel::<5, $v>(t),
                6 => $kernel::<6, $v>(t),
                7 => $kernel::<7, $v>(t),
                _ => $kernel::<8, $v>(t),
            }
        };
    }
    unsafe {
        match (isa, num_vectors) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 1) => by_rows!(tile_avx512, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 2) => by_rows!(tile_avx512, 2),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 3) => by_rows!(tile_avx512, 3),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, _) => by_rows!(tile_avx512, 4),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, 1) => by_rows!(tile_avx2, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => by_rows!(tile_avx2, 2),
            (_, 1) => by_rows!(tile_portable, 1),
            (_, _) => by_rows!(tile_portable, 2),
        }
    }
}
