//! Ops that do what a plain plan has as several: named as the functions that they call.

use crate::device::Stream;
use crate::model::layers::{NormId, ParamId};
use crate::model::plan::{Access, OpKind, TensorId};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::conv3d::{self, Beside, Conv3d, Direction};
use crate::ops::gram::{self, Gram};
use crate::ops::pool3d::{self, Pool3d};
use crate::shape::{ActivationShape, Part};

/// A table `scale_shift` of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Table {
    /// From the statistics of this batch.
    Batch(TensorId),
    /// From the running statistics of a norm.
    Running(NormId),
}

/// An activation on load: a stored tensor, or what its batch norm, join and ReLU make of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// What is in memory.
    pub tensor: TensorId,
    /// `relu(s x + b)`, or what the join says. Without a table the tensor is read as it is.
    pub scale_shift: Option<Table>,
    /// The end of a residual block.
    pub join: Option<LoadJoin>,
}

/// `relu(s y + b + r)`, with `r` a stored tensor or one with a table of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadJoin {
    /// `r`, or what the shortcut's convolution stored.
    pub residual: TensorId,
    /// The batch norm of the shortcut.
    pub residual_scale_shift: Option<Table>,
    /// Receives the block's output, on its way.
    pub output: Option<TensorId>,
}

impl Load {
    /// A tensor as it is.
    pub fn stored(tensor: TensorId) -> Load {
        Load { tensor, scale_shift: None, join: None }
    }

    fn visit(&self, see: &mut dyn FnMut(Access)) {
        see(Access::Read(self.tensor));
        let join = self.join.as_ref();
        for table in [self.scale_shift, join.and_then(|j| j.residual_scale_shift)] {
            if let Some(Table::Batch(table)) = table {
                see(Access::Read(table));
            }
        }
        if let Some(join) = join {
            see(Access::Read(join.residual));
            join.output.into_iter().for_each(|o| see(Access::Write(o)));
        }
    }
}

/// A batch norm whose statistics the op before it forms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormStatistics {
    /// What is normalised.
    pub op: BatchNorm,
    /// Which.
    pub norm: NormId,
    /// Receives `[splits][3][c]`.
    pub stats: TensorId,
    /// Receives `[splits][2][c]`.
    pub scale_shift: TensorId,
}

/// The shortcut of a residual block as its last convolution adds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortcut {
    /// A stored value, or what the shortcut's convolution stored.
    pub tensor: TensorId,
    /// The batch norm of the shortcut.
    pub scale_shift: Option<TensorId>,
}

/// Tables between the two passes of a Gram batch norm's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GramProducts {
    /// `[splits][c_out][c_in]`: sums of `g x'`.
    pub products: TensorId,
    /// `[splits][c_out]`: sums of `g`.
    pub grad_sums: TensorId,
}

/// What makes the gradient of the convolution's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GramFilter {
    /// `[splits][c_out + c_in][c_in]`.
    pub back_filter: TensorId,
    /// `[splits][c_in]`.
    pub back_shift: TensorId,
}

/// A gradient on load: a stored tensor, or that of a batch norm, `A g + B y + C`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadGrad {
    /// What is in memory.
    pub g: TensorId,
    /// The table `[splits][3][c]` and what forward stored.
    pub norm: Option<(TensorId, TensorId)>,
}

impl LoadGrad {
    fn visit(&self, see: &mut dyn FnMut(Access)) {
        see(Access::Read(self.g));
        if let Some((table, y)) = self.norm {
            see(Access::Read(table));
            see(Access::Read(y));
        }
    }
}

/// A max pool behind the batch norm and ReLU of a convolution, through which its gradient is gathered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherPool {
    /// The pool.
    pub op: Pool3d,
    /// Which position won each window.
    pub indices: TensorId,
    /// The batch norm's table, for the ReLU's mask.
    pub scale_shift: TensorId,
}

/// Where the ReLU was open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum PlannedMask {
    /// There was none, or not here.
    #[default]
    None,
    /// Where its stored output is positive.
    Output(TensorId),
    /// Where `s y + b` is positive: the table and y.
    Recomputed(TensorId, TensorId),
}

impl PlannedMask {
    fn visit(&self, see: &mut dyn FnMut(Access)) {
        match *self {
            PlannedMask::None => {}
            PlannedMask::Output(tensor) => see(Access::Read(tensor)),
            PlannedMask::Recomputed(table, y) => [table, y].into_iter().for_each(|t| see(Access::Read(t))),
        }
    }
}

/// A batch norm whose gradient begins here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormGrad {
    /// Which.
    pub norm: NormId,
    /// What it normalised.
    pub y: TensorId,
    /// From forward, `[splits][3][c]`.
    pub stats: TensorId,
    /// Receives A, B, C: `[splits][3][c]`.
    pub grad_table: TensorId,
}

impl NormGrad {
    fn visit(&self, see: &mut dyn FnMut(Access)) {
        see(Access::Read(self.y));
        see(Access::Read(self.stats));
        see(Access::Write(self.grad_table));
    }
}

/// What becomes of a gradient before it is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreGrad {
    /// Whether it is added to what its tensor holds.
    pub accumulate: bool,
    /// The ReLU.
    pub mask: PlannedMask,
    /// The batch norms, whose outputs were added up before the ReLU.
    pub norms: Vec<NormGrad>,
}

impl StoreGrad {
    fn visit(&self, grad_input: TensorId, see: &mut dyn FnMut(Access)) {
        self.mask.visit(see);
        see(Access::write(grad_input, self.accumulate));
        self.norms.iter().for_each(|norm| norm.visit(see));
    }
}

/// A fused op, its tensors and parameters by index.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The fields are the arguments of the op of the same name.
pub enum FusedOp {
    /// `conv3d::forward_fused`.
    Conv {
        op: Conv3d,
        filter: ParamId,
        bias: Option<ParamId>,
        input: Load,
        statistics: Option<NormStatistics>,
        output: TensorId,
    },
    /// `conv3d::grad_filter_fused`. With a `pool` the gradient is that of its output.
    ConvGradFilter {
        op: Conv3d,
        filter: ParamId,
        bias: Option<ParamId>,
        input: Load,
        grad_output: LoadGrad,
        pool: Option<GatherPool>,
    },
    /// `conv3d::grad_input_fused`. `store_dy` receives the gradient on load, for grad_filter.
    ConvGradInput {
        op: Conv3d,
        filter: ParamId,
        grad_output: LoadGrad,
        store_dy: Option<TensorId>,
        store: StoreGrad,
        grad_input: TensorId,
    },
    /// `conv3d::backward_fused`: both gradients at once.
    ConvBackward {
        op: Conv3d,
        filter: ParamId,
        input: Load,
        grad_output: LoadGrad,
        store: StoreGrad,
        grad_input: TensorId,
    },
    /// `gram::moments`.
    GramMoments { op: Gram, input: Load, moments: TensorId },
    /// `gram::statistics`.
    GramStatistics { op: Gram, filter: ParamId, moments: TensorId, statistics: NormStatistics },
    /// `conv3d::forward_fused` with `Epilogue::Normalise`, and a ReLU: the end of a block, without the convolution's own output.
    ConvNormalise {
        op: Conv3d,
        filter: ParamId,
        input: Load,
        scale_shift: TensorId,
        shortcut: Shortcut,
        output: TensorId,
    },
    /// `conv3d::grad_filter_of_splits`. `grad_output` is masked.
    GramProducts { op: Conv3d, input: Load, grad_output: TensorId, to: GramProducts },
    /// `gram::gradient`.
    GramGradient {
        op: Gram,
        filter: ParamId,
        norm: NormId,
        from: GramProducts,
        moments: TensorId,
        stats: TensorId,
        grad_table: TensorId,
        to: GramFilter,
    },
    /// `conv3d::grad_input_beside`.
    GramGradInput {
        op: Conv3d,
        input: Load,
        grad_output: TensorId,
        from: GramFilter,
        store: StoreGrad,
        grad_input: TensorId,
    },
    /// `batch_norm::statistics`, of what a convolution with a bias has stored.
    Statistics { input: TensorId, statistics: NormStatistics },
    /// `batch_norm::apply`, for what no convolution takes or stores.
    Apply { shape: ActivationShape, input: Load, relu: bool, output: TensorId },
    /// `batch_norm::gradient_sums`.
    GradSums { shape: ActivationShape, grad_output: TensorId, mask: PlannedMask, norm: NormGrad },
    /// `batch_norm::gradient`: `grad_input` is that of the norm, and the mask is applied to `grad_output` in place.
    Gradient { shape: ActivationShape, grad_output: TensorId, mask: PlannedMask, norm: NormGrad, grad_input: TensorId },
    /// `pool3d::forward_normalised`.
    Pool { op: Pool3d, input: TensorId, scale_shift: Table, output: TensorId, indices: Option<TensorId> },
    /// `pool3d::grad_norm`: the sums of the batch norm before the pool, and its masked gradient, where anybody reads that.
    PoolGradNorm {
        op: Pool3d,
        grad_output: TensorId,
        indices: TensorId,
        scale_shift: TensorId,
        norm: NormGrad,
        grad_input: Option<TensorId>,
    },
}

impl FusedOp {
    pub(in crate::model::plan) fn kind(&self) -> OpKind {
        match self {
            FusedOp::Conv { .. } | FusedOp::ConvNormalise { .. } => OpKind::ConvForward,
            FusedOp::ConvGradFilter { .. } | FusedOp::GramProducts { .. } => OpKind::ConvGradFilter,
            FusedOp::ConvGradInput { .. } | FusedOp::GramGradInput { .. } => OpKind::ConvGradInput,
            FusedOp::ConvBackward { .. } => OpKind::ConvBackward,
            FusedOp::Apply { .. }
            | FusedOp::Statistics { .. }
            | FusedOp::GramMoments { .. }
            | FusedOp::GramStatistics { .. } => OpKind::BatchNormForward,
            FusedOp::GradSums { .. } | FusedOp::Gradient { .. } | FusedOp::GramGradient { .. } => {
                OpKind::BatchNormBackward
            }
            FusedOp::Pool { .. } => OpKind::PoolForward,
            FusedOp::PoolGradNorm { .. } => OpKind::PoolGradInput,
        }
    }

    pub(in crate::model::plan) fn subject(&self) -> TensorId {
        match *self {
            FusedOp::Conv { output, .. } | FusedOp::Apply { output, .. } | FusedOp::Pool { output, .. } => output,
            FusedOp::Statistics { input, .. } => input,
            FusedOp::ConvNormalise { output, .. } => output,
            FusedOp::GramMoments { moments, .. } => moments,
            FusedOp::GramStatistics { ref statistics, .. } => statistics.stats,
            FusedOp::GramProducts { grad_output, .. } | FusedOp::GramGradInput { grad_output, .. } => grad_output,
            FusedOp::GramGradient { grad_table, .. } => grad_table,
            FusedOp::ConvGradFilter { ref grad_output, .. }
            | FusedOp::ConvGradInput { ref grad_output, .. }
            | FusedOp::ConvBackward { ref grad_output, .. } => grad_output.norm.map_or(grad_output.g, |(_, y)| y),
            FusedOp::GradSums { ref norm, .. }
            | FusedOp::Gradient { ref norm, .. }
            | FusedOp::PoolGradNorm { ref norm, .. } => norm.y,
        }
    }

    /// The convolution with a parameter for a filter, and its direction, where it is one.
    pub(in crate::model::plan) fn convolution(&self) -> Option<(&Conv3d, Direction)> {
        match self {
            FusedOp::Conv { op, .. } | FusedOp::ConvNormalise { op, .. } => Some((op, Direction::Forward)),
            FusedOp::ConvGradFilter { op, .. } => Some((op, Direction::GradFilter)),
            FusedOp::ConvGradInput { op, .. } => Some((op, Direction::GradInput)),
            _ => None,
        }
    }

    /// Multiply-adds of convolutions, and of what a Gram batch norm multiplies beside them.
    pub(in crate::model::plan) fn macs(&self) -> u64 {
        match self {
            FusedOp::GramMoments { op, .. } => op.moments_macs(),
            FusedOp::GramStatistics { op, .. } => op.table_macs(),
            FusedOp::GramGradient { op, .. } => 2 * op.table_macs(),
            FusedOp::GramProducts { op, .. } => op.macs(),
            FusedOp::ConvBackward { op, .. } => 2 * op.macs(),
            FusedOp::GramGradInput { op, .. } => Beside::convolution(op).macs(),
            _ => self.convolution().map_or(0, |(op, _)| op.macs()),
        }
    }

    pub(in crate::model::plan) fn workspace_bytes(&self, stream: &Stream, splits: usize, part: Option<Part>) -> usize {
        match self {
            FusedOp::GradSums { shape, .. } => {
                let op = BatchNorm { shape: *shape, splits, eps: 0.0, relu: false, part };
                batch_norm::workspace_bytes(stream, &op)
            }
            FusedOp::Statistics { statistics, .. } => batch_norm::workspace_bytes(stream, &statistics.op),
            FusedOp::PoolGradNorm { op, .. } => pool3d::workspace_bytes(op, splits, part),
            FusedOp::GramMoments { op, .. } | FusedOp::GramStatistics { op, .. } => gram::workspace_bytes(stream, op),
            FusedOp::GramProducts { op, .. } => conv3d::workspace_bytes_of_splits(stream, op, splits),
            FusedOp::ConvBackward { op, .. } => conv3d::backward_workspace_bytes(stream, op, splits),
            FusedOp::GramGradInput { op, .. } => {
                conv3d::workspace_bytes_fused(stream, &Beside::convolution(op), Direction::GradInput, splits)
            }
            _ => self
                .convolution()
                .map_or(0, |(op, direction)| conv3d::workspace_bytes_fused(stream, op, direction, splits)),
        }
    }

    pub(in crate::model::plan) fn visit(&self, see: &mut dyn FnMut(Access)) {
        match *self {
            FusedOp::Conv { ref input, statistics, output, .. } => {
                input.visit(see);
                see(Access::Write(output));
                if let Some(NormStatistics { stats, scale_shift, .. }) = statistics {
                    see(Access::Write(stats));
                    see(Access::Write(scale_shift));
                }
            }
            FusedOp::GramMoments { ref input, moments, .. } => {
                input.visit(see);
                see(Access::Write(moments));
            }
            FusedOp::GramStatistics { moments, statistics: NormStatistics { stats, scale_shift, .. }, .. } => {
                see(Access::Read(moments));
                [stats, scale_shift].into_iter().for_each(|t| see(Access::Write(t)));
            }
            FusedOp::ConvNormalise { ref input, scale_shift, shortcut, output, .. } => {
                input.visit(see);
                let tables = [Some(scale_shift), shortcut.scale_shift];
                tables.into_iter().flatten().chain([shortcut.tensor]).for_each(|t| see(Access::Read(t)));
                see(Access::Write(output));
            }
            FusedOp::GramProducts { ref input, grad_output, to, .. } => {
                input.visit(see);
                see(Access::Read(grad_output));
                [to.products, to.grad_sums].into_iter().for_each(|t| see(Access::Write(t)));
            }
            FusedOp::GramGradient { from, moments, stats, grad_table, to, .. } => {
                [from.products, from.grad_sums, moments, stats].into_iter().for_each(|t| see(Access::Read(t)));
                [grad_table, to.back_filter, to.back_shift].into_iter().for_each(|t| see(Access::Write(t)));
            }
            FusedOp::GramGradInput { ref input, grad_output, from, ref store, grad_input, .. } => {
                input.visit(see);
                [grad_output, from.back_filter, from.back_shift].into_iter().for_each(|t| see(Access::Read(t)));
                store.visit(grad_input, see);
            }
            FusedOp::ConvGradFilter { ref input, ref grad_output, pool, .. } => {
                input.visit(see);
                grad_output.visit(see);
                pool.into_iter().flat_map(|p| [p.indices, p.scale_shift]).for_each(|t| see(Access::Read(t)));
            }
            FusedOp::ConvBackward { ref input, ref grad_output, ref store, grad_input, .. } => {
                input.visit(see);
                grad_output.visit(see);
                store.visit(grad_input, see);
            }
            FusedOp::ConvGradInput { ref grad_output, store_dy, ref store, grad_input, .. } => {
                grad_output.visit(see);
                store_dy.into_iter().for_each(|dy| see(Access::Write(dy)));
                store.visit(grad_input, see);
            }
            FusedOp::Statistics { input, statistics: NormStatistics { stats, scale_shift, .. } } => {
                see(Access::Read(input));
                [stats, scale_shift].into_iter().for_each(|t| see(Access::Write(t)));
            }
            FusedOp::Apply { ref input, output, .. } => {
                input.visit(see);
                see(Access::Write(output));
            }
            FusedOp::GradSums { grad_output, mask, ref norm, .. } => {
                see(Access::Read(grad_output));
                mask.visit(see);
                norm.visit(see);
            }
            FusedOp::Gradient { grad_output, mask, ref norm, grad_input, .. } => {
                mask.visit(see);
                [norm.y, norm.grad_table].into_iter().for_each(|t| see(Access::Read(t)));
                see(Access::ReadWrite(grad_output));
                see(Access::Write(grad_input));
            }
            FusedOp::Pool { input, scale_shift, output, indices, .. } => {
                Load { tensor: input, scale_shift: Some(scale_shift), join: None }.visit(see);
                see(Access::Write(output));
                indices.into_iter().for_each(|i| see(Access::Write(i)));
            }
            FusedOp::PoolGradNorm { grad_output, indices, scale_shift, ref norm, grad_input, .. } => {
                [grad_output, indices, scale_shift].into_iter().for_each(|t| see(Access::Read(t)));
                norm.visit(see);
                grad_input.into_iter().for_each(|g| see(Access::Write(g)));
            }
        }
    }
}
