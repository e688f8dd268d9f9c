//! Which kernel runs, and how its sum is cut up: pure, without a device.
//!
//! Times are predicted in clocks of a streaming multiprocessor (SM): the larger of what memory and what the warps need, plus
//! what they do not hide of each other.

use super::geometry::Geometry;
use super::tiling::{Tiling, choose_tiling};
use crate::device::DType;
use crate::ops::conv3d::Conv3d;

/// Warps that the registers of an SM hold, and so of a block (`MAX_WARPS` in the kernel).
const MAX_WARPS: usize = 8;
/// Rows of a tile at most.
const MAX_ROWS: usize = 512;
/// Warps along columns, output channels and rows that blocks are made of; those of eight for the widest variant.
const WARPS: [[usize; 3]; 12] = [
    [1, 1, 4],
    [2, 1, 2],
    [3, 1, 1],
    [4, 1, 1],
    [1, 2, 2],
    [2, 2, 1],
    [1, 3, 1],
    [1, 4, 1],
    [3, 2, 1],
    [4, 2, 1],
    [2, 3, 1],
    [2, 4, 1],
];
/// Largest y and z of a grid.
const MAX_PARTS: usize = 65535;
/// Warps of a block that adds up parts (`SUM_WARPS` in the kernel).
pub(super) const SUM_WARPS: usize = 16;

/// What a warp makes: `units` x 16 columns of the filter, `octets` x 8 output channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Variant {
    /// 64 columns, 64 channels: where the tensor cores are the limit.
    Mma64x64,
    /// 64 columns, 32 channels.
    Mma64x32,
    /// 144 columns, 16 channels: few output channels, so all taps of a tile at once.
    Mma144x16,
}

impl Variant {
    const ALL: [Variant; 3] = [Variant::Mma64x64, Variant::Mma64x32, Variant::Mma144x16];

    pub fn units(self) -> usize {
        if self == Variant::Mma144x16 { 9 } else { 4 }
    }

    pub fn octets(self) -> usize {
        match self {
            Variant::Mma64x64 => 8,
            Variant::Mma64x32 => 4,
            Variant::Mma144x16 => 2,
        }
    }

    /// The kernel that gathers the gradient from the windows of a pool: of the widest variant alone.
    pub fn pool_kernel(dtype: DType) -> &'static str {
        match dtype == DType::Bf16 {
            true => "conv3d_grad_filter_pool_mma64x64_bf16",
            false => "conv3d_grad_filter_pool_mma64x64_f16",
        }
    }

    pub fn kernel(self, dtype: DType) -> &'static str {
        match (self, dtype == DType::Bf16) {
            (Variant::Mma64x64, true) => "conv3d_grad_filter_mma64x64_bf16",
            (Variant::Mma64x64, false) => "conv3d_grad_filter_mma64x64_f16",
            (Variant::Mma64x32, true) => "conv3d_grad_filter_mma64x32_bf16",
            (Variant::Mma64x32, false) => "conv3d_grad_filter_mma64x32_f16",
            (Variant::Mma144x16, true) => "conv3d_grad_filter_mma144x16_bf16",
            (Variant::Mma144x16, false) => "conv3d_grad_filter_mma144x16_f16",
        }
    }
}

/// What the device has, and what a test or a search for the fastest plan may force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Streaming multiprocessors.
    pub num_sms: usize,
    /// Shared memory of a block at most.
    pub shared_bytes: usize,
    /// Rows of a tile at most.
    pub max_rows: usize,
    /// This number of the variants alone.
    pub variant: Option<usize>,
    /// Whether the taps of t are on the gradient's side, where they may be.
    pub shifts_grad: Option<bool>,
}

impl Limits {
    /// Nothing is forced.
    pub const fn of(num_sms: usize, shared_bytes: usize) -> Limits {
        Limits { num_sms, shared_bytes, max_rows: MAX_ROWS, variant: None, shifts_grad: None }
    }
}

/// A pool over (h, w) through which the gradient comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Windows {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
}

impl Windows {
    /// That of all stems.
    const NOMINAL: Windows = Windows { kernel: [3; 2], stride: [2; 2] };

    /// The most windows of axis `i` (h, w) that hold any of `tile` positions.
    pub fn of_tile(&self, i: usize, tile: usize) -> usize {
        (tile + self.kernel[i] - 2) / self.stride[i] + 1
    }
}

/// What is read, as far as the plan depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sources {
    pub splits: usize,
    /// Tensors of the input and of the gradient, 1 or 2.
    pub num_input: usize,
    pub num_grad: usize,
    /// Whether they are changed on their way in.
    pub has_input_prologue: bool,
    pub has_grad_prologue: bool,
    pub pixel_pairs: bool,
    pub has_bias: bool,
    /// With one: the gradient's tensor is that of the pool's output, beside y.
    pub pool: Option<Windows>,
}

/// On which side of the sum the taps of t are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TapsOfTime {
    Input,
    Grad,
}

impl TapsOfTime {
    /// What there is to choose from. The column of ones has no taps.
    fn allowed(op: &Conv3d, sources: &Sources) -> Vec<TapsOfTime> {
        match Geometry::may_shift_grad(op) && !sources.has_bias {
            true => vec![TapsOfTime::Input, TapsOfTime::Grad],
            false => vec![TapsOfTime::Input],
        }
    }

    fn geometry(self, op: &Conv3d, splits: usize, pixel_pairs: bool) -> Geometry {
        Geometry::new(op, splits, pixel_pairs, self == TapsOfTime::Grad)
    }
}

impl Sources {
    /// What blocks are chosen for: the fused chain's usual case.
    fn nominal(&self) -> Sources {
        Sources {
            splits: 1,
            num_input: 1,
            num_grad: if self.pool.is_some() { 1 } else { 2 },
            has_input_prologue: !self.pixel_pairs,
            has_grad_prologue: true,
            pool: self.pool.map(|_| Windows::NOMINAL),
            ..*self
        }
    }
}

/// What a block makes: columns (taps x a slab of channels) times output channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocking {
    pub variant: Variant,
    /// Warps along columns, output channels and rows of a tile.
    pub warps: [usize; 3],
    pub slab_chunks: usize,
    pub num_slabs: usize,
    pub taps: usize,
    pub num_tap_blocks: usize,
    pub out_chunks: usize,
    pub num_out_blocks: usize,
    /// Taps of t that the output channels come with: see [`Geometry`].
    pub grad_taps: usize,
}

impl Blocking {
    /// Blocks of one group.
    fn num_blocks(&self) -> usize {
        self.num_slabs * self.num_tap_blocks * self.num_out_blocks
    }

    pub fn num_warps(&self) -> usize {
        self.warps.iter().product()
    }

    /// Blocks that the registers of an SM hold.
    pub fn blocks_per_sm(&self) -> usize {
        MAX_WARPS / self.num_warps()
    }

    fn fragments(&self) -> usize {
        self.warps[0] * self.warps[1] * self.variant.units() * self.variant.octets()
    }

    /// Pairs of octets of columns.
    pub fn used_units(&self, has_bias: bool) -> usize {
        (self.taps * self.slab_chunks + usize::from(has_bias)).div_ceil(2)
    }

    /// Bytes that a block writes for one part.
    fn used_bytes(&self, has_bias: bool) -> usize {
        self.used_units(has_bias) * self.out_chunks * self.grad_taps * 32 * 16
    }

    /// Bytes that a block's sums have room for.
    pub fn sum_bytes(&self) -> usize {
        self.fragments() * 32 * 16
    }
}

/// How the tiles of a batch are cut into parts: see `docs/decisions/split_order.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Tiles of a split that is not the last; of all splits where there is one part.
    pub tiles_per_split: usize,
    pub tiles_per_part: usize,
    /// Of such a split.
    pub parts_per_split: usize,
    /// Of the clips at hand.
    pub num_parts: usize,
    /// Whether blocks leave the sums of their part to another launch. Else there is one part, whose sums go on from those of the
    /// splits before.
    pub has_partials: bool,
}

impl Cut {
    /// One part.
    fn continuous(num_tiles: usize) -> Cut {
        let (tiles_per_split, tiles_per_part) = (num_tiles, num_tiles);
        Cut { tiles_per_split, tiles_per_part, parts_per_split: 1, num_parts: 1, has_partials: false }
    }

    /// Equal parts of each split.
    fn of_splits(tiles_per_split: usize, num_tiles: usize, parts_per_split: usize) -> Cut {
        let tiles_per_part = tiles_per_split.div_ceil(parts_per_split);
        let cut = Cut {
            tiles_per_split,
            tiles_per_part,
            parts_per_split: tiles_per_split.div_ceil(tiles_per_part),
            num_parts: 0,
            has_partials: true,
        };
        cut.of_tiles(num_tiles)
    }

    /// Splits that have parts.
    pub fn splits(&self) -> usize {
        self.num_parts.div_ceil(self.parts_per_split)
    }

    /// Warps that share the parts of a split where they are added up.
    pub fn warps_per_split(&self) -> usize {
        self.parts_per_split.div_ceil(16).next_power_of_two().min(SUM_WARPS)
    }

    /// The same cut of other clips of the batch.
    fn of_tiles(self, num_tiles: usize) -> Cut {
        if !self.has_partials {
            return Cut::continuous(num_tiles);
        }
        let full = (num_tiles - 1) / self.tiles_per_split;
        let last = (num_tiles - full * self.tiles_per_split).div_ceil(self.tiles_per_part);
        Cut { num_parts: full * self.parts_per_split + last, ..self }
    }
}

/// How a filter gradient is computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub geometry: Geometry,
    pub blocking: Blocking,
    pub tiling: Tiling,
    /// Blocks in x of the grid.
    pub num_blocks: usize,
    pub cut: Cut,
    /// Predicted microseconds at 1.7 GHz, memory warm.
    pub predicted_us: f64,
}

impl Plan {
    /// Warps that share the parts of a fragment in the launch that adds them up.
    pub fn warps_per_sum(&self) -> usize {
        (self.cut.warps_per_split() * self.cut.splits().next_power_of_two()).min(SUM_WARPS)
    }

    /// Blocks in y of the launch that adds up the parts.
    pub fn sum_blocks(&self) -> usize {
        (self.blocking.fragments() * self.warps_per_sum()).div_ceil(SUM_WARPS)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (b, t) = (&self.blocking, &self.tiling);
        let [m, n, k] = b.warps;
        let side = if b.grad_taps > 1 { ", taps of t on the gradient's side" } else { "" };
        write!(f, "{:?} warps {m}x{n}x{k}{side}, ", b.variant)?;
        write!(f, "{} taps x {} chunks x {} chunks out, ", b.taps, b.slab_chunks, b.out_chunks)?;
        write!(
            f,
            "tile {:?}, {} blocks x {} parts of {} tiles, ",
            t.tile, self.num_blocks, self.cut.num_parts, self.cut.tiles_per_part
        )?;
        write!(f, "{} KiB shared, {:.1} us", t.shared_bytes.div_ceil(1024), self.predicted_us)
    }
}

/// Plans within these limits; `None` where no tile fits shared memory.
pub(super) fn plan(op: &Conv3d, sources: Sources, limits: Limits) -> Option<Plan> {
    let plans: Vec<(TapsOfTime, Plan)> = TapsOfTime::allowed(op, &sources)
        .into_iter()
        .filter_map(|side| Some((side, plan_for(op, side, sources, limits)?)))
        .collect();
    // What is forced comes first, where there is a plan for it.
    let is_other = |side: TapsOfTime| limits.shifts_grad.is_some_and(|shifts| shifts != (side == TapsOfTime::Grad));
    let rank = |(side, plan): &(TapsOfTime, Plan)| (is_other(*side), plan.predicted_us);
    let best = plans.into_iter().min_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal));
    best.map(|(_, plan)| plan)
}

fn plan_for(op: &Conv3d, side: TapsOfTime, sources: Sources, limits: Limits) -> Option<Plan> {
    // Bits depend on all choices: they are those of the whole batch.
    let batch = op.of_batch(sources.splits);
    let geometry = side.geometry(&batch, sources.splits, sources.pixel_pairs);
    let blocking = choose_blocking(op, side, sources, limits)?;
    let tiling = choose_tiling(&geometry, &blocking, &sources, &limits)?;
    let num_blocks = blocking.num_blocks() * op.groups;
    let (tiles_per_split, num_tiles) = geometry.num_tiles(tiling.tile);
    let num_splits = batch.batch(1).splits_of(batch.input.n);
    let num_sms = limits.num_sms;
    let room = Room::of(&blocking, &sources, num_blocks, num_splits, num_sms);
    let continuous = room.is_continuous.then(|| Cut::continuous(num_tiles));
    // One split in one part is the same either way.
    let parts = (1..=room.parts_per_split.min(tiles_per_split)).filter(|&p| num_splits * p > 1);
    let cuts = continuous.into_iter().chain(parts.map(|p| Cut::of_splits(tiles_per_split, num_tiles, p)));
    let local = side.geometry(op, sources.splits, sources.pixel_pairs);
    let mut best: Option<Plan> = None;
    for cut in cuts {
        let num_parts = cut.num_parts;
        let sum_clocks = sum_clocks(&blocking, &sources, num_blocks * num_parts, num_parts, num_sms);
        let waves = (num_blocks * num_parts).div_ceil(num_sms);
        // A block alone on its SM hides nothing.
        let exposed = if num_blocks * num_parts <= num_sms && blocking.blocks_per_sm() > 1 { 1.4 } else { 1.0 };
        let fill = 2000.0;
        let clocks = exposed * (waves * cut.tiles_per_part * tiling.clocks) as f64 + sum_clocks + fill;
        let predicted_us = clocks / 1700.0;
        if best.as_ref().is_none_or(|b| predicted_us < b.predicted_us) {
            let num_tiles = local.num_tiles(tiling.tile).1;
            best = Some(Plan {
                geometry: local,
                blocking,
                tiling: Tiling { num_tiles, ..tiling },
                num_blocks,
                cut: cut.of_tiles(num_tiles),
                predicted_us,
            });
        }
    }
    best
}

/// Bytes that all SMs together move a clock and SM: 3.0 TB/s on 132 SMs at 1.7 GHz.
const BYTES_PER_CLOCK: f64 = 13.4;
/// Clocks that a launch costs whatever it does.
const LAUNCH_CLOCKS: f64 = 2500.0;

/// Microseconds that grad_filter saves if grad_input has stored the gradient behind the batch norm, less those of storing it. Blocks that
/// share the gradient then read one tensor in place of two, and change nothing.
pub(super) fn gain_of_stored_grad_us(op: &Conv3d, fused: Sources, limits: Limits) -> Option<f64> {
    let stored = Sources { num_grad: 1, has_grad_prologue: false, ..fused };
    let saved_us = plan(op, fused, limits)?.predicted_us - plan(op, stored, limits)?.predicted_us;
    let bytes = 2.0 * op.output().num_elements() as f64;
    let clocks = bytes / (BYTES_PER_CLOCK * limits.num_sms as f64);
    // On its way grad_input writes one tensor more. A launch before it reads two and writes one, of which it then reads that.
    let clocks = if super::super::plan::reads_each_position_once(op) { clocks } else { 2.0 * clocks + LAUNCH_CLOCKS };
    Some(saved_us - clocks / 1700.0)
}

/// Bytes of workspace that any plan of this convolution with so many splits needs within these limits.
pub(super) fn workspace_bytes(op: &Conv3d, splits: usize, limits: Limits) -> usize {
    let batch = op.batch(splits);
    let (splits_of_batch, splits_at_hand) = (batch.splits_of(batch.batch_clips), batch.splits_of(op.input.n));
    let pairs = [false, true].into_iter().filter(|&pairs| !pairs || Geometry::has_pixel_pairs(op));
    let behind = [(false, None), (true, None), (false, Some(Windows::NOMINAL))];
    let behind = behind.into_iter().filter(|(_, pool)| pool.is_none() || Geometry::keeps_rows(op));
    let cases = pairs.flat_map(|pairs| behind.clone().map(move |(has_bias, pool)| (pairs, has_bias, pool)));
    let bytes = cases.flat_map(|(pixel_pairs, has_bias, pool)| {
        let sources = Sources {
            splits,
            num_input: 1,
            num_grad: 1,
            has_input_prologue: false,
            has_grad_prologue: false,
            pixel_pairs,
            has_bias,
            pool,
        };
        TapsOfTime::allowed(op, &sources).into_iter().filter_map(move |side| {
            let blocking = choose_blocking(op, side, sources, limits)?;
            let num_blocks = blocking.num_blocks() * op.groups;
            let room = Room::of(&blocking, &sources, num_blocks, splits_of_batch, limits.num_sms);
            let parts =
                if splits_of_batch * room.parts_per_split == 1 { 0 } else { splits_at_hand * room.parts_per_split };
            Some(parts * num_blocks * blocking.sum_bytes())
        })
    });
    bytes.max().unwrap_or(0)
}

/// Parts of a batch that make more blocks than this times the places for blocks cost too much memory.
const MOST_WAVES: usize = 4;

/// How a batch may be cut into parts; does not depend on tiles, so that a workspace fits all sources.
struct Room {
    /// Whether it may be one part. Warps that share a tile's rows have sums of their own, which end with a split; and the kernel that
    /// gathers through a pool has no registers left to go on with.
    is_continuous: bool,
    /// As many as there are places for blocks, or one; 0: it must be one part.
    parts_per_split: usize,
}

impl Room {
    fn of(blocking: &Blocking, sources: &Sources, num_blocks: usize, splits: usize, num_sms: usize) -> Room {
        let places = num_sms * blocking.blocks_per_sm();
        let most = (places / num_blocks).clamp(1, MAX_PARTS);
        let is_continuous = splits == 1 || (blocking.warps[2] == 1 && sources.pool.is_none());
        let is_affordable = splits <= (MOST_WAVES * most).min(MAX_PARTS) || !is_continuous;
        Room { is_continuous, parts_per_split: if is_affordable { (most / splits).max(1) } else { 0 } }
    }

    /// Whether it is cut where memory and time speak against it.
    fn is_forced(blocking: &Blocking, num_blocks: usize, splits: usize, num_sms: usize) -> bool {
        let places = num_sms * blocking.blocks_per_sm();
        splits > 1 && blocking.warps[2] > 1 && splits > MOST_WAVES * (places / num_blocks).max(1)
    }
}

/// Clocks that a second launch takes which adds up the parts, and writing them before.
fn sum_clocks(blocking: &Blocking, sources: &Sources, num_blocks: usize, num_parts: usize, num_sms: usize) -> f64 {
    let bytes = 2 * num_blocks * blocking.used_bytes(sources.has_bias);
    if num_parts == 1 { 0.0 } else { 3500.0 + bytes as f64 / (20.0 * num_sms as f64) }
}

// -- blocks ---------------------------------------------------------------------------------------------------------------

fn choose_blocking(op: &Conv3d, side: TapsOfTime, sources: Sources, limits: Limits) -> Option<Blocking> {
    let batch = op.of_batch(sources.splits);
    let (splits, whole) = (batch.batch(1).splits_of(batch.input.n), Conv3d { part: None, ..batch });
    let sources = sources.nominal();
    let geometry = side.geometry(&whole, 1, sources.pixel_pairs);
    let mut best: Option<((bool, usize), Blocking)> = None;
    for blocking in blockings(op, &geometry, &sources, &limits) {
        let Some(tiling) = choose_tiling(&geometry, &blocking, &sources, &limits) else { continue };
        // The parts fill the places for blocks.
        let sums = 2 * blocking.blocks_per_sm() * limits.num_sms * blocking.used_bytes(sources.has_bias) / 20;
        let clocks = tiling.num_tiles * blocking.num_blocks() * tiling.clocks + sums;
        let is_forced = Room::is_forced(&blocking, blocking.num_blocks() * op.groups, splits, limits.num_sms);
        let rank = (is_forced, clocks);
        if best.is_none_or(|(least, _)| rank < least) {
            best = Some((rank, blocking));
        }
    }
    best.map(|(_, blocking)| blocking)
}

fn blockings(op: &Conv3d, geometry: &Geometry, sources: &Sources, limits: &Limits) -> Vec<Blocking> {
    let taps = geometry.num_taps();
    let chunks = if sources.pixel_pairs { 1 } else { (op.input.c / op.groups).div_ceil(8) };
    let out_chunks = (op.c_out / op.groups).div_ceil(8);
    let balanced = |all: usize, most: usize| all.div_ceil(all.div_ceil(most));
    let mut found: Vec<Blocking> = Vec::new();
    // Of a wider variant than this more than half would be idle.
    let widest = (out_chunks * geometry.grad_taps).next_power_of_two().max(2);
    let forced = if sources.pool.is_some() { Some(0) } else { limits.variant };
    let is_allowed = |variant: Variant| match forced {
        Some(forced) => variant == Variant::ALL[forced % 3],
        None => variant.octets() <= widest,
    };
    for variant in Variant::ALL.into_iter().filter(|variant| is_allowed(*variant)) {
        for warps in WARPS {
            if warps.iter().product::<usize>() > 4 && variant != Variant::Mma64x64 {
                continue;
            }
            // All taps of t that are on the gradient's side belong to one block.
            if geometry.grad_taps > 1 && out_chunks * geometry.grad_taps > warps[1] * variant.octets() {
                continue;
            }
            let out = balanced(out_chunks, warps[1] * variant.octets());
            let octets = warps[0] * variant.units() * 2 - usize::from(sources.has_bias);
            for slab in [16, 8, 4, 2, 1] {
                let slab = balanced(chunks, slab);
                if slab > octets {
                    continue;
                }
                let per_block = balanced(taps, octets / slab);
                let blocking = Blocking {
                    variant,
                    warps,
                    slab_chunks: slab,
                    num_slabs: chunks.div_ceil(slab),
                    taps: per_block,
                    num_tap_blocks: taps.div_ceil(per_block),
                    out_chunks: out,
                    num_out_blocks: out_chunks.div_ceil(out),
                    grad_taps: geometry.grad_taps,
                };
                let is_busy = blocking.used_units(sources.has_bias) > (warps[0] - 1) * variant.units()
                    && out * geometry.grad_taps > (warps[1] - 1) * variant.octets();
                if is_busy && !found.contains(&blocking) {
                    found.push(blocking);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
