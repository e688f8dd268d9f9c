//! Transposition of small blocks, for packing filters.

use super::Isa;

/// Rows and columns of a block.
pub const BLOCK: usize = 16;

/// `to[column * to_pitch + row] = from[row * from_pitch + column]` for `rows` and `columns`, each at most [`BLOCK`].
///
/// # Panics
/// Where a slice is too short.
pub fn transpose_block(
    isa: Isa,
    [rows, columns]: [usize; 2],
    from: &[f32],
    from_pitch: usize,
    to: &mut [f32],
    to_pitch: usize,
) {
    let end =
        |lines: usize, pitch: usize, len: usize| pitch.saturating_mul(lines.saturating_sub(1)).saturating_add(len);
    assert!(end(rows, from_pitch, columns) <= from.len() && end(columns, to_pitch, rows) <= to.len(), "a whole block");
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && rows == BLOCK && columns == BLOCK {
        assert!(isa.is_available(), "the processor has the instruction set");
        // SAFETY: 16 rows of 16 floats lie inside either slice (checked above), and the processor has AVX-512.
        unsafe { transpose_avx512(from.as_ptr(), from_pitch, to.as_mut_ptr(), to_pitch) };
        return;
    }
    let _ = isa;
    for row in 0..rows {
        let from = &from[row * from_pitch..][..columns];
        let to = to[row..].iter_mut().step_by(to_pitch);
        to.zip(from).for_each(|(to, from)| *to = *from);
    }
}

/// # Safety
/// 16 rows of 16 floats at the given pitches can be read from `from` and written to `to`; the processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_ps();
    let mut r = [zero; BLOCK];
    for (i, row) in r.iter_mut().enumerate() {
        // SAFETY: the caller's duty.
        *row = unsafe { _mm512_loadu_ps(from.wrapping_add(i * from_pitch)) };
    }
    // Four rows at a time: 4 x 4 blocks inside each 128-bit lane are turned around.
    let mut t = [zero; BLOCK];
    for i in (0..BLOCK).step_by(4) {
        let (a, b) = (_mm512_unpacklo_ps(r[i], r[i + 1]), _mm512_unpackhi_ps(r[i], r[i + 1]));
        let (c, d) = (_mm512_unpacklo_ps(r[i + 2], r[i + 3]), _mm512_unpackhi_ps(r[i + 2], r[i + 3]));
        t[i] = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
        t[i + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
        t[i + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
        t[i + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
    }
    // t[4 q + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 q .. 4 q + 4: gather the lanes of a column.
    for j in 0..4 {
        let (a, b) = (t[j], t[4 + j]);
        let (c, d) = (t[8 + j], t[12 + j]);
        let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
        let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
        let columns = [
            (j, _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even)),
            (4 + j, _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd)),
            (8 + j, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even)),
            (12 + j, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd)),
        ];
        for (column, values) in columns {
            // SAFETY: the caller's duty.
            unsafe { _mm512_storeu_ps(to.wrapping_add(column * to_pitch), values) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_turned_around() {
        for isa in Isa::available() {
            for [rows, columns] in [[16, 16], [16, 5], [7, 16], [1, 1]] {
                let (from_pitch, to_pitch) = (19, 23);
                let from: Vec<f32> = (0..BLOCK * from_pitch).map(|i| i as f32).collect();
                let mut to = vec![-1.0; BLOCK * to_pitch];
                transpose_block(isa, [rows, columns], &from, from_pitch, &mut to, to_pitch);
                for (i, &got) in to.iter().enumerate() {
                    let (column, row) = (i / to_pitch, i % to_pitch);
                    let want = if row < rows && column < columns { (row * from_pitch + column) as f32 } else { -1.0 };
                    assert_eq!(got, want, "{isa:?} {rows} x {columns}: row {row}, column {column}");
                }
            }
        }
    }
}
