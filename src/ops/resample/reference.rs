//! What `resample` means, slowly and in f64. Tests compare every executor with it.

use super::{Axis, ClipGrid, Filter, Resample};

/// A decoded clip on the host.
#[derive(Clone, Copy, Debug)]
pub struct HostClip<'a> {
    /// `[frames][height][width][3]`.
    pub bytes: &'a [u8],
    /// Frames, rows, columns.
    pub size: [usize; 3],
}

/// The clip at samples `frame_indices` x `height` x `width` of its grid, `[t][h][w][3]`. Every result of an arithmetic
/// operation goes through `round`: the identity gives the meaning of the op, rounding to f32 what plain f32 makes of it.
pub fn forward(
    op: &Resample,
    clip: HostClip<'_>,
    grid: &ClipGrid,
    frame_indices: &[u32],
    [height, width]: [usize; 2],
    round: fn(f64) -> f64,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(frame_indices.len() * height * width * 3);
    for &t in frame_indices {
        for y in 0..height {
            for x in 0..width {
                let x = if grid.flip { width - 1 - x } else { x };
                for c in 0..3 {
                    let value = sample(op.filter, clip, grid, [t as usize, y, x], c, round);
                    let centred = round(round(value / 255.0) - f64::from(op.mean[c]));
                    out.push(round(centred / f64::from(op.std[c])));
                }
            }
        }
    }
    out
}

fn sample(filter: Filter, clip: HostClip<'_>, grid: &ClipGrid, i: [usize; 3], c: usize, round: fn(f64) -> f64) -> f64 {
    let [_, height, width] = clip.size;
    let mut sum = 0.0;
    for (t, wt) in weights(filter, &grid.t, i[0], true, round) {
        for (y, wy) in weights(filter, &grid.y, i[1], false, round) {
            for (x, wx) in weights(filter, &grid.x, i[2], false, round) {
                let weight = round(round(wt * wy) * wx);
                sum = round(sum + round(weight * f64::from(clip.bytes[((t * height + y) * width + x) * 3 + c])));
            }
        }
    }
    sum
}

/// Every pixel of the clamp interval with its weight, zeros left out.
fn weights(filter: Filter, axis: &Axis, i: usize, is_time: bool, round: fn(f64) -> f64) -> Vec<(usize, f64)> {
    let (lo, hi) = (axis.lo as usize, axis.hi as usize);
    let p = round(f64::from(axis.start) + i as f64 * f64::from(axis.step)).clamp(lo as f64, hi as f64);
    let half_width = match filter {
        Filter::NearestInTime if is_time => return vec![(p.floor() as usize, 1.0)],
        Filter::TrilinearAntialias => f64::from(axis.step.abs()).max(1.0),
        _ => 1.0,
    };
    let triangle = |j: usize| round(1.0 - round((j as f64 - p).abs() / half_width)).max(0.0);
    let sum = (lo..=hi).map(triangle).fold(0.0, |sum, w| round(sum + w));
    (lo..=hi).map(|j| (j, round(triangle(j) / sum))).filter(|(_, w)| *w > 0.0).collect()
}
