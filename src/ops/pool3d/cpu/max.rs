//! Max pooling.

use super::{LANES, Tap, Taps, for_each_chunk};
use crate::device::{ActMut, ActRef};
use crate::ops::pool3d::Pool3d;
use crate::ops::rows;

/// Largest value of each window, and where it was.
pub(in super::super) fn forward(op: &Pool3d, input: ActRef<'_>, output: ActMut<'_>, indices: Option<&mut [u32]>) {
    let (c, pitch) = (output.shape.c, output.pitch_c);
    let taps = Taps::of_outputs(op);
    let blocks = taps.blocks();
    let outputs = rows::split(output.data, pitch, &blocks);
    let indices: Vec<Option<&mut [u32]>> = match indices {
        Some(all) => rows::split(all, c, &blocks).into_iter().map(Some).collect(),
        None => blocks.iter().map(|_| None).collect(),
    };
    rows::for_each(blocks.into_iter().zip(outputs).zip(indices).collect(), |((block, y), mut indices)| {
        let mut unused = vec![0; if indices.is_some() { 0 } else { c }];
        rows::vectorized(
            #[inline(always)]
            || {
                taps.for_each(
                    block,
                    #[inline(always)]
                    |i, taps| {
                        let y = &mut y[i * pitch..][..c];
                        let winner = match &mut indices {
                            Some(indices) => &mut indices[i * c..][..c],
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
#[inline(always)]
fn max_of_taps<const L: usize>(input: ActRef<'_>, taps: &[Tap], y: &mut [f32], winner: &mut [u32], at: usize) {
    let values = |tap: &Tap| -> [f32; L] {
        let x = &input.data[tap.position * input.pitch_c + at..][..L];
        std::array::from_fn(|i| x[i])
    };
    let (mut best, mut won) = (values(&taps[0]), [taps[0].index; L]);
    for tap in &taps[1..] {
        let x = values(tap);
        for i in 0..L {
            let wins = x[i] > best[i] || x[i].is_nan();
            best[i] = if wins { x[i] } else { best[i] };
            won[i] = if wins { tap.index } else { won[i] };
        }
    }
    y[at..][..L].copy_from_slice(&best);
    winner[at..][..L].copy_from_slice(&won);
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
    let taps = Taps::of_inputs(op);
    let blocks = taps.blocks();
    let parts = rows::split(grad_input.data, pitch, &blocks);
    rows::for_each(blocks.into_iter().zip(parts).collect(), |(block, dx)| {
        rows::vectorized(
            #[inline(always)]
            || {
                taps.for_each(
                    block,
                    #[inline(always)]
                    |i, taps| {
                        let dx = &mut dx[i * pitch..][..c];
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
            sum[i] += if winner[i] == tap.index { dy[i] } else { 0.0 };
        }
    }
    dx.copy_from_slice(&sum);
}
