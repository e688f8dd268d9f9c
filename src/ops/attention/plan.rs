//! Which kernels run, and their tiles: pure, without a device.

use super::Sizes;
use crate::device::{DType, LaunchConfig};
use crate::error::{Error, Result};

/// Threads of a block (`THREADS` in the kernels).
const THREADS: u32 = 256;
/// Largest y of a grid.
const MAX_CLIPS: usize = 65535;
/// Positions of a clip: beyond the last tile of them the kernels still count in 32 bits.
const MAX_ROWS: usize = 1 << 30;

/// One of the three kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    GradQuery,
    GradKey,
}

/// How one pass runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub kernel: String,
    pub config: LaunchConfig,
}

/// Plans a pass: heads are padded to 64, 128, 256 or 512 channels.
pub(super) fn plan(pass: Pass, dtype: DType, sizes: &Sizes) -> Result<Plan> {
    if sizes.clips > MAX_CLIPS || sizes.queries.max(sizes.keys) >= MAX_ROWS {
        let Sizes { clips, queries, keys, .. } = sizes;
        let message =
            format!("at most {MAX_CLIPS} clips of less than 2^30 positions, got {clips} of {queries} and {keys}");
        return Err(Error::unsupported(sizes.op, message));
    }
    let depth = sizes.depth.next_power_of_two().max(64);
    // Rows that a block keeps, and rows that stream past: as in the kernels.
    let small = if depth <= 256 { 64 } else { 32 };
    let (resident, streamed, rows) = match pass {
        Pass::Forward => (64, small, sizes.queries),
        Pass::GradQuery => (small, small, sizes.queries),
        Pass::GradKey => (small, small, sizes.keys),
    };
    // Tiles of rows, of scores, and f32 of rows.
    let (of_resident, scores, floats) = match pass {
        Pass::Forward => (1, 1, 3 * resident),
        Pass::GradQuery => (2, 1, 2 * resident),
        Pass::GradKey => (2, 2, 2 * streamed),
    };
    let shared_bytes =
        2 * (of_resident * resident * depth + 2 * streamed * depth + scores * resident * streamed) + 4 * floats;
    let name = match pass {
        Pass::Forward => "forward",
        Pass::GradQuery => "grad_query",
        Pass::GradKey => "grad_key",
    };
    let suffix = if dtype == DType::Bf16 { "bf16" } else { "f16" };
    let grid = [rows.div_ceil(resident) as u32, sizes.clips as u32, 1];
    let config = LaunchConfig { grid, block: [THREADS, 1, 1], shared_bytes: shared_bytes as u32 };
    Ok(Plan { kernel: format!("attention_{name}_mma{depth}_{suffix}"), config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_the_non_local_blocks() {
        // clips, queries, keys, channels -> kernels, blocks in x, shared bytes: I3D-NLN-8x8-R50 at res3 and res4, a narrow net
        for (sizes, names, grids, shared) in [
            ([8, 6272, 1568, 256], "mma256_bf16", [98, 98, 25], [107_264, 139_776, 147_968]),
            ([8, 1568, 392, 512], "mma512_bf16", [25, 49, 13], [135_936, 133_376, 135_424]),
            ([2, 40, 10, 24], "mma64_bf16", [1, 1, 1], [33_536, 41_472, 49_664]),
        ] {
            let [clips, queries, keys, depth] = sizes;
            let sizes = Sizes { op: "attention", clips, queries, keys, depth };
            for (i, pass) in [Pass::Forward, Pass::GradQuery, Pass::GradKey].into_iter().enumerate() {
                let plan = plan(pass, DType::Bf16, &sizes).unwrap();
                assert!(plan.kernel.ends_with(names), "{}", plan.kernel);
                assert_eq!(plan.config.grid, [grids[i], clips as u32, 1], "{pass:?} {sizes:?}");
                assert_eq!(plan.config.shared_bytes, shared[i], "{pass:?} {sizes:?}");
                // What a block of sm_80 may have.
                assert!(plan.config.shared_bytes <= 163 << 10);
            }
        }
    }
}
