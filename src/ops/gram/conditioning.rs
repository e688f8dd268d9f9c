//! How far roundings may carry a variance that is computed from moments: what a plan asks before it takes this form. Pure.
//!
//! Products are summed before the mean is taken off, so an error of the sums counts against the second moment of x, and what is left
//! against its variance. Before the data is seen both are known as far as the batch norm before fixes them: `x = relu(beta + gamma z)`
//! with z of mean 0 and variance 1, here taken to be normal and independent from channel to channel.

use std::f64::consts::PI;

/// Above it a plan takes the standard form: `2^-24 sqrt(256)` of the sums, 1024 times as much of a variance, is 2^-10 of it, 2^-11 of
/// the deviation; a stored bf16 has 2^-9.
pub const MAX_AMPLIFICATION: f64 = 1024.0;

/// See [`conditioning`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditioning {
    /// The largest ratio of an output channel's `sum w^2 E x^2` to `sum w^2 Var x + eps`.
    pub amplification: f64,
    /// The output channel that has it.
    pub channel: usize,
}

impl Conditioning {
    /// Whether Gram batch norm is as exact as the standard form.
    pub fn is_good(&self) -> bool {
        // A NaN is not.
        self.amplification <= MAX_AMPLIFICATION
    }
}

/// Conditioning of a convolution with `filter` `[c_out][c_in]` behind a batch norm with `gamma` and `beta` (`[c_in]`) and a ReLU, and
/// before a batch norm with `eps`.
///
/// # Panics
/// Where the sizes do not fit.
pub fn conditioning(filter: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Conditioning {
    assert!(gamma.len() == beta.len() && !gamma.is_empty() && filter.len().is_multiple_of(gamma.len()), "sizes");
    let of_inputs: Vec<[f64; 2]> =
        gamma.iter().zip(beta).map(|(g, b)| rectified(f64::from(*g), f64::from(*b))).collect();
    let of_output = |w: &[f32]| {
        let weighted = |row: usize| w.iter().zip(&of_inputs).map(|(w, m)| f64::from(*w).powi(2) * m[row]).sum::<f64>();
        weighted(0) / (weighted(1) + f64::from(eps))
    };
    let all = filter.chunks(gamma.len()).map(of_output).enumerate();
    let worst = all.fold((0, 0.0), |a: (usize, f64), b| if b.1 > a.1 || b.1.is_nan() { b } else { a });
    Conditioning { amplification: worst.1, channel: worst.0 }
}

/// Second moment and variance of `relu(beta + gamma z)`.
fn rectified(gamma: f64, beta: f64) -> [f64; 2] {
    let scale = gamma.abs();
    if scale == 0.0 {
        return [beta.max(0.0).powi(2), 0.0];
    }
    let t = beta / scale;
    let (density, share) = ((-t * t / 2.0).exp() / (2.0 * PI).sqrt(), normal_below(t));
    let mean = t * share + density;
    let square = (1.0 + t * t) * share + t * density;
    // Of large t the variance is a difference of two large numbers; it is 1 there.
    let var = if t > 8.0 { 1.0 } else { (square - mean * mean).max(0.0) };
    [square.max(0.0) * scale * scale, var * scale * scale]
}

/// Share of the normal distribution below `t`: Abramowitz and Stegun 7.1.26, to 1.5e-7.
fn normal_below(t: f64) -> f64 {
    let z = t.abs() / 2f64.sqrt();
    let k = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let above = series.iter().fold(0.0, |sum, c| (sum + c) * k) * (-z * z).exp() / 2.0;
    if t > 0.0 { 1.0 - above } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_rectified_normals() {
        // gamma, beta -> second moment, variance
        let cases = [
            ([1.0, 0.0], [0.5, 0.5 - 0.5 / PI]),
            ([-2.0, 0.0], [2.0, 2.0 - 2.0 / PI]),
            ([1.0, 3.0], [9.999_797, 0.997_503]),
            ([0.5, 50.0], [2500.25, 0.25]),
            ([0.0, 2.0], [4.0, 0.0]),
            ([0.0, -2.0], [0.0, 0.0]),
        ];
        for ([gamma, beta], want) in cases {
            for (got, want) in rectified(gamma, beta).into_iter().zip(want) {
                assert!((got - want).abs() <= 1e-4 * want, "{gamma} {beta}: {got} is not {want}");
            }
        }
        let [square, var] = rectified(1.0, -4.0);
        assert!(square < 1e-4 && var >= 0.0 && var <= square, "{square} {var}");
    }

    #[test]
    fn the_worst_channel_decides() {
        let filter = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let got = conditioning(&filter, &[1.0, 0.01], &[0.0, 1.0], 0.0);
        assert!(got.channel == 1 && (got.amplification / 10_001.0 - 1.0).abs() < 1e-6 && !got.is_good(), "{got:?}");
        // As networks begin.
        let got = conditioning(&[0.3; 64], &[1.0; 16], &[0.0; 16], 1e-5);
        assert!(got.is_good() && (got.amplification - PI / (PI - 1.0)).abs() < 1e-3, "{got:?}");
        // Nothing passes the ReLU: eps decides.
        assert_eq!(conditioning(&[1.0], &[0.0], &[-1.0], 1e-5), Conditioning { amplification: 0.0, channel: 0 });
        assert!(!conditioning(&[f32::NAN], &[1.0], &[1.0], 1e-5).is_good());
    }
}
