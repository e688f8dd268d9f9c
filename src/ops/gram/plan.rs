//! How the kernels cut up their work: pure, without a device. The same sizes give the same cut, hence the same bits, on every GPU.

use std::fmt;

use super::Gram;
use crate::device::{DType, LaunchConfig};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;
use crate::ops::row_plan::RowTiles;

/// Threads of a block of all three kernels.
const THREADS: u32 = 256;
/// Elements of a tile of channels in one stage, stages, and rows that an accumulator takes (kernels/gram/gram_moments.cu).
const STAGE_ELEMENTS: usize = 4096;
const STAGES: usize = 4;
const FLUSH_ROWS: usize = 256;
/// Sums of [`FLUSH_ROWS`] rows that are added up in f32.
const MAX_FLUSHES: usize = 16;
/// Blocks that the rows are cut into: two on each of 132 SMs. More would write more partial sums.
const BLOCKS: usize = 264;
/// Columns of a block of the merge, and bytes of its shared memory.
const MERGE_COLUMNS: usize = 32;
const MERGE_BYTES: u32 = 8 * 8 * 3 * MERGE_COLUMNS as u32;
/// Output channels, and columns of the covariance, of a block of the statistics.
const TILE: usize = 64;

const LIMIT: usize = 1 << 30;

/// The cut of the moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MomentsPlan {
    /// Channels of a tile.
    pub tile: usize,
    pub channels: usize,
    /// A tile of rows is a slab.
    pub slabs: RowTiles,
    pub splits: usize,
}

impl MomentsPlan {
    pub fn new(name: &'static str, op: &Gram) -> Result<MomentsPlan> {
        let (c, (rows, rows_per_split)) = (op.c_in, op.norm.rows());
        if !c.is_multiple_of(8) || c > 4096 {
            let message = format!("c_in must be a multiple of 8 and at most 4096, got {c}; use the standard form");
            return Err(Error::unsupported(name, message));
        }
        if rows >= LIMIT || op.norm.splits > 65535 {
            let message =
                format!("positions must be below {LIMIT}, splits at most 65535, got {rows}, {}", op.norm.splits);
            return Err(Error::unsupported(name, message));
        }
        let tile = if c <= 16 { 16 } else { c.next_power_of_two().min(64) };
        let (stage_rows, pairs) = (STAGE_ELEMENTS / tile, pairs(c, tile));
        let warps = if tile == 64 { 8 } else { tile / 16 };
        let most = MAX_FLUSHES * FLUSH_ROWS * 8 / warps;
        let wanted = op.norm.rows_of_batch().div_ceil(BLOCKS.div_ceil(pairs));
        let slab_rows = wanted.min(rows_per_split).next_multiple_of(stage_rows).clamp(2 * stage_rows, most);
        let slabs = RowTiles::new(rows, rows_per_split, slab_rows, 1);
        Ok(MomentsPlan { tile, channels: c, slabs, splits: op.norm.splits_used() })
    }

    pub fn kernel(&self, dtype: DType) -> String {
        format!("gram_moments_mma{}_{}", self.tile, suffix(dtype))
    }

    pub fn launch(&self) -> LaunchConfig {
        let tiles_of_pair = if self.channels > self.tile { 2 } else { 1 };
        let blocks = self.slabs.num_tiles() * pairs(self.channels, self.tile);
        let shared_bytes = (STAGES * tiles_of_pair * STAGE_ELEMENTS * 2) as u32;
        LaunchConfig { grid: [blocks as u32, 1, 1], block: [THREADS, 1, 1], shared_bytes }
    }

    pub fn launch_merge(&self) -> LaunchConfig {
        let grid = [self.channels.div_ceil(MERGE_COLUMNS), self.channels, self.splits].map(|size| size as u32);
        LaunchConfig { grid, block: [THREADS, 1, 1], shared_bytes: MERGE_BYTES }
    }

    fn partials_bytes(&self) -> usize {
        4 * self.slabs.num_tiles() * (self.channels + self.channels * self.channels)
    }
}

/// Pairs of tiles of channels.
fn pairs(channels: usize, tile: usize) -> usize {
    let tiles = channels.div_ceil(tile);
    tiles * (tiles + 1) / 2
}

fn suffix(dtype: DType) -> &'static str {
    if dtype == DType::Bf16 { "bf16" } else { "f16" }
}

impl fmt::Display for MomentsPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RowTiles { rows, splits, tile_rows, .. } = self.slabs;
        write!(
            f,
            "{} slabs of {tile_rows} of {rows} rows in {splits} splits, {} pairs of tiles of {} of {} channels",
            self.slabs.num_tiles(),
            pairs(self.channels, self.tile),
            self.tile,
            self.channels
        )
    }
}

/// Tiles of columns and of output channels of the statistics.
fn tiles(op: &Gram) -> [usize; 2] {
    [op.c_in.div_ceil(TILE), op.norm.shape.c.div_ceil(TILE)]
}

pub(super) fn launch_statistics(name: &'static str, op: &Gram, dtype: DType) -> Result<(String, LaunchConfig)> {
    let ([columns, outputs], splits) = (tiles(op), op.norm.splits_used());
    if !op.c_in.is_multiple_of(8) || 4 * splits * outputs > TICKET_BYTES {
        let message = format!(
            "c_in must be a multiple of 8, splits times 64 output channels at most {}, got {} and {splits} x {outputs}",
            TICKET_BYTES / 4,
            op.c_in
        );
        return Err(Error::unsupported(name, message));
    }
    let parts = if dtype == DType::Bf16 { 4 } else { 5 };
    let shared_bytes = (parts * TILE * TILE * 2 + 4 * TILE * 8 + 16) as u32;
    let grid = [columns as u32, outputs as u32, splits as u32];
    let kernel = format!("gram_statistics_mma{TILE}_{}", suffix(dtype));
    Ok((kernel, LaunchConfig { grid, block: [THREADS, 1, 1], shared_bytes }))
}

/// Scratch memory of both; 0 where no kernel takes these sizes, which a launch then says.
pub(super) fn workspace_bytes(op: &Gram) -> usize {
    let Ok(plan) = MomentsPlan::new("gram", op) else { return 0 };
    let of_statistics = op.norm.splits_used() * tiles(op)[0] * 2 * op.norm.shape.c * size_of::<f64>();
    TICKET_BYTES + plan.partials_bytes().max(of_statistics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::batch_norm::BatchNorm;
    use crate::shape::{ActivationShape, Part};

    fn op(input: [usize; 5], c_out: usize, splits: usize) -> Gram {
        let [n, t, h, w, c_in] = input;
        let shape = ActivationShape::new(n, t, h, w, c_out);
        Gram { norm: BatchNorm { shape, splits, eps: 1e-5, relu: true, part: None }, c_in }
    }

    #[test]
    fn slabs_of_the_networks() {
        // input, splits -> channels of a tile, rows of a slab, slabs, blocks, MB of partial sums
        for (input, splits, want) in [
            ([8, 8, 56, 56, 64], 1, (64, 768, 262, 262, 4)),
            ([8, 8, 56, 56, 64], 8, (64, 768, 264, 264, 4)),
            ([8, 8, 28, 28, 128], 1, (64, 576, 88, 264, 5)),
            ([8, 8, 14, 14, 256], 1, (64, 512, 25, 250, 6)),
            ([8, 8, 7, 7, 512], 1, (64, 448, 7, 252, 7)),
            ([8, 32, 56, 56, 8], 1, (16, 3072, 262, 262, 0)),
            ([8, 32, 28, 28, 16], 1, (16, 768, 262, 262, 0)),
            ([8, 32, 14, 14, 32], 1, (32, 256, 196, 196, 0)),
            ([64, 8, 40, 40, 64], 8, (64, 3136, 264, 264, 4)),
            ([2, 1, 2, 3, 24], 2, (32, 256, 2, 2, 0)),
        ] {
            let plan = MomentsPlan::new("gram", &op(input, 256, splits)).unwrap();
            let bytes = plan.partials_bytes() >> 20;
            let got = (plan.tile, plan.slabs.tile_rows, plan.slabs.num_tiles(), plan.launch().grid[0], bytes);
            assert_eq!(got, want, "{input:?} in {splits} splits: {plan}");
        }
    }

    #[test]
    fn a_part_is_cut_as_its_batch() {
        let whole = op([8, 8, 14, 14, 64], 256, 4);
        let mut part = op([2, 8, 14, 14, 64], 256, 1);
        part.norm.part = Some(Part { batch_clips: 8, batch_splits: 4, first_clip: 2 });
        let [a, b] = [whole, part].map(|op| MomentsPlan::new("gram", &op).unwrap().slabs);
        assert_eq!((a.tile_rows, a.tiles_per_split), (b.tile_rows, b.tiles_per_split));
    }

    #[test]
    fn what_no_kernel_takes() {
        let told = |op: Gram| MomentsPlan::new("gram moments", &op).unwrap_err().to_string();
        assert!(told(op([1, 1, 4, 4, 12], 8, 1)).contains("multiple of 8 and at most 4096, got 12"));
        assert!(told(op([1 << 10, 1 << 10, 32, 32, 8], 8, 1)).contains("positions must be below"));
        let many = op([2048, 1, 2, 1, 8], 1024, 2048);
        assert!(launch_statistics("gram", &many, DType::Bf16).unwrap_err().to_string().contains("2048 x 16"));
    }
}
