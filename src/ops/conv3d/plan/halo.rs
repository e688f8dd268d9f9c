//! The form for few channels, and its boxes.

use super::{AxisClass, OnLoad, Request, THREADS, TILE_K, sums_bytes};

/// Shared memory of a block that leaves room for three on a multiprocessor of 228 KiB.
const GOOD_BYTES: usize = 74 << 10;
/// Chunks of the halo that a thread can keep in mind.
const MAX_CHUNKS: usize = 32;
/// Work of a block apart from its halo, in chunks of it: for the choice of boxes.
const BLOCK_CHUNKS: usize = 256;

/// The form for few channels: what a box of rows reads, and the whole filter, stay in shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Halo {
    pub tile_n: usize,
    pub boxes: [usize; 3],
    pub shared_bytes: usize,
}

/// Chooses the boxes that read least, blocks counted as so many chunks; none where the form does not fit.
pub(super) fn halo(r: &Request, classes: &[[AxisClass; 3]]) -> Option<Halo> {
    let (source_c, target_c) = r.channels();
    let taps: usize = r.op.filter.iter().product();
    if source_c > 32 || target_c > 32 || taps == 1 {
        return None;
    }
    let tile_n = target_c.next_power_of_two();
    let (tile_m, chunks) = (4096 / tile_n, source_c / 8);
    let tensors = if r.on_load == OnLoad::Join { 2 } else { 1 };
    let filter_bytes = (taps * chunks).div_ceil(TILE_K / 8) * tile_n * TILE_K * 2;
    let fixed_bytes = (tile_m * 8 + 16 + (taps * chunks + 1) * 4).next_multiple_of(128) + filter_bytes;
    let row_step = |axis: usize| if r.is_grad() { 1 } else { r.op.stride[axis] };
    let of_axis = |axis: usize, f: fn(&AxisClass) -> usize| classes.iter().map(|c| f(&c[axis])).max().unwrap_or(0);
    let rows = [0, 1, 2].map(|axis| of_axis(axis, |c| c.rows));
    let reach = [0, 1, 2].map(|axis| of_axis(axis, |c| c.reach));
    // Powers of two, and the whole axis.
    let sizes = |axis: usize| (0..10).map(|e| 1 << e).filter(move |b| *b < rows[axis]).chain([rows[axis]]);
    let mut best: Option<(usize, Halo)> = None;
    for bt in sizes(0) {
        for bh in sizes(1) {
            for bw in sizes(2).filter(|bw| bt * bh * bw <= tile_m) {
                let boxes = [bt, bh, bw];
                let positions: usize = (0..3).map(|a| (boxes[a] - 1) * row_step(a) + reach[a] + 1).product();
                let halo_bytes = (positions * chunks + 1) * 16 * tensors;
                let shared_bytes = fixed_bytes + halo_bytes.max(sums_bytes(tile_n));
                if shared_bytes > GOOD_BYTES || positions.div_ceil(THREADS / chunks) > MAX_CHUNKS {
                    continue;
                }
                let blocks: usize = (0..3).map(|a| rows[a].div_ceil(boxes[a])).product();
                let cost = blocks * (positions * chunks * tensors + BLOCK_CHUNKS);
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, Halo { tile_n, boxes, shared_bytes }));
                }
            }
        }
    }
    best.map(|(_, halo)| halo)
}
