//! Which kernel runs, and how the sums are cut up: pure, without a device.

use crate::device::{DType, LaunchConfig};
use crate::shape::{ActivationShape, Part};

/// Columns of a tile (`TILE_N` in the kernels).
const TILE_N: usize = 64;
/// Products that a stage holds (`TILE_K` in the kernels).
const TILE_K: usize = 64;
const STAGES: usize = 3;
const THREADS: u32 = 128;
/// Blocks that fill a GPU: sums are split until there are as many.
const GOOD_BLOCKS: usize = 128;
/// Fewest stages of a split: below, writing the partial sums costs more than it saves.
const MIN_STAGES: usize = 4;

/// What is computed: see kernels/linear/linear.cu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    GradInput,
    GradWeight,
}

impl Direction {
    /// m, n and k of the product.
    pub fn sizes(self, positions: usize, c_in: usize, c_out: usize) -> [usize; 3] {
        match self {
            Direction::Forward => [positions, c_out, c_in],
            Direction::GradInput => [positions, c_in, c_out],
            Direction::GradWeight => [c_out, c_in, positions],
        }
    }
}

/// The positions at hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Positions {
    /// Of the whole batch: choices are made for it.
    pub of_batch: usize,
    /// Of a batch-norm split.
    pub per_split: usize,
    /// Whether gradients hold the sums over those before.
    pub accumulates: bool,
}

impl Positions {
    /// Those of a tensor.
    pub fn of(shape: ActivationShape, part: Option<Part>) -> Positions {
        let (part, per_clip) = (part.unwrap_or(Part::whole(shape.n, 1)), shape.t * shape.h * shape.w);
        Positions {
            of_batch: part.batch_clips * per_clip,
            per_split: part.clips_per_split() * per_clip,
            accumulates: part.accumulates(),
        }
    }

    /// A batch in one split.
    pub fn one_split(positions: usize) -> Positions {
        Positions { of_batch: positions, per_split: positions, accumulates: false }
    }
}

/// How one product is computed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub kernel: &'static str,
    pub n_tiles: usize,
    pub k_per_split: usize,
    /// Products that instructions do not multiply across; all of them but for the gradient of the weight.
    pub k_together: usize,
    pub config: LaunchConfig,
    /// Partial sums and tickets of several splits; 0 for one.
    pub workspace_bytes: usize,
}

/// Tickets, which lie at the start of the workspace: one a tile, and only few tiles are split. The same for all ops, so that
/// one workspace serves them all.
pub(super) const TICKETS_BYTES: usize = crate::ops::TICKET_BYTES;
const _: () = assert!(4 * GOOD_BLOCKS <= TICKETS_BYTES);

/// Plans a product. Without a workspace there is one split; likewise of the gradient of a weight whose sums go on from one batch-norm
/// split to the next.
pub(super) fn plan(
    direction: Direction,
    dtype: DType,
    [m, n, k]: [usize; 3],
    positions: Positions,
    has_workspace: bool,
    has_grad_bias: bool,
) -> Plan {
    let is_weight = direction == Direction::GradWeight;
    let m_of_batch = if is_weight { m } else { positions.of_batch };
    let tile_m = if m_of_batch <= 16 { 16 } else { 64 };
    let (m_tiles, n_tiles, stages) = (m.div_ceil(tile_m), n.div_ceil(TILE_N), k.div_ceil(TILE_K));
    let goes_on = is_weight && positions.per_split < positions.of_batch;
    let may_split = has_workspace && !goes_on;
    let wanted = if may_split { GOOD_BLOCKS / (m_of_batch.div_ceil(tile_m) * n_tiles) } else { 1 };
    let per_split = stages.div_ceil(wanted.max(1)).max(MIN_STAGES.min(stages));
    let splits = stages.div_ceil(per_split);
    let grid_x = n_tiles + usize::from(has_grad_bias);
    let config = LaunchConfig {
        grid: [grid_x as u32, m_tiles as u32, splits as u32],
        block: [THREADS, 1, 1],
        shared_bytes: (STAGES * (tile_m + TILE_N) * TILE_K * 2) as u32,
    };
    let mut plan = Plan {
        kernel: kernel(direction, dtype, tile_m),
        n_tiles,
        k_per_split: per_split * TILE_K,
        k_together: if goes_on { positions.per_split } else { k },
        config,
        workspace_bytes: 0,
    };
    if splits > 1 {
        plan.workspace_bytes = TICKETS_BYTES + 4 * splits * m_tiles * n_tiles * tile_m * TILE_N;
    }
    plan
}

fn kernel(direction: Direction, dtype: DType, tile_m: usize) -> &'static str {
    match (direction, dtype, tile_m) {
        (Direction::Forward, DType::Bf16, 16) => "linear_forward_mma16x64_bf16",
        (Direction::Forward, DType::Bf16, _) => "linear_forward_mma64x64_bf16",
        (Direction::Forward, _, 16) => "linear_forward_mma16x64_f16",
        (Direction::Forward, _, _) => "linear_forward_mma64x64_f16",
        (Direction::GradInput, DType::Bf16, 16) => "linear_grad_input_mma16x64_bf16",
        (Direction::GradInput, DType::Bf16, _) => "linear_grad_input_mma64x64_bf16",
        (Direction::GradInput, _, 16) => "linear_grad_input_mma16x64_f16",
        (Direction::GradInput, _, _) => "linear_grad_input_mma64x64_f16",
        (Direction::GradWeight, DType::Bf16, 16) => "linear_grad_weight_mma16x64_bf16",
        (Direction::GradWeight, DType::Bf16, _) => "linear_grad_weight_mma64x64_bf16",
        (Direction::GradWeight, _, 16) => "linear_grad_weight_mma16x64_f16",
        (Direction::GradWeight, _, _) => "linear_grad_weight_mma64x64_f16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_the_heads() {
        // direction, positions, c_in, c_out -> kernel, grid, products of a split
        for (direction, sizes, kernel, grid, k_per_split) in [
            // SlowFast-R50 on Kinetics: 8 clips, 128 clips
            (Direction::Forward, [8, 2304, 400], "linear_forward_mma16x64_bf16", [7, 1, 9], 256),
            (Direction::GradInput, [8, 2304, 400], "linear_grad_input_mma16x64_bf16", [36, 1, 2], 256),
            (Direction::GradWeight, [8, 2304, 400], "linear_grad_weight_mma64x64_bf16", [36, 7, 1], 64),
            (Direction::Forward, [128, 2304, 400], "linear_forward_mma64x64_bf16", [7, 2, 9], 256),
            (Direction::GradInput, [128, 2304, 400], "linear_grad_input_mma64x64_bf16", [36, 2, 1], 448),
            (Direction::GradWeight, [128, 2304, 400], "linear_grad_weight_mma64x64_bf16", [36, 7, 1], 128),
            // Six classes; a thousand
            (Direction::Forward, [64, 2304, 6], "linear_forward_mma64x64_bf16", [1, 1, 9], 256),
            (Direction::GradWeight, [64, 2304, 6], "linear_grad_weight_mma16x64_bf16", [36, 1, 1], 64),
            (Direction::Forward, [32, 2048, 1000], "linear_forward_mma64x64_bf16", [16, 1, 8], 256),
            // Many positions: the filter's gradient is split
            (Direction::GradWeight, [6272, 256, 128], "linear_grad_weight_mma64x64_bf16", [4, 2, 14], 448),
        ] {
            let [positions, c_in, c_out] = sizes;
            let (sizes, of) = (direction.sizes(positions, c_in, c_out), Positions::one_split(positions));
            let got = plan(direction, DType::Bf16, sizes, of, true, false);
            assert_eq!(
                (got.kernel, got.config.grid, got.k_per_split),
                (kernel, grid, k_per_split),
                "{direction:?} {sizes:?}"
            );
            let one = plan(direction, DType::Bf16, sizes, of, false, true);
            assert_eq!((one.config.grid[0], one.config.grid[2], one.workspace_bytes), (grid[0] + 1, 1, 0));
        }
    }

    #[test]
    fn the_workspace_holds_tickets_and_sums() {
        let plan = plan(Direction::Forward, DType::F16, [8, 400, 2304], Positions::one_split(8), true, false);
        assert_eq!(plan.workspace_bytes, TICKETS_BYTES + 4 * 9 * 7 * 16 * 64);
    }
}
