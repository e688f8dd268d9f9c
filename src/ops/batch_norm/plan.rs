//! How the kernels cut up a tensor, and the scratch memory that this takes: pure, without a device.

use super::BatchNorm;
use crate::device::DType;
use crate::error::Result;
use crate::ops::row_plan::{RowPlan, RowWork, Variants, variants};

pub(super) const STATISTICS: Variants = variants!("batch_norm_statistics");
pub(super) const APPLY: Variants = variants!("batch_norm_apply");
pub(super) const GRADIENT_SUMS: Variants = variants!("batch_norm_gradient_sums");
pub(super) const GRADIENT: Variants = variants!("batch_norm_gradient");

/// Rows that a thread loads at once (`BATCH` in the kernels), of one tensor; kernels that read three take half of them.
const BATCH: usize = 4;

fn plan(
    name: &'static str,
    op: &BatchNorm,
    of: Variants,
    dtype: DType,
    is_wide: bool,
    is_sum: bool,
) -> Result<RowPlan> {
    let (rows, rows_per_split) = op.rows();
    RowPlan::new(
        name,
        of,
        &RowWork {
            rows,
            rows_of_batch: op.rows_of_batch(),
            rows_per_split,
            channels: op.shape.c,
            dtype,
            is_wide,
            batch: BATCH,
            is_sum,
        },
    )
}

/// A kernel that forms sums over the rows.
pub(super) fn sums(name: &'static str, op: &BatchNorm, of: Variants, dtype: DType, is_wide: bool) -> Result<RowPlan> {
    plan(name, op, of, dtype, is_wide, true).inspect(|plan| plan.print(name))
}

/// A kernel that takes each element for itself.
pub(super) fn each(name: &'static str, op: &BatchNorm, of: Variants, dtype: DType, is_wide: bool) -> Result<RowPlan> {
    plan(name, op, of, dtype, is_wide, false).inspect(|plan| plan.print(name))
}

/// Scratch memory of the kernels that form sums: enough for each type and alignment, as tensors are not known yet. 0 where
/// no kernel takes these sizes, which a launch then says.
pub(super) fn workspace_bytes(op: &BatchNorm) -> usize {
    let variants = [DType::Bf16, DType::F32].into_iter().flat_map(|dtype| [(dtype, true), (dtype, false)]);
    let of = |(dtype, wide): (DType, bool)| {
        let is_possible = !wide || op.shape.c.is_multiple_of(16 / dtype.size_bytes());
        let plan = is_possible.then(|| plan("batch_norm", op, STATISTICS, dtype, wide, true).ok()).flatten();
        plan.map_or(0, |p| p.workspace_bytes())
    };
    variants.map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::ActivationShape;

    #[test]
    fn plans_of_slowfast() {
        // layer, splits -> kernel, columns, tiles, rows of a tile of the statistics; blocks of apply; MB of scratch memory
        for (shape, splits, want) in [
            ([8, 8, 112, 112, 64], 1, ("batch_norm_statistics_vector8_bf16", 1, 1568, 512, 1255, 1)),
            ([8, 32, 112, 112, 8], 1, ("batch_norm_statistics_vector8_bf16", 1, 1568, 2048, 1568, 0)),
            ([64, 8, 14, 14, 256], 8, ("batch_norm_statistics_vector8_bf16", 1, 1568, 64, 1568, 3)),
            ([8, 8, 7, 7, 2048], 1, ("batch_norm_statistics_vector8_bf16", 8, 98, 32, 784, 3)),
            ([8, 8, 7, 7, 20], 1, ("batch_norm_statistics_scalar_bf16", 1, 66, 48, 66, 0)),
        ] {
            let [n, t, h, w, c] = shape;
            let op =
                BatchNorm { shape: ActivationShape::new(n, t, h, w, c), splits, eps: 1e-5, relu: true, part: None };
            let wide = c.is_multiple_of(8);
            let plan = sums("batch_norm statistics", &op, STATISTICS, DType::Bf16, wide).unwrap();
            let blocks = each("batch_norm apply", &op, APPLY, DType::Bf16, wide).unwrap();
            let blocks = blocks.tiles.num_tiles() * blocks.columns;
            let megabytes = workspace_bytes(&op) >> 20;
            let tiles = (plan.tiles.num_tiles(), plan.tiles.tile_rows);
            assert_eq!((plan.kernel, plan.columns, tiles.0, tiles.1, blocks, megabytes), want, "{shape:?}: {plan}");
        }
    }
}
