//! `acc[row][column] += sum over positions of dy[p][row] * x[p][column]`: the sum behind a convolution's filter gradient.
//! Accumulators stay in registers over a list of runs of positions; both operands are read where they lie.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::Isa;
use super::dispatch::{SharedMut, by_rows, tiles_by_instruction_set};
use super::scratch::{self, List};
use super::vector::Vector;

/// Most rows of a tile: accumulators, columns and a factor fit the registers.
const fn max_tile_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 14,
        Isa::Avx2 | Isa::Portable => 6,
    }
}

/// Vectors of columns of a tile.
const TILE_VECTORS: usize = 2;

/// Tiles that must read a copied block to make it worth the copy.
const MIN_READERS: usize = 3;

/// Consecutive positions of `dy` and where they meet `x`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Run {
    /// Offset in `x` of the first.
    pub x: usize,
    /// Index of the first among the positions of `dy`.
    pub position: usize,
    /// How many.
    pub count: usize,
}

/// Finds the runs of some lines for a tap, at most one a line.
pub type FindRuns<'a> = dyn Fn(Range<usize>, usize, &mut List<Run>) + Sync + 'a;

/// The lines of a split.
pub type LinesOfSplit<'a> = dyn Fn(usize) -> Range<usize> + Sync + 'a;

/// `acc[split][row][tap][column] = sum of dy[position][row] * x[source(position, tap)][column]`, the sum over the
/// positions of each split.
pub struct OuterSum<'a> {
    /// The instruction set.
    pub isa: Isa,
    /// Columns of position `i` of a run: from `run.x + i * x_step` on.
    pub x: &'a [f32],
    /// Distance in `x` of two positions of a run.
    pub x_step: usize,
    /// Rows of a position: from `position * dy_step` on.
    pub dy: &'a [f32],
    /// Distance in `dy` of two positions.
    pub dy_step: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns of a tap.
    pub columns: usize,
    /// Number of taps.
    pub taps: usize,
    /// Positions in each line; lines are not cut.
    pub line: usize,
    /// Number of splits.
    pub num_splits: usize,
    /// The lines of each.
    pub lines: &'a LinesOfSplit<'a>,
    /// Lines are taken in chunks of about so many positions. Sums are read and written once for each chunk.
    pub chunk_positions: usize,
    /// Whether sums go on from what `acc` holds; else it is overwritten.
    pub goes_on: bool,
    /// Tasks that share the taps and columns of a split.
    pub column_tasks: usize,
    /// Replaces the list by the runs of some lines for a tap: positions whose source is inside.
    pub runs: &'a FindRuns<'a>,
}

impl OuterSum<'_> {
    /// Blocks of columns of all taps: what a task takes several of.
    pub fn num_column_blocks(isa: Isa, taps: usize, columns: usize) -> usize {
        taps * columns.div_ceil(TILE_VECTORS * isa.lanes())
    }

    /// Forms the sums in parallel. The order of each sum depends on the lines and the size of chunks alone.
    ///
    /// # Panics
    /// Where `acc` has not the size of all sums, or a run lies outside the operands or its chunk.
    pub fn run(&self, acc: &mut [f32]) {
        assert!(self.isa.is_available(), "the processor has the instruction set");
        // Saturating, here and in the checks below: a size too large for its type must not wrap around and pass.
        let split_len = self.rows.saturating_mul(self.taps).saturating_mul(self.columns);
        assert_eq!(acc.len(), self.num_splits.saturating_mul(split_len), "sums for each split");
        (0..self.num_splits).for_each(|split| self.check_lines(&(self.lines)(split)));
        let shared = SharedMut::new(acc);
        let num_blocks = Self::num_column_blocks(self.isa, self.taps, self.columns);
        let tasks = self.column_tasks.clamp(1, num_blocks);
        (0..self.num_splits * tasks).into_par_iter().for_each(|task| {
            let (split, task) = (task / tasks, task % tasks);
            let blocks = num_blocks * task / tasks..num_blocks * (task + 1) / tasks;
            let acc = shared.get().wrapping_add(split * split_len);
            let lines = (self.lines)(split);
            let num_chunks = self.positions(&lines).len().div_ceil(self.chunk_positions).min(lines.len()).max(1);
            let chunk = |i: usize| lines.start + lines.len() * i / num_chunks;
            let mut copies = Copies::new(self, lines.len().div_ceil(num_chunks), blocks.len());
            for i in 0..num_chunks {
                let lines = chunk(i)..chunk(i + 1);
                copies.start(self, &lines);
                blocks.clone().for_each(|block| self.add(&mut copies, &lines, block, acc, i == 0 && !self.goes_on));
            }
        });
    }

    /// Row ranges of the tiles, as even as possible: a tile of few rows would not hide the latency of its sums.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, num_tiles) = (self.rows, self.num_tiles());
        (0..num_tiles).map(move |i| rows * i / num_tiles..rows * (i + 1) / num_tiles)
    }

    fn num_tiles(&self) -> usize {
        self.rows.div_ceil(max_tile_rows(self.isa))
    }

    fn copies_columns(&self) -> bool {
        self.num_tiles() >= MIN_READERS
    }

    /// One block of columns, all rows, the positions of one chunk.
    fn add(&self, copies: &mut Copies, lines: &Range<usize>, block: usize, acc: *mut f32, is_first: bool) {
        let lanes = self.isa.lanes();
        let blocks_per_tap = self.columns.div_ceil(TILE_VECTORS * lanes);
        let (tap, column) = (block / blocks_per_tap, block % blocks_per_tap * TILE_VECTORS * lanes);
        let width = (TILE_VECTORS * lanes).min(self.columns - column);
        if copies.tap != Some(tap) {
            (self.runs)(lines.clone(), tap, &mut copies.runs);
            copies.runs.retain(|run| run.count > 0);
            self.check(&copies.runs, lines);
            copies.tap = Some(tap);
        }
        let copies_columns = self.copies_columns();
        if copies_columns {
            copies.copy_columns(self, column, width);
        }
        let num_positions = self.positions(lines).len();
        let acc_pitch = self.taps * self.columns;
        for rows in self.tiles() {
            let (dy, dy_step, skipped) = match copies.has_rows {
                true => (&copies.rows[rows.start * num_positions..], rows.len(), lines.start * self.line),
                false => (&self.dy[rows.start..], self.dy_step, 0),
            };
            let (x, x_step, runs) = match copies_columns {
                true => (&copies.columns[..], width, &copies.column_runs[..]),
                false => (&self.x[column..], self.x_step, &copies.runs[..]),
            };
            let num_vectors = width.div_ceil(lanes);
            let tile = Tile {
                x: x.as_ptr(),
                x_step,
                dy: dy.as_ptr(),
                dy_step,
                skipped,
                runs,
                acc: acc.wrapping_add(rows.start * acc_pitch + tap * self.columns + column),
                acc_pitch,
                last_lanes: width - (num_vectors - 1) * lanes,
                is_first,
            };
            // SAFETY: `check` has seen that runs lie inside `x` and the chunk, `check_lines` that the chunk lies inside
            // `dy`; rows and columns lie inside the split of `acc` and belong to this task; the processor has `isa`.
            unsafe { run_tile(self.isa, rows.len(), num_vectors, &tile) };
        }
    }

    fn positions(&self, lines: &Range<usize>) -> Range<usize> {
        lines.start.saturating_mul(self.line)..lines.end.saturating_mul(self.line)
    }

    /// Panics unless the positions of `lines` lie inside `dy`.
    fn check_lines(&self, lines: &Range<usize>) {
        let positions = self.positions(lines);
        let end = positions.end.saturating_sub(1).saturating_mul(self.dy_step).saturating_add(self.rows);
        assert!(positions.is_empty() || end <= self.dy.len(), "positions lie inside dy");
    }

    /// Panics unless the positions of `runs`, none of which is empty, are of `lines` and meet `x`.
    fn check(&self, runs: &[Run], lines: &Range<usize>) {
        let positions = self.positions(lines);
        for run in runs {
            let last = run.x.saturating_add((run.count - 1).saturating_mul(self.x_step));
            assert!(last.saturating_add(self.columns) <= self.x.len(), "runs lie inside x");
            let end = run.position.saturating_add(run.count);
            assert!(positions.start <= run.position && end <= positions.end, "runs of the chunk");
        }
    }
}

/// Operands side by side, for one chunk of positions: positions that are a power of two apart would throw each other out
/// of the first-level cache. The memory is used again.
struct Copies {
    rows: List<f32>, // [tile][position][row]
    has_rows: bool,
    /// The tap that `runs` are of.
    tap: Option<usize>,
    runs: List<Run>,
    columns: List<f32>, // [position][column]
    column_runs: List<Run>,
}

/// Floats that [`copy_short`] writes at once and may take back.
const SHORT: usize = 16;

impl Copies {
    /// For chunks of at most `lines` lines, of which `readers` blocks of columns will be formed.
    fn new(sum: &OuterSum, lines: usize, readers: usize) -> Copies {
        let (positions, has_rows) = (lines * sum.line, readers >= MIN_READERS);
        let columns = if sum.copies_columns() { TILE_VECTORS * sum.isa.lanes() } else { 0 };
        Copies {
            rows: scratch::list(if has_rows { positions * sum.rows + SHORT } else { 0 }),
            has_rows,
            tap: None,
            runs: scratch::list(lines),
            columns: scratch::list(positions * columns + SHORT),
            column_runs: scratch::list(lines),
        }
    }

    /// Turns to another chunk.
    fn start(&mut self, sum: &OuterSum, lines: &Range<usize>) {
        self.tap = None;
        self.rows.clear();
        if self.has_rows {
            for rows in sum.tiles() {
                for position in sum.positions(lines) {
                    copy_short(&sum.dy[position * sum.dy_step + rows.start..], rows.len(), &mut self.rows);
                }
            }
        }
    }

    fn copy_columns(&mut self, sum: &OuterSum, column: usize, width: usize) {
        self.columns.clear();
        self.column_runs.clear();
        for run in self.runs.iter() {
            self.column_runs.push(Run { x: self.columns.len(), ..*run });
            for i in 0..run.count {
                copy_short(&sum.x[run.x + column + i * sum.x_step..], width, &mut self.columns);
            }
        }
    }
}

/// Appends `from[..len]`, `len` at most 32. Lengths that are known when compiled become a few vector moves.
#[inline(always)]
fn copy_short(from: &[f32], len: usize, to: &mut List<f32>) {
    match (len, from.first_chunk::<32>(), from.first_chunk::<SHORT>()) {
        (32, Some(from), _) => to.extend_from_slice(from),
        (..=SHORT, _, Some(from)) => {
            let end = to.len() + len;
            to.extend_from_slice(from);
            to.truncate(end);
        }
        _ => to.extend_from_slice(&from[..len]),
    }
}

/// One call of a kernel.
struct Tile<'a> {
    x: *const f32,
    x_step: usize,
    dy: *const f32,
    dy_step: usize,
    /// Positions before the first one that `dy` holds.
    skipped: usize,
    runs: &'a [Run],
    acc: *mut f32,
    acc_pitch: usize,
    last_lanes: usize,
    /// Begin with zero instead of `acc`.
    is_first: bool,
}

/// The kernel: `R` rows, `V` vectors of columns (the last may be partial), all accumulators in registers.
///
/// # Safety
/// `X`'s instruction set is there; every position of the runs has `R` readable floats in `dy` and the tile's columns in
/// `x`; `acc` has `R` rows of the tile's columns that nobody else touches.
#[inline(always)]
unsafe fn tile<X: Vector, const R: usize, const V: usize>(tile: &Tile) {
    unsafe {
        let mask = X::mask(tile.last_lanes);
        let mut sums = [[X::splat(0.0); V]; R];
        if !tile.is_first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let from = tile.acc.add(r * tile.acc_pitch + v * X::LANES).cast_const();
                    *sum = if v + 1 < V { X::load(from) } else { X::load_masked(from, mask) };
                }
            }
        }
        for run in tile.runs {
            let (mut x, mut dy) = (tile.x.add(run.x), tile.dy.add((run.position - tile.skipped) * tile.dy_step));
            for _ in 0..run.count {
                let mut columns = [X::splat(0.0); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    let from = x.wrapping_add(v * X::LANES);
                    *column = if v + 1 < V { X::load(from) } else { X::load_masked(from, mask) };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = X::broadcast(dy.wrapping_add(r));
                    for (column, sum) in columns.iter().zip(sums) {
                        *sum = factor.mul_add(*column, *sum);
                    }
                }
                x = x.wrapping_add(tile.x_step);
                dy = dy.wrapping_add(tile.dy_step);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let to = tile.acc.add(r * tile.acc_pitch + v * X::LANES);
                if v + 1 < V { sum.store(to) } else { sum.store_masked(to, mask) }
            }
        }
    }
}

tiles_by_instruction_set!();

/// Calls the kernel for `rows` (at most 14) and `num_vectors`.
///
/// # Safety
/// As [`tile`], and the processor has `isa`.
unsafe fn run_tile(isa: Isa, rows: usize, num_vectors: usize, t: &Tile) {
    macro_rules! tile {
        ($kernel:ident, $v:literal) => {
            by_rows!($kernel, rows, $v, t, [1 2 3 4 5 6 7 8 9 10 11 12 13 14])
        };
    }
    unsafe {
        match (isa, num_vectors) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 1) => tile!(tile_avx512, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, _) => tile!(tile_avx512, 2),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, 1) => tile!(tile_avx2, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => tile!(tile_avx2, 2),
            (_, 1) => tile!(tile_portable, 1),
            (_, _) => tile!(tile_portable, 2),
        }
    }
}
