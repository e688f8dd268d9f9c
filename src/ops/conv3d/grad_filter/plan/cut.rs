//! How the tiles of a batch are cut into parts, and what it costs to add them up.

use super::Sources;
use super::blocking::Blocking;

/// Largest y and z of a grid.
const MAX_PARTS: usize = 65535;
/// Warps of a block that adds up parts (`SUM_WARPS` in the kernel).
pub const SUM_WARPS: usize = 16;

/// How the tiles of a batch are cut into parts: see `docs/decisions/split_order.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
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
    pub fn continuous(num_tiles: usize) -> Cut {
        let (tiles_per_split, tiles_per_part) = (num_tiles, num_tiles);
        Cut { tiles_per_split, tiles_per_part, parts_per_split: 1, num_parts: 1, has_partials: false }
    }

    /// Equal parts of each split.
    pub fn of_splits(tiles_per_split: usize, num_tiles: usize, parts_per_split: usize) -> Cut {
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
    pub fn of_tiles(self, num_tiles: usize) -> Cut {
        if !self.has_partials {
            return Cut::continuous(num_tiles);
        }
        let full = (num_tiles - 1) / self.tiles_per_split;
        let last = (num_tiles - full * self.tiles_per_split).div_ceil(self.tiles_per_part);
        Cut { num_parts: full * self.parts_per_split + last, ..self }
    }
}

/// Parts of a batch that make more blocks than this times the places for blocks cost too much memory.
const MOST_WAVES: usize = 4;

/// How a batch may be cut into parts; does not depend on tiles, so that a workspace fits all sources.
pub struct Room {
    /// Whether it may be one part. Warps that share a tile's rows have sums of their own, which end with a split; and the kernel that
    /// gathers through a pool has no registers left to go on with; and splits may each have a gradient.
    pub is_continuous: bool,
    /// As many as there are places for blocks, or one; 0: it must be one part.
    pub parts_per_split: usize,
}

impl Room {
    pub fn of(blocking: &Blocking, sources: &Sources, num_blocks: usize, splits: usize, num_sms: usize) -> Room {
        let places = num_sms * blocking.blocks_per_sm();
        let most = (places / num_blocks).clamp(1, MAX_PARTS);
        let is_continuous = splits == 1 || (blocking.warps[2] == 1 && sources.pool.is_none() && !sources.of_splits);
        let is_affordable = splits <= (MOST_WAVES * most).min(MAX_PARTS) || !is_continuous;
        Room { is_continuous, parts_per_split: if is_affordable { (most / splits).max(1) } else { 0 } }
    }

    /// Whether it is cut where memory and time speak against it.
    pub fn is_forced(blocking: &Blocking, num_blocks: usize, splits: usize, num_sms: usize) -> bool {
        let places = num_sms * blocking.blocks_per_sm();
        splits > 1 && blocking.warps[2] > 1 && splits > MOST_WAVES * (places / num_blocks).max(1)
    }
}

/// Clocks that a second launch takes which adds up the parts, and writing them before.
pub fn sum_clocks(blocking: &Blocking, sources: &Sources, num_blocks: usize, num_parts: usize, num_sms: usize) -> f64 {
    let bytes = 2 * num_blocks * blocking.used_bytes(sources.has_bias);
    if num_parts == 1 { 0.0 } else { 3500.0 + bytes as f64 / (20.0 * num_sms as f64) }
}
