//! Which kernel runs, and how its sum is cut up: pure, without a device.
//!
//! Times are predicted in clocks of a streaming multiprocessor (SM): the larger of what memory and what the warps need, plus
//! what they do not hide of each other.

mod blocking;
mod cut;

use blocking::choose_blocking;
pub use blocking::{Blocking, Variant};
pub use cut::SUM_WARPS;
use cut::{Cut, Room};

use super::geometry::Geometry;
use super::tiling::{Tiling, choose_tiling};
use crate::ops::conv3d::Conv3d;

/// Rows of a tile at most.
const MAX_ROWS: usize = 512;

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
    /// Whether each split has a gradient of its own.
    pub of_splits: bool,
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

/// How a filter gradient is computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub geometry: Geometry,
    pub blocking: Blocking,
    pub tiling: Tiling,
    /// Blocks in x of the grid.
    pub num_blocks: usize,
    pub cut: Cut,
    /// Whether each split has a gradient of its own.
    pub of_splits: bool,
    /// Predicted microseconds at 1.7 GHz, memory warm.
    pub predicted_us: f64,
}

impl Plan {
    /// Warps that share the parts of a fragment in the launch that adds them up.
    pub fn warps_per_sum(&self) -> usize {
        let splits = if self.of_splits { 1 } else { self.cut.splits() };
        (self.cut.warps_per_split() * splits.next_power_of_two()).min(SUM_WARPS)
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
        let sum_clocks = cut::sum_clocks(&blocking, &sources, num_blocks * num_parts, num_parts, num_sms);
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
                of_splits: sources.of_splits,
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

/// Bytes of workspace that any plan of this convolution with so many splits needs within these limits; `of_splits`: where each has a
/// gradient of its own.
pub(super) fn workspace_bytes(op: &Conv3d, splits: usize, of_splits: bool, limits: Limits) -> usize {
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
            of_splits,
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

#[cfg(test)]
mod tests;
