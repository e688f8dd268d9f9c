//! What a block of the kernel makes, and which such blocks a convolution is computed by.

use super::cut::Room;
use super::{Limits, Sources, TapsOfTime};
use crate::device::DType;
use crate::ops::conv3d::Conv3d;
use crate::ops::conv3d::grad_filter::geometry::Geometry;
use crate::ops::conv3d::grad_filter::tiling::choose_tiling;

/// Warps that the registers of an SM hold, and so of a block (`MAX_WARPS` in the kernel).
const MAX_WARPS: usize = 8;
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

/// What a warp makes: `units` x 16 columns of the filter, `octets` x 8 output channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
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

/// What a block makes: columns (taps x a slab of channels) times output channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
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
    pub fn num_blocks(&self) -> usize {
        self.num_slabs * self.num_tap_blocks * self.num_out_blocks
    }

    pub fn num_warps(&self) -> usize {
        self.warps.iter().product()
    }

    /// Blocks that the registers of an SM hold.
    pub fn blocks_per_sm(&self) -> usize {
        MAX_WARPS / self.num_warps()
    }

    pub fn fragments(&self) -> usize {
        self.warps[0] * self.warps[1] * self.variant.units() * self.variant.octets()
    }

    /// Pairs of octets of columns.
    pub fn used_units(&self, has_bias: bool) -> usize {
        (self.taps * self.slab_chunks + usize::from(has_bias)).div_ceil(2)
    }

    /// Bytes that a block writes for one part.
    pub fn used_bytes(&self, has_bias: bool) -> usize {
        self.used_units(has_bias) * self.out_chunks * self.grad_taps * 32 * 16
    }

    /// Bytes that a block's sums have room for.
    pub fn sum_bytes(&self) -> usize {
        self.fragments() * 32 * 16
    }
}

/// The blocks that are predicted to take least; `None` where no tile fits shared memory. Does not depend on what blocks read beyond
/// [`Sources::nominal`], so that a workspace fits all sources.
pub fn choose_blocking(op: &Conv3d, side: TapsOfTime, sources: Sources, limits: Limits) -> Option<Blocking> {
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
