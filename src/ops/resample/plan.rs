//! Which kernel runs, and how the output is cut up: pure, without a device.

use super::{Axis, Filter};
use crate::device::DType;
use crate::device::LaunchConfig;
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// Warps of a block (`WARPS` in the kernel).
const WARPS: usize = 4;
/// Rows of the output that a warp makes (`ROWS` in the kernel).
const ROWS: usize = 4;
/// Bytes that a lane filters at a time (`CHUNK` in the kernel).
const CHUNK: usize = 8;
/// Widest tile: 32 lanes with `COLUMNS` columns each, as the kernel has them.
const MAX_TILE: usize = 128;
/// Shared memory of a block that leaves room for seven blocks on an SM of 228 KiB.
const GOOD_SHARED_BYTES: usize = 32 << 10;
/// Shared memory that every GPU from sm_80 on gives a block.
const MAX_SHARED_BYTES: usize = 99 << 10;
/// Largest y and z of a grid.
const MAX_GRID_YZ: usize = 65535;

/// How a batch is resampled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub kernel: &'static str,
    /// Columns of the output that a warp makes.
    pub tile: usize,
    pub num_tiles: usize,
    /// Shared floats of a warp: the source columns of a tile, filtered in t and y.
    pub row_floats: usize,
    pub config: LaunchConfig,
}

/// Plans `num_frames` frames of all clips; `output` gives clips, height and width, `x_axes` the grids in x.
pub(super) fn plan<'a>(
    filter: Filter,
    dtype: DType,
    output: ActivationShape,
    num_frames: usize,
    x_axes: impl Iterator<Item = &'a Axis> + Clone,
) -> Result<Plan> {
    let too_large = |what: String| Err(Error::unsupported(super::OP, what));
    if num_frames > MAX_GRID_YZ || output.n > MAX_GRID_YZ {
        return too_large(format!(
            "at most {MAX_GRID_YZ} clips and frames a launch, got {} and {num_frames}",
            output.n
        ));
    }
    let mut num_tiles = output.w.div_ceil(MAX_TILE);
    let (tile, row_floats) = loop {
        let tile = output.w.div_ceil(num_tiles);
        let columns = x_axes.clone().map(|axis| source_columns(filter, axis, tile)).max().unwrap_or(1);
        let row_floats = (columns * 3).next_multiple_of(CHUNK);
        let shared_bytes = WARPS * row_floats * size_of::<f32>();
        if shared_bytes <= GOOD_SHARED_BYTES || (tile <= 32 && shared_bytes <= MAX_SHARED_BYTES) {
            break (tile, row_floats);
        }
        if tile == 1 {
            return too_large(format!("a step in x so long that one output reads {columns} columns"));
        }
        num_tiles = output.w.div_ceil(tile / 2);
    };
    let num_tiles = output.w.div_ceil(tile);
    let grid_x = num_tiles * output.h.div_ceil(WARPS * ROWS);
    if grid_x > i32::MAX as usize {
        return too_large(format!("an output of {} x {}", output.h, output.w));
    }
    let shared_bytes = (WARPS * row_floats * size_of::<f32>()) as u32;
    let grid = [grid_x as u32, num_frames as u32, output.n as u32];
    let config = LaunchConfig { grid, block: [32 * WARPS as u32, 1, 1], shared_bytes };
    Ok(Plan { kernel: kernel(filter, dtype), tile, num_tiles, row_floats, config })
}

/// Source columns that `tile` neighbouring outputs read at most.
fn source_columns(filter: Filter, axis: &Axis, tile: usize) -> usize {
    let step = f64::from(axis.step.abs());
    let half_width = if filter == Filter::TrilinearAntialias { step.max(1.0) } else { 1.0 };
    // One more for rounding of the positions.
    let reach = (tile - 1) as f64 * step + 2.0 * half_width + 2.0;
    let interval = (axis.hi - axis.lo) as usize + 1;
    if reach < interval as f64 { reach as usize } else { interval }
}

fn kernel(filter: Filter, dtype: DType) -> &'static str {
    match (filter, dtype) {
        (Filter::Trilinear, DType::Bf16) => "resample_forward_linear_bf16",
        (Filter::Trilinear, DType::F16) => "resample_forward_linear_f16",
        (Filter::Trilinear, _) => "resample_forward_linear_f32",
        (Filter::NearestInTime, DType::Bf16) => "resample_forward_nearest_bf16",
        (Filter::NearestInTime, DType::F16) => "resample_forward_nearest_f16",
        (Filter::NearestInTime, _) => "resample_forward_nearest_f32",
        (Filter::TrilinearAntialias, DType::Bf16) => "resample_forward_antialias_bf16",
        (Filter::TrilinearAntialias, DType::F16) => "resample_forward_antialias_f16",
        (Filter::TrilinearAntialias, _) => "resample_forward_antialias_f32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(filter: Filter, width: usize, source_px: usize) -> Result<Plan> {
        let axis = Axis::crop_then_resize(0, source_px, width);
        plan(filter, DType::Bf16, ActivationShape::new(8, 32, width, width, 4), 32, [axis].iter())
    }

    #[test]
    fn tiles_of_the_multigrid_crops() {
        // crop, source columns -> tile, tiles, shared floats of a warp
        for (crop, source, want) in
            [(224, 256, (112, 2, 392)), (158, 256, (79, 2, 392)), (112, 256, (112, 1, 768)), (64, 1920, (32, 2, 2808))]
        {
            let plan = planned(Filter::Trilinear, crop, source).unwrap();
            assert_eq!((plan.tile, plan.num_tiles, plan.row_floats), want, "crop {crop} of {source}");
            assert_eq!(plan.config.grid, [(plan.num_tiles * crop.div_ceil(16)) as u32, 32, 8]);
            assert!(plan.config.shared_bytes as usize <= MAX_SHARED_BYTES);
        }
    }

    #[test]
    fn refuses_what_no_block_can_hold() {
        assert!(planned(Filter::Trilinear, 2, 16384).is_ok());
        let error = planned(Filter::TrilinearAntialias, 2, 16384).unwrap_err().to_string();
        assert!(error.contains("a step in x so long"), "{error}");
    }
}
