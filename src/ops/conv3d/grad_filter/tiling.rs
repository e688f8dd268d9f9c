//! Output positions of a tile: as many as shared memory holds, in the shape that reads and computes least beside them.

use super::geometry::Geometry;
use super::params::RowLayout;
use super::plan::{Blocking, Limits, Sources, Variant};

/// Stages of the ring of tiles (`STAGES` in the kernel).
const STAGES: usize = 4;
/// Rows of an operand that a thread copies at most: one bit each.
const MAX_ROWS_PER_THREAD: usize = 32;
/// Bytes before the places of rows (`ROWS_OFFSET` in the kernel).
const ROWS_OFFSET: usize = 32;
/// Largest coordinate within a box (`NO_ROW` in the kernel).
const MAX_BOX_COORDINATE: usize = 0x7ffe;

/// Output positions of a tile, and what it takes in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub tile: [usize; 3],
    /// Output positions, padded to whole fragments.
    pub rows: usize,
    /// Rows of the gradient, with those that its taps of t need besides.
    pub grad_rows: usize,
    pub num_tiles: usize,
    pub box_offset: usize,
    /// Windows of a pool that hold a tile: along h, along w, in all frames.
    pub windows: [usize; 2],
    pub pool_rows: usize,
    pub pool_places_offset: usize,
    pub pool_gradient_offset: usize,
    pub pool_indices_offset: usize,
    pub factors_offset: usize,
    pub stages_offset: usize,
    pub second_input_offset: usize,
    pub grad_offset: usize,
    pub second_grad_offset: usize,
    pub stage_bytes: usize,
    pub shared_bytes: usize,
    /// Predicted clocks of one block on one tile.
    pub clocks: usize,
}

/// An axis of a tile: its size, the box' pixels, and the number of tiles.
#[derive(Clone, Copy)]
struct Side {
    tile: usize,
    pixels: usize,
    num_tiles: usize,
}

/// The tile that takes least time in all.
pub(super) fn choose_tiling(
    geometry: &Geometry,
    blocking: &Blocking,
    sources: &Sources,
    limits: &Limits,
) -> Option<Tiling> {
    let max_rows = limits.max_rows;
    // First of all, room for as many blocks on an SM as registers allow.
    let good_bytes = limits.shared_bytes / blocking.blocks_per_sm();
    let spans = geometry.spans(blocking.taps);
    let [ts, hs, ws] = [0, 1, 2].map(|i| sides(geometry, i, spans[i], max_rows));
    let mut best: Option<Tiling> = None;
    for (t, h) in ts.iter().flat_map(|t| hs.iter().map(move |h| (t, h))) {
        for w in &ws {
            if t.tile * h.tile * w.tile > max_rows {
                break;
            }
            // A row that does not exist must not meet a gradient that does.
            if geometry.grad_taps > 1 && !(t.tile * h.tile * w.tile).is_multiple_of(16) {
                continue;
            }
            let Some(tiling) =
                tiling(geometry, blocking, sources, [t, h, w]).filter(|t| t.shared_bytes <= limits.shared_bytes)
            else {
                break;
            };
            let rank = |t: &Tiling| (t.shared_bytes > good_bytes, t.num_tiles * t.clocks);
            if best.is_none_or(|b| rank(&tiling) < rank(&b)) {
                best = Some(tiling);
            }
        }
    }
    best
}

/// Sizes that cut an axis into nearly equal tiles, ascending.
fn sides(geometry: &Geometry, i: usize, span: usize, max_rows: usize) -> Vec<Side> {
    const SIZES: [usize; 18] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64];
    let axis = &geometry.axes[i];
    let mut sizes: Vec<usize> = SIZES.iter().map(|&size| axis.output.div_ceil(axis.output.div_ceil(size))).collect();
    // Long axes are not worth equal tiles: whole fragments matter more.
    sizes.extend([16, 32, 64, 96, 128, 192, 256, 384, 512].iter().filter(|&&size| size < axis.output));
    sizes.sort_unstable();
    sizes.dedup();
    let along = axis.box_of(span);
    let side = |tile: usize| {
        let pixels = along.pixels(tile, span);
        let fits = pixels * along.step <= MAX_BOX_COORDINATE && tile <= max_rows;
        // Clips or splits lie one after the other along t; the last may be shorter.
        let num_tiles = match i {
            0 => axis.output.div_ceil(tile) * (geometry.num_outer - 1) + geometry.last_output_t.div_ceil(tile),
            _ => axis.output.div_ceil(tile),
        };
        fits.then_some(Side { tile, pixels, num_tiles })
    };
    sizes.into_iter().filter_map(side).collect()
}

fn tiling(geometry: &Geometry, blocking: &Blocking, sources: &Sources, [t, h, w]: [&Side; 3]) -> Option<Tiling> {
    let pixels = t.pixels * h.pixels * w.pixels;
    let rows = (t.tile * h.tile * w.tile).next_multiple_of(16);
    let grad_rows = if geometry.grad_taps > 1 { geometry.grad_frames(t.tile) * h.tile * w.tile } else { rows };
    let threads = 32 * blocking.num_warps();
    let per_thread = |rows: usize, chunks: usize| rows.div_ceil(threads / chunks);
    let (slab, out) = (blocking.slab_chunks, blocking.out_chunks);
    if per_thread(pixels, slab).max(per_thread(grad_rows, out)) > MAX_ROWS_PER_THREAD {
        return None;
    }
    let layout = |rows: usize, chunks: usize| (rows * RowLayout::of(chunks).pitch as usize * 16).next_multiple_of(128);
    let box_offset = (ROWS_OFFSET + grad_rows * 8 + rows * 4).next_multiple_of(16);
    let windows = sources.pool.map_or([0; 2], |pool| [pool.of_tile(0, h.tile), pool.of_tile(1, w.tile)]);
    let pool_rows = geometry.grad_frames(t.tile) * windows[0] * windows[1];
    if per_thread(pool_rows, out) > MAX_ROWS_PER_THREAD {
        return None;
    }
    let pool_places_offset = box_offset + pixels * 8;
    let factors_offset = (pool_places_offset + pool_rows * 8).next_multiple_of(16);
    let factors = |has_prologue: bool, chunks: usize| if has_prologue { chunks * 24 * 4 } else { 0 };
    let of_mask = if sources.pool.is_some() { out * 16 * 4 } else { 0 };
    let all_factors = factors(sources.has_input_prologue, slab) + factors(sources.has_grad_prologue, out) + of_mask;
    let stages_offset = (factors_offset + all_factors).next_multiple_of(128);
    let second_input_offset = layout(pixels, slab);
    let grad_offset = second_input_offset * sources.num_input;
    let second_grad_offset = grad_offset + layout(grad_rows, out);
    let pool_gradient_offset = grad_offset + layout(grad_rows, out) * sources.num_grad;
    let pool_indices_offset = pool_gradient_offset + pool_rows * out * 16;
    let stage_bytes = (pool_indices_offset + pool_rows * out * 8).next_multiple_of(128);
    // The warps that share rows add up their sums where the stages were.
    let scratch = if blocking.warps[2] > 1 { blocking.sum_bytes() } else { 0 };
    let shared_bytes = stages_offset + (STAGES * stage_bytes).max(scratch);
    Some(Tiling {
        tile: [t.tile, h.tile, w.tile],
        rows,
        grad_rows,
        num_tiles: t.num_tiles * h.num_tiles * w.num_tiles,
        box_offset,
        windows,
        pool_rows,
        pool_places_offset,
        pool_gradient_offset,
        pool_indices_offset,
        factors_offset,
        stages_offset,
        second_input_offset,
        grad_offset,
        second_grad_offset,
        stage_bytes,
        shared_bytes,
        clocks: tile_clocks(blocking, sources, pixels, rows, [grad_rows, pool_rows]),
    })
}

/// Predicted clocks of a block on one tile, when enough others keep the SM busy.
fn tile_clocks(
    blocking: &Blocking,
    sources: &Sources,
    pixels: usize,
    rows: usize,
    [grad_rows, pool_rows]: [usize; 2],
) -> usize {
    let (input, grad) = (pixels * blocking.slab_chunks, grad_rows * blocking.out_chunks);
    // A window has 16 bytes of gradient and 8 of indices.
    let copied = input * sources.num_input + grad * sources.num_grad + pool_rows * blocking.out_chunks * 3 / 2;
    let changed = |has: bool, chunks: usize, tensors: usize| {
        if has { (chunks * (34 + 18 * tensors), chunks * (1 + tensors)) } else { (0, 0) }
    };
    let (input_instructions, input_chunks) = changed(sources.has_input_prologue, input, sources.num_input);
    let (mut grad_instructions, mut grad_chunks) = changed(sources.has_grad_prologue, grad, sources.num_grad);
    if let Some(pool) = sources.pool {
        // Hundredths of windows that hold a position.
        let windows = [0, 1].map(|i| 10 * pool.kernel[i] / pool.stride[i]).iter().product::<usize>();
        (grad_instructions, grad_chunks) =
            (grad_instructions + grad * windows * 40 / 100 + grad * 120, grad_chunks + grad * 4);
    }
    // 20 of the 24 bytes a clock that the second-level cache has for an SM.
    let memory = copied * 16 / 20;
    let [warps_m, warps_n, warps_k] = blocking.warps;
    let steps = (rows / 16).div_ceil(warps_k) * warps_k;
    let units = steps * blocking.used_units(sources.has_bias);
    // Pairs of octets; the narrowest variant asks for each.
    let all_octets = blocking.out_chunks * blocking.grad_taps;
    let out_octets = if blocking.variant == Variant::Mma144x16 { all_octets } else { all_octets.next_multiple_of(2) };
    let loads = units * warps_n + steps * warps_m * out_octets.div_ceil(2);
    let products = units * out_octets;
    let others = units * warps_n * 6 + steps * warps_m * warps_n * 20;
    let issued = (copied * 20 + input_instructions + grad_instructions) / 32 + products + loads + others;
    // Four instructions, 128 bytes of shared memory, 0.6 products a clock.
    let shared = loads * 4 + (copied + input_chunks + grad_chunks) / 8;
    let compute = (issued / 4).max(shared).max(products * 8 / 5);
    memory.max(compute) + memory.min(compute) / 4 + 80
}
