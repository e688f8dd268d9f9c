//! Which source pixels a sample reads, and with which weights: the one place that says what a filter means. The kernel
//! does the same arithmetic in the same order (`kernels/resample/taps.cuh`).

use super::{Axis, Filter};

/// The pixels `first .. first + weights.len()` that a sample reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Taps {
    /// First pixel.
    pub first: usize,
    /// Weights, which add up to 1.
    pub weights: Vec<f32>,
}

/// Position of sample `i`, moved into the clamp interval.
fn position(axis: &Axis, i: u32) -> f32 {
    // Fused, as on the device: otherwise a position just below an integer may round up to it.
    (i as f32).mul_add(axis.step, axis.start).clamp(axis.lo as f32, axis.hi as f32)
}

/// The taps of sample `i`; `is_time` tells the t axis, which [`Filter::NearestInTime`] treats differently.
pub fn taps(filter: Filter, axis: &Axis, i: u32, is_time: bool) -> Taps {
    let p = position(axis, i);
    let first = p.floor() as usize;
    match filter {
        Filter::NearestInTime if is_time => Taps { first, weights: vec![1.0] },
        Filter::TrilinearAntialias if axis.step.abs() > 1.0 => widened(axis, p),
        _ => {
            let fraction = p - p.floor();
            match fraction > 0.0 {
                true => Taps { first, weights: vec![1.0 - fraction, fraction] },
                false => Taps { first, weights: vec![1.0] },
            }
        }
    }
}

/// A triangle of half-width `|step|` around `p`, cut off at the clamp interval.
fn widened(axis: &Axis, p: f32) -> Taps {
    let half_width = axis.step.abs();
    let first = (p - half_width).ceil().max(axis.lo as f32) as usize;
    let last = (p + half_width).floor().min(axis.hi as f32) as usize;
    let mut weights: Vec<f32> = (first..=last).map(|j| (1.0 - (j as f32 - p).abs() / half_width).max(0.0)).collect();
    let sum: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    Taps { first, weights }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_taps_stay_in_the_clamp_interval() {
        let axis = Axis { start: -3.0, step: 0.75, lo: 2, hi: 4 };
        for i in 0..20 {
            let t = taps(Filter::Trilinear, &axis, i, false);
            assert!(t.first >= 2 && t.first + t.weights.len() <= 5, "sample {i}: {t:?}");
            assert_eq!(t.weights.iter().sum::<f32>(), 1.0, "sample {i}: {t:?}");
        }
        assert_eq!(taps(Filter::Trilinear, &axis, 0, false), Taps { first: 2, weights: vec![1.0] });
        assert_eq!(taps(Filter::Trilinear, &axis, 7, false), Taps { first: 2, weights: vec![0.75, 0.25] });
    }

    #[test]
    fn nearest_in_time_truncates() {
        let axis = Axis { start: 0.9, step: 1.0, lo: 0, hi: 9 };
        assert_eq!(taps(Filter::NearestInTime, &axis, 2, true), Taps { first: 2, weights: vec![1.0] });
        assert_eq!(taps(Filter::NearestInTime, &axis, 2, false).weights.len(), 2);
    }

    #[test]
    fn antialias_covers_twice_the_stride_and_is_linear_without_shrinking() {
        let shrink = Axis::crop_then_resize(0, 8, 2); // positions 1.5 and 5.5, half-width 4
        let t = taps(Filter::TrilinearAntialias, &shrink, 0, false);
        assert_eq!(t.first, 0);
        // |j - 1.5| = 1.5, 0.5, 0.5, 1.5, 2.5, 3.5 -> 4 - that, over their sum 14.
        let want = [2.5, 3.5, 3.5, 2.5, 1.5, 0.5].map(|w| w / 14.0);
        assert!(t.weights.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{t:?}");
        let grow = Axis::crop_then_resize(0, 4, 8);
        for i in 0..8 {
            assert_eq!(taps(Filter::TrilinearAntialias, &grow, i, false), taps(Filter::Trilinear, &grow, i, false));
        }
    }
}
