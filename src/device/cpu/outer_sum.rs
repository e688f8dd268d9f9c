//! `acc[row][column] += sum over positions of dy[p][row] * x[p][column]`: the sum behind a convolution's filter gradient.
//! Accumulators stay in registers over a list of runs of positions; both operands are read where they lie.

use super::Isa;
use super::vector::{Portable, Vector};

/// Most rows of a tile for 1 and 2 vectors of columns.
const fn max_tile_rows(isa: Isa, num_vectors: usize) -> usize {
    match (isa, num_vectors) {
        (Isa::Avx512, _) => 14,
        (_, 1) => 12,
        (_, _) => 6,
    }
}

/// Vectors of columns of a tile.
const TILE_VECTORS: usize = 2;

/// Positions at equal distances.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Offset in `x` of the first.
    pub x: usize,
    /// Offset in `dy` of the first.
    pub dy: usize,
    /// How many.
    pub count: usize,
}

/// The operands of [`add_outer_products`].
pub struct Outer<'a> {
    /// Columns of position `i` of a run: from `run.x + i * x_step` on.
    pub x: &'a [f32],
    /// Distance in `x` of two positions of a run.
    pub x_step: usize,
    /// Rows of position `i` of a run: from `run.dy + i * dy_step` on.
    pub dy: &'a [f32],
    /// Distance in `dy` of two positions of a run.
    pub dy_step: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
}

/// `acc[row * acc_pitch + column] += sum of dy[row] * x[column]` over all positions of `runs`, in their order.
///
/// # Panics
/// Where offsets lie outside the slices.
pub fn add_outer_products(isa: Isa, operands: &Outer, runs: &[Run], acc: &mut [f32], acc_pitch: usize) {
    let Outer { x, x_step, dy, dy_step, rows, columns } = *operands;
    assert!(Isa::available().contains(&isa), "the processor has the instruction set");
    for run in runs.iter().filter(|r| r.count > 0) {
        assert!(run.x + (run.count - 1) * x_step + columns <= x.len(), "runs lie inside x");
        assert!(run.dy + (run.count - 1) * dy_step + rows <= dy.len(), "runs lie inside dy");
    }
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * acc_pitch + columns <= acc.len() && columns <= acc_pitch, "rows lie inside acc");
    let block = TILE_VECTORS * isa.lanes();
    for column in (0..columns).step_by(block) {
        let width = block.min(columns - column);
        let num_vectors = width.div_ceil(isa.lanes());
        let num_tiles = rows.div_ceil(max_tile_rows(isa, num_vectors));
        for i in 0..num_tiles {
            // As even as possible: a tile of few rows would not hide the latency of its sums.
            let (row, end) = (rows * i / num_tiles, rows * (i + 1) / num_tiles);
            let tile = Tile {
                x: x.as_ptr().wrapping_add(column),
                x_step,
                dy: dy.as_ptr().wrapping_add(row),
                dy_step,
                runs,
                acc: acc[row * acc_pitch + column..].as_mut_ptr(),
                acc_pitch,
                last_lanes: width - (num_vectors - 1) * isa.lanes(),
            };
            // SAFETY: rows, columns and runs were checked above; the processor has `isa`.
            unsafe { run_tile(isa, end - row, num_vectors, &tile) };
        }
    }
}

/// One call of a kernel.
struct Tile<'a> {
    x: *const f32,
    x_step: usize,
    dy: *const f32,
    dy_step: usize,
    runs: &'a [Run],
    acc: *mut f32,
    acc_pitch: usize,
    last_lanes: usize,
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
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                let from = tile.acc.add(r * tile.acc_pitch + v * X::LANES).cast_const();
                *sum = if v + 1 < V { X::load(from) } else { X::load_masked(from, mask) };
            }
        }
        for run in tile.runs {
            let (mut x, mut dy) = (tile.x.add(run.x), tile.dy.add(run.dy));
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

/// Calls the kernel for `rows` (at most 14) and `num_vectors`.
///
/// # Safety
/// As [`tile`], and the processor has `isa`.
unsafe fn run_tile(isa: Isa, rows: usize, num_vectors: usize, t: &Tile) {
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
                8 => $kernel::<8, $v>(t),
                9 => $kernel::<9, $v>(t),
                10 => $kernel::<10, $v>(t),
                11 => $kernel::<11, $v>(t),
                12 => $kernel::<12, $v>(t),
                13 => $kernel::<13, $v>(t),
                _ => $kernel::<14, $v>(t),
            }
        };
    }
    unsafe {
        match (isa, num_vectors) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 1) => by_rows!(tile_avx512, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, _) => by_rows!(tile_avx512, 2),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, 1) => by_rows!(tile_avx2, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => by_rows!(tile_avx2, 2),
            (_, 1) => by_rows!(tile_portable, 1),
            (_, _) => by_rows!(tile_portable, 2),
        }
    }
}
