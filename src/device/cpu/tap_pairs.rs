//! The kernel of `tap_sum` for at most 8 columns on vectors of 16 lanes: two values of `k` at a time. Lane `2 c + i` sums the
//! products of column `c` with every `2 j + i`-th `k`; a row gives two neighbouring values to all lanes by one 64-bit
//! broadcast, so no lane is idle. The two sums of a column are added at the end.

use super::tap_tile::Tile;

#[cfg(target_arch = "x86_64")]
use super::tap_tile::TileInit;

/// Calls the kernel for `rows`, 1 to 8.
///
/// # Safety
/// As `run_tile`, with `b` packed in pairs, and the processor has AVX-512.
pub(super) unsafe fn run_pairs(rows: usize, t: &Tile) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's duty.
    unsafe {
        match rows {
            1 => tile_pairs::<1>(t),
            2 => tile_pairs::<2>(t),
            3 => tile_pairs::<3>(t),
            4 => tile_pairs::<4>(t),
            5 => tile_pairs::<5>(t),
            6 => tile_pairs::<6>(t),
            7 => tile_pairs::<7>(t),
            8 => tile_pairs::<8>(t),
            other => unreachable!("a tile of {other} rows"),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, t);
}

/// # Safety
/// As [`run_pairs`]; `from` and `to` hold `R` rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_pairs<const R: usize>(tile: &Tile) {
    use std::arch::x86_64::*;
    const EVEN_LANES: __mmask16 = 0x5555;
    let mut sums = [_mm512_setzero_ps(); R];
    let mut b = tile.b;
    for tap in 0..tile.num_taps {
        let mut rows = [std::ptr::null::<f32>(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: the table holds `R` rows of each tap.
            *row = unsafe { *tile.from.add(tap * tile.from_pitch + r) }.wrapping_add(tile.k_first);
        }
        for k in 0..tile.k / 2 {
            // SAFETY: `b` has a vector for each pair, each row `k` floats.
            unsafe {
                let columns = _mm512_loadu_ps(b);
                for (row, sum) in rows.iter().zip(&mut sums) {
                    let pair = row.wrapping_add(2 * k).cast::<f64>().read_unaligned();
                    *sum = _mm512_fmadd_ps(_mm512_castpd_ps(_mm512_set1_pd(pair)), columns, *sum);
                }
            }
            b = b.wrapping_add(16);
        }
        if !tile.k.is_multiple_of(2) {
            // SAFETY: as above; the last `k` has no neighbour, its second lanes are 0.
            unsafe {
                let columns = _mm512_loadu_ps(b);
                for (row, sum) in rows.iter().zip(&mut sums) {
                    let last = _mm512_set1_ps(row.wrapping_add(tile.k - 1).read_unaligned());
                    *sum = _mm512_fmadd_ps(_mm512_maskz_mov_ps(EVEN_LANES, last), columns, *sum);
                }
            }
            b = b.wrapping_add(16);
        }
    }
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    let mask = (1u16 << tile.last_lanes) - 1;
    for (r, sum) in sums.iter().enumerate() {
        let sum = _mm512_add_ps(_mm512_permutexvar_ps(even, *sum), _mm512_permutexvar_ps(odd, *sum));
        // SAFETY: `to` holds `R` rows with room for the columns of the mask; `Columns` has as many values.
        unsafe {
            let to = (*tile.to.add(r)).wrapping_add(tile.first_column);
            let first = match tile.init {
                TileInit::Zero => _mm512_setzero_ps(),
                TileInit::Columns(values) => _mm512_maskz_loadu_ps(mask, values),
                TileInit::Add => _mm512_maskz_loadu_ps(mask, to),
            };
            _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(first, sum));
        }
    }
}
