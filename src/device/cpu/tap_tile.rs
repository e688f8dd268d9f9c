//! The kernel of `tap_sum`: a few rows and vectors of columns, all accumulators in registers.

use super::Isa;
use super::dispatch::{by_rows, tiles_by_instruction_set};
use super::vector::Vector;

/// Rows of a tile for 1, 2, 3, 4 vectors of columns, so that accumulators, columns and a factor fit the registers and
/// there are enough independent sums to hide the latency of a multiply-add.
pub(super) const fn tile_rows(isa: Isa, num_vectors: usize) -> usize {
    match (isa, num_vectors) {
        (Isa::Avx512, 4) => 6,
        (Isa::Avx512, _) => 8,
        (_, 2) => 6,
        (_, _) => 8,
    }
}

/// Most vectors of columns in a tile.
pub(super) const fn max_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 | Isa::Portable => 2,
    }
}

#[derive(Clone, Copy)]
pub(super) enum TileInit {
    Zero,
    Columns(*const f32),
    Add,
}

/// One call of a kernel: a few rows, one block of columns, a range of taps or a range of `k`.
pub(super) struct Tile {
    pub from: *const *const f32, // [tap][row], `from_pitch` from one tap to the next
    pub from_pitch: usize,
    pub to: *const *mut f32, // [row]
    pub first_column: usize,
    pub num_taps: usize,
    pub k_first: usize,
    pub k: usize,
    pub b: *const f32, // [tap][k][column]
    pub last_lanes: usize,
    pub init: TileInit,
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

tiles_by_instruction_set!();

/// Calls the kernel for `rows` (1 to 8) and `num_vectors`.
///
/// # Safety
/// As [`tile`], and the processor has `isa`.
pub(super) unsafe fn run_tile(isa: Isa, rows: usize, num_vectors: usize, t: &Tile) {
    macro_rules! tile {
        ($kernel:ident, $v:literal) => {
            by_rows!($kernel, rows, $v, t, [1 2 3 4 5 6 7 8])
        };
    }
    unsafe {
        match (isa, num_vectors) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 1) => tile!(tile_avx512, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 2) => tile!(tile_avx512, 2),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, 3) => tile!(tile_avx512, 3),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, _) => tile!(tile_avx512, 4),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, 1) => tile!(tile_avx2, 1),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, _) => tile!(tile_avx2, 2),
            (_, 1) => tile!(tile_portable, 1),
            (_, _) => tile!(tile_portable, 2),
        }
    }
}
