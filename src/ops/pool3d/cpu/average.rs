//! Average pooling.

use super::{LANES, Side, Tap, Taps, for_each_chunk};
use crate::device::{ActMut, ActRef};
use crate::ops::pool3d::Pool3d;
use crate::ops::rows;

/// Values that are summed in one go: longer sums are sums of such sums, which keeps their rounding small.
const TAPS_AT_ONCE: usize = 64;

/// Mean of each window.
pub(in super::super) fn forward(op: &Pool3d, input: ActRef<'_>, output: ActMut<'_>) {
    walk(&Taps::new(op, Side::Outputs), input, output, mean_scale(op), false);
}

/// Gradient of the input: each input position asks the windows that hold it.
pub(in super::super) fn grad_input(op: &Pool3d, grad_output: ActRef<'_>, grad_input: ActMut<'_>, accumulate: bool) {
    walk(&Taps::new(op, Side::Inputs), grad_output, grad_input, mean_scale(op), accumulate);
}

fn mean_scale(op: &Pool3d) -> f32 {
    1.0 / op.kernel.iter().product::<usize>() as f32
}

/// `to = scale * sum of from over the taps`, or added to `to`.
fn walk(taps: &Taps, from: ActRef<'_>, to: ActMut<'_>, scale: f32, accumulate: bool) {
    let (c, pitch) = (to.shape.c, to.pitch_c);
    rows::for_each(taps.blocks(), taps.lines(to.data, pitch), |block, to| {
        rows::vectorized(
            #[inline(always)]
            || {
                taps.for_each(
                    &block,
                    #[inline(always)]
                    |i, taps| {
                        let to = &mut to.data[i * pitch..][..c];
                        for_each_chunk!(c, scaled_sum(from, taps, scale, accumulate, to));
                    },
                )
            },
        );
    });
}

/// Channels `at .. at + L` of one position.
#[inline(always)]
fn scaled_sum<const L: usize>(from: ActRef<'_>, taps: &[Tap], scale: f32, accumulate: bool, to: &mut [f32], at: usize) {
    let mut sum = [0f32; L];
    for taps in taps.chunks(TAPS_AT_ONCE) {
        let mut part = [0f32; L];
        for tap in taps {
            let x = &from.data[tap.position * from.pitch_c + at..][..L];
            (0..L).for_each(|i| part[i] += x[i]);
        }
        (0..L).for_each(|i| sum[i] += part[i]);
    }
    let to = &mut to[at..][..L];
    (0..L).for_each(|i| to[i] = if accumulate { to[i] + sum[i] * scale } else { sum[i] * scale });
}
