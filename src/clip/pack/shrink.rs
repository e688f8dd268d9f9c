//! A frame to a smaller one: a triangle as wide as the stride in both directions, the filter of
//! [`ops::resample`](crate::ops::resample). In f32 with sums in a fixed order: the same bytes on every machine.

use crate::ops::resample::{Axis, Filter, Taps, taps};

pub(super) struct Shrink {
    rows: Vec<Taps>,
    columns: Vec<Taps>,
    width_px: usize,
    /// A row of the source's width, already filtered in y.
    blended: Vec<f32>,
}

impl Shrink {
    /// From and to (rows, columns).
    pub fn new(from: (usize, usize), to: (usize, usize)) -> Shrink {
        let table = |from: usize, to: usize| -> Vec<Taps> {
            let axis = Axis::crop_then_resize(0, from, to);
            (0..to as u32).map(|i| taps(Filter::TrilinearAntialias, &axis, i, false)).collect()
        };
        Shrink {
            rows: table(from.0, to.0),
            columns: table(from.1, to.1),
            width_px: from.1,
            blended: vec![0.0; from.1 * 3],
        }
    }

    /// `[row][column][3]` of the smaller frame.
    pub fn frame(&mut self, rgb: &[u8]) -> Vec<u8> {
        let row_bytes = self.width_px * 3;
        let mut out = Vec::with_capacity(self.rows.len() * self.columns.len() * 3);
        for taps in &self.rows {
            self.blended.fill(0.0);
            for (weight, row) in taps.weights.iter().zip(rgb[taps.first * row_bytes..].chunks_exact(row_bytes)) {
                self.blended.iter_mut().zip(row).for_each(|(sum, byte)| *sum += f32::from(*byte) * weight);
            }
            for taps in &self.columns {
                let mut sums = [0f32; 3];
                let pixels = self.blended[taps.first * 3..].as_chunks::<3>().0;
                for (weight, pixel) in taps.weights.iter().zip(pixels) {
                    sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value * weight);
                }
                out.extend(sums.map(|sum| (sum + 0.5) as u8));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_stays_flat_and_a_step_moves_with_the_size() {
        let flat = vec![77u8; 12 * 20 * 3];
        assert!(Shrink::new((12, 20), (5, 7)).frame(&flat).iter().all(|&b| b == 77));
        // Left half 0, right half 200: at half the size every pixel away from the edge is one or the other.
        let step: Vec<u8> = (0..8 * 16).flat_map(|i| [if i % 16 < 8 { 0 } else { 200u8 }; 3]).collect();
        let small = Shrink::new((8, 16), (4, 8)).frame(&step);
        let row: Vec<u8> = small[..24].iter().step_by(3).copied().collect();
        assert_eq!((row[0], row[1], row[2], row[5], row[6], row[7]), (0, 0, 0, 200, 200, 200));
        assert!(row[3] < 100 && row[4] > 100 && i32::from(row[3]) + i32::from(row[4]) == 200, "{row:?}");
    }
}
