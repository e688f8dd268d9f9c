//! How the kernels cut up a pool: pure, without a device.

use super::Pool3d;
use crate::device::DType;
use crate::error::Result;
use crate::ops::row_plan::{RowPlan, RowWork, Variants, variants};
use crate::shape::Part;

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ForwardMax,
    ForwardAverage,
    /// One window a clip, as large as the clip: a sum over rows instead of a walk over windows.
    ForwardGlobal,
    GradInputMax,
    GradInputAverage,
    /// With the sums of the batch norm before it.
    GradNorm,
}

impl Kind {
    fn variants(self) -> Variants {
        match self {
            Kind::ForwardMax => variants!("pool3d_forward_max"),
            Kind::ForwardAverage => variants!("pool3d_forward_average"),
            Kind::ForwardGlobal => variants!("pool3d_forward_global"),
            Kind::GradInputMax => variants!("pool3d_grad_input_max"),
            Kind::GradInputAverage => variants!("pool3d_grad_input_average"),
            Kind::GradNorm => variants!("pool3d_grad_norm_max"),
        }
    }
}

/// Plans a kernel; `batch`: of the clips, whose splits have tables of their own.
pub(super) fn plan(
    name: &'static str,
    op: &Pool3d,
    kind: Kind,
    batch: Part,
    dtype: DType,
    is_wide: bool,
) -> Result<RowPlan> {
    let walked = match kind {
        Kind::ForwardMax | Kind::ForwardAverage => op.output(),
        _ => op.input,
    };
    let per_clip = walked.t * walked.h * walked.w;
    let clips_per_split = if kind == Kind::ForwardGlobal { 1 } else { batch.clips_per_split() };
    let work = RowWork {
        rows: walked.num_positions(),
        rows_of_batch: batch.batch_clips * per_clip,
        rows_per_split: clips_per_split * per_clip,
        channels: walked.c,
        dtype,
        is_wide,
        batch: 1,
        is_sum: kind == Kind::GradNorm,
    };
    match kind {
        Kind::ForwardGlobal => RowPlan::whole_splits(name, kind.variants(), &work),
        _ => RowPlan::new(name, kind.variants(), &work),
    }
}

/// Scratch memory of [`Kind::GradNorm`], for each type and alignment.
pub(super) fn workspace_bytes(op: &Pool3d, batch: Part) -> usize {
    let variants = [DType::Bf16, DType::F32].into_iter().flat_map(|dtype| [(dtype, true), (dtype, false)]);
    let of = |(dtype, wide): (DType, bool)| {
        let is_possible = !wide || op.input.c.is_multiple_of(16 / dtype.size_bytes());
        let plan = is_possible.then(|| plan("pool3d", op, Kind::GradNorm, batch, dtype, wide).ok()).flatten();
        plan.map_or(0, |p| p.workspace_bytes())
    };
    variants.map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::PoolKind;
    use super::*;
    use crate::shape::ActivationShape;

    #[test]
    fn plans_of_slowfast() {
        let stem = |t, c| Pool3d {
            kind: PoolKind::Max,
            input: ActivationShape::new(8, t, 112, 112, c),
            kernel: [1, 3, 3],
            stride: [1, 2, 2],
            padding: [0, 1, 1],
        };
        let head = |c| Pool3d::global_average(ActivationShape::new(8, 8, 7, 7, c));
        // op, kernel -> name, blocks, rows of a tile
        for (op, kind, want) in [
            (stem(8, 64), Kind::ForwardMax, ("pool3d_forward_max_vector8_bf16", 1255, 160)),
            (stem(32, 8), Kind::ForwardMax, ("pool3d_forward_max_vector8_bf16", 1568, 512)),
            (stem(8, 64), Kind::GradNorm, ("pool3d_grad_norm_max_vector8_bf16", 1930, 416)),
            (stem(8, 64), Kind::GradInputMax, ("pool3d_grad_input_max_vector8_bf16", 3136, 256)),
            (head(2048), Kind::ForwardGlobal, ("pool3d_forward_global_vector8_bf16", 256, 392)),
            (head(256), Kind::ForwardGlobal, ("pool3d_forward_global_vector8_bf16", 32, 392)),
            (head(256), Kind::GradInputAverage, ("pool3d_grad_input_average_vector8_bf16", 392, 8)),
        ] {
            let plan = plan("pool3d", &op, kind, Part::whole(op.input.n, 1), DType::Bf16, true).unwrap();
            let blocks = plan.tiles.num_tiles() * plan.columns;
            assert_eq!((plan.kernel, blocks, plan.tiles.tile_rows), want, "{op:?}: {plan}");
        }
    }
}
