//! Max pooling.

use super::{LANES, Side, Tap, Taps, for_each_chunk};
use crate::device::cpu::scratch;
use crate::device::{ActMut, ActRef};
use crate::ops::pool3d::Pool3d;
use crate::ops::rows;

/// Largest value of each window, and where it was.
pub(in super::super) fn forward(op: &Pool3d, input: ActRef<'_>, output: ActMut<'_>, indices: Option<&mut [u32]>) {
    let (c, pitch) = (output.shape.c, output.pitch_c);
    let taps = Taps::new(op, Side::Outputs);
    let parts = (taps.lines(output.data, pitch), indices.map(|all| taps.lines(all, c)));
    rows::for_each(taps.blocks(), parts, |block, (y, mut indices)| {
        let mut unused = scratch::take::<u32>(if indices.is_some() { 0 } else { c });
        rows::vectorized(
            #[inline(always)]
            || {
                taps.for_each(
                    &block,
                    #[inline(always)]
                    |i, taps| {
                        let y = &mut y.data[i * pitch..][..c];
                        let winner = match &mut indices {
                            Some(indices) => &mut indices.data[i * c..][..c],
                            None => &mut unused[..],
                        };
                        for_each_chunk!(c, max_of_taps(input, taps, y, winner));
                    },
                )
            },
        );
    });
}

/// Channels `at .. at + L` of one output position. The first of equal values wins, and a NaN wins over all.
///
/// The winners are carried as the bits of floats: choices between values of one type become vector instructions, choices
/// between a float and an integer side by side do not.
#[inline(always)]
fn max_of_taps<const L: usize>(input: ActRef<'_>, taps: &[Tap], y: &mut [f32], winner: &mut [u32], at: usize) {
    let first = &input.data[taps[0].position * input.pitch_c + at..][..L];
    let (mut best, mut won) = ([0f32; L], [f32::from_bits(taps[0].index as u32); L]);
    best.copy_from_slice(first);
    for tap in &taps[1..] {
        let x = &input.data[tap.position * input.pitch_c + at..][..L];
        let index = f32::from_bits(tap.index as u32);
        for i in 0..L {
            let wins = (x[i] > best[i]) | x[i].is_nan();
            won[i] = if wins { index } else { won[i] };
            best[i] = if wins { x[i] } else { best[i] };
        }
    }
    y[at..][..L].copy_from_slice(&best);
    winner[at..][..L].iter_mut().zip(won).for_each(|(to, won)| *to = won.to_bits());
}

/// Gradient of the input: each input position asks the windows that hold it.
pub(in super::super) fn grad_input(
    op: &Pool3d,
    grad_output: ActRef<'_>,
    indices: &[u32],
    grad_input: ActMut<'_>,
    accumulate: bool,
) {
    let (c, pitch) = (grad_input.shape.c, grad_input.pitch_c);
    let taps = Taps::new(op, Side::Inputs);
    rows::for_each(taps.blocks(), taps.lines(grad_input.data, pitch), |block, dx| {
        rows::vectorized(
            #[inline(always)]
            || {
                taps.for_each(
                    &block,
                    #[inline(always)]
                    |i, taps| {
                        let dx = &mut dx.data[i * pitch..][..c];
                        for_each_chunk!(c, won_gradient(grad_output, indices, taps, accumulate, dx));
                    },
                )
            },
        );
    });
}

/// Channels `at .. at + L` of one input position.
#[inline(always)]
fn won_gradient<const L: usize>(
    grad_output: ActRef<'_>,
    indices: &[u32],
    taps: &[Tap],
    accumulate: bool,
    dx: &mut [f32],
    at: usize,
) {
    let c = dx.len();
    let dx = &mut dx[at..][..L];
    let mut sum: [f32; L] = std::array::from_fn(|i| if accumulate { dx[i] } else { 0.0 });
    for tap in taps {
        let dy = &grad_output.data[tap.position * grad_output.pitch_c + at..][..L];
        let winner = &indices[tap.position * c + at..][..L];
        for i in 0..L {
            // All bits or none: a vector instruction, as above.
            let mask = 0u32.wrapping_sub(u32::from(winner[i] == tap.index as u32));
            sum[i] += f32::from_bits(dy[i].to_bits() & mask);
        }
    }
    dx.copy_from_slice(&sum);
}
