//! The ops of a step as plain values: an explicit list, so that a fused form can take the place of its parts.

use super::fused::FusedOp;
use super::{Plan, TensorId};
use crate::device::Stream;
use crate::model::layers::{NormId, ParamId};
use crate::ops::attention::{self, Instantiation};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::conv3d::{self, Conv3d, Direction};
use crate::ops::linear;
use crate::ops::pool3d::Pool3d;

/// One op of a step, its tensors and parameters by index.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The fields are the arguments of the op of the same name.
// A plan has some hundreds of them.
#[allow(clippy::large_enum_variant)]
pub enum StepOp {
    /// `conv3d::forward`.
    Conv { op: Conv3d, filter: ParamId, bias: Option<ParamId>, input: TensorId, output: TensorId },
    /// `conv3d::grad_filter`.
    ConvGradFilter { op: Conv3d, filter: ParamId, bias: Option<ParamId>, input: TensorId, grad_output: TensorId },
    /// `conv3d::grad_input`.
    ConvGradInput { op: Conv3d, filter: ParamId, grad_output: TensorId, grad_input: TensorId, accumulate: bool },
    /// `batch_norm::forward_train`.
    BatchNormTrain {
        op: BatchNorm,
        norm: NormId,
        input: TensorId,
        residual: Option<TensorId>,
        output: TensorId,
        stats: TensorId,
    },
    /// `batch_norm::forward_eval`.
    BatchNormEval { op: BatchNorm, norm: NormId, input: TensorId, residual: Option<TensorId>, output: TensorId },
    /// `batch_norm::backward`; without statistics of the batch `batch_norm::backward_eval`.
    BatchNormBackward {
        op: BatchNorm,
        norm: NormId,
        input: TensorId,
        output: TensorId,
        grad_output: TensorId,
        stats: Option<TensorId>,
        grad_input: TensorId,
        grad_residual: Option<(TensorId, bool)>,
    },
    /// `pool3d::forward`.
    Pool { op: Pool3d, input: TensorId, output: TensorId, indices: Option<TensorId> },
    /// `pool3d::grad_input`.
    PoolGradInput {
        op: Pool3d,
        grad_output: TensorId,
        indices: Option<TensorId>,
        grad_input: TensorId,
        accumulate: bool,
    },
    /// `attention::forward` of queries, keys and values.
    Attention {
        instantiation: Instantiation,
        heads: [TensorId; 3],
        output: TensorId,
        /// One number a query; the softmax has it.
        log2_sum: Option<TensorId>,
        macs: u64,
    },
    /// `attention::backward`.
    AttentionBackward {
        instantiation: Instantiation,
        heads: [TensorId; 3],
        output: TensorId,
        log2_sum: Option<TensorId>,
        grad_output: TensorId,
        grads: [TensorId; 3],
        macs: u64,
    },
    /// `dropout::apply`, in place where both are the same tensor.
    Dropout { rate: f32, input: TensorId, output: TensorId },
    /// `linear::forward`.
    Linear { weight: ParamId, bias: ParamId, input: TensorId, output: TensorId, macs: u64 },
    /// `linear::backward`.
    LinearBackward {
        weight: ParamId,
        bias: ParamId,
        input: TensorId,
        grad_output: TensorId,
        grad_input: TensorId,
        macs: u64,
    },
    /// `softmax_loss::cross_entropy`; `scale` multiplies the sum of the clips' losses.
    CrossEntropy { logits: TensorId, scale: f32, loss: TensorId, grad_logits: TensorId },
    /// `softmax_loss::binary_cross_entropy`, likewise.
    BinaryCrossEntropy { logits: TensorId, scale: f32, loss: TensorId, grad_logits: TensorId },
    /// `softmax_loss::softmax`.
    Softmax { logits: TensorId, probabilities: TensorId },
    /// `softmax_loss::sigmoid`.
    Sigmoid { logits: TensorId, probabilities: TensorId },
    /// An op of the fused form.
    Fused(FusedOp),
}

/// What kind of work an op is: the rows of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // Named as the ops.
pub enum OpKind {
    ConvForward,
    ConvGradFilter,
    ConvGradInput,
    ConvBackward,
    BatchNormForward,
    BatchNormBackward,
    PoolForward,
    PoolGradInput,
    AttentionForward,
    AttentionBackward,
    Dropout,
    LinearForward,
    LinearBackward,
    Loss,
}

/// How an op uses a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read(TensorId),
    /// Written, whatever it held.
    Write(TensorId),
    /// Added to, or worked on in place.
    ReadWrite(TensorId),
}

impl Access {
    /// The tensor.
    pub fn tensor(self) -> TensorId {
        match self {
            Access::Read(t) | Access::Write(t) | Access::ReadWrite(t) => t,
        }
    }

    pub(super) fn write(tensor: TensorId, accumulate: bool) -> Access {
        if accumulate { Access::ReadWrite(tensor) } else { Access::Write(tensor) }
    }
}

impl StepOp {
    /// What kind of work it is.
    pub fn kind(&self) -> OpKind {
        match self {
            StepOp::Conv { .. } => OpKind::ConvForward,
            StepOp::ConvGradFilter { .. } => OpKind::ConvGradFilter,
            StepOp::ConvGradInput { .. } => OpKind::ConvGradInput,
            StepOp::BatchNormTrain { .. } | StepOp::BatchNormEval { .. } => OpKind::BatchNormForward,
            StepOp::BatchNormBackward { .. } => OpKind::BatchNormBackward,
            StepOp::Pool { .. } => OpKind::PoolForward,
            StepOp::PoolGradInput { .. } => OpKind::PoolGradInput,
            StepOp::Attention { .. } => OpKind::AttentionForward,
            StepOp::AttentionBackward { .. } => OpKind::AttentionBackward,
            StepOp::Dropout { .. } => OpKind::Dropout,
            StepOp::Linear { .. } => OpKind::LinearForward,
            StepOp::LinearBackward { .. } => OpKind::LinearBackward,
            StepOp::CrossEntropy { .. }
            | StepOp::BinaryCrossEntropy { .. }
            | StepOp::Softmax { .. }
            | StepOp::Sigmoid { .. } => OpKind::Loss,
            StepOp::Fused(op) => op.kind(),
        }
    }

    /// The tensor that carries the op's name: its output, or the gradient that it starts from.
    pub fn subject(&self) -> TensorId {
        match *self {
            StepOp::Conv { output, .. }
            | StepOp::BatchNormTrain { output, .. }
            | StepOp::BatchNormEval { output, .. }
            | StepOp::Pool { output, .. }
            | StepOp::Attention { output, .. }
            | StepOp::Dropout { output, .. }
            | StepOp::Linear { output, .. } => output,
            StepOp::ConvGradFilter { grad_output, .. }
            | StepOp::ConvGradInput { grad_output, .. }
            | StepOp::BatchNormBackward { grad_output, .. }
            | StepOp::PoolGradInput { grad_output, .. }
            | StepOp::AttentionBackward { grad_output, .. }
            | StepOp::LinearBackward { grad_output, .. } => grad_output,
            StepOp::CrossEntropy { logits, .. }
            | StepOp::BinaryCrossEntropy { logits, .. }
            | StepOp::Softmax { logits, .. }
            | StepOp::Sigmoid { logits, .. } => logits,
            StepOp::Fused(ref op) => op.subject(),
        }
    }

    /// Multiply-adds, where that is what the op is made of (convolution, attention and projection); otherwise 0.
    pub fn macs(&self) -> u64 {
        match self {
            StepOp::Conv { op, .. } | StepOp::ConvGradFilter { op, .. } | StepOp::ConvGradInput { op, .. } => op.macs(),
            StepOp::Attention { macs, .. }
            | StepOp::AttentionBackward { macs, .. }
            | StepOp::Linear { macs, .. }
            | StepOp::LinearBackward { macs, .. } => *macs,
            StepOp::Fused(op) => op.macs(),
            _ => 0,
        }
    }

    /// The batch norm whose statistics it forms, and where.
    pub fn statistics(&self) -> Option<(&BatchNorm, NormId, TensorId)> {
        match self {
            StepOp::BatchNormTrain { op, norm, stats, .. } => Some((op, *norm, *stats)),
            StepOp::Fused(
                FusedOp::Conv { statistics: Some(s), .. }
                | FusedOp::Statistics { statistics: s, .. }
                | FusedOp::GramStatistics { statistics: s, .. },
            ) => Some((&s.op, s.norm, s.stats)),
            _ => None,
        }
    }

    /// Scratch memory that it needs on the device of `stream`, as an op of `plan`.
    pub fn workspace_bytes(&self, stream: &Stream, plan: &Plan) -> usize {
        let projection = |input: TensorId, output: TensorId| {
            let (input, output) = (plan.tensors[input].shape, plan.tensors[output].shape);
            let of_batch =
                crate::shape::ActivationShape { n: plan.part.map_or(input.n, |part| part.batch_clips), ..input };
            linear::workspace_bytes(stream.device(), of_batch.num_positions(), input.c, output.c)
        };
        match self {
            StepOp::Conv { op, .. } => conv3d::workspace_bytes(stream, op, Direction::Forward),
            StepOp::ConvGradFilter { op, .. } => conv3d::workspace_bytes(stream, op, Direction::GradFilter),
            StepOp::ConvGradInput { op, .. } => conv3d::workspace_bytes(stream, op, Direction::GradInput),
            StepOp::BatchNormTrain { op, .. } | StepOp::BatchNormBackward { op, .. } => {
                batch_norm::workspace_bytes(stream, op)
            }
            StepOp::AttentionBackward { heads: [query, ..], .. } => {
                attention::workspace_bytes(plan.tensors[*query].shape)
            }
            StepOp::Linear { input, output, .. } => projection(*input, *output),
            StepOp::LinearBackward { input, grad_output, .. } => projection(*input, *grad_output),
            StepOp::Fused(op) => op.workspace_bytes(stream, plan.splits(), plan.part),
            _ => 0,
        }
    }

    /// Calls `see` with every tensor that the op touches.
    pub fn visit(&self, see: &mut dyn FnMut(Access)) {
        use Access::{Read, Write};
        let mut all = |accesses: &[Access]| accesses.iter().for_each(|&a| see(a));
        match *self {
            StepOp::Conv { input, output, .. } | StepOp::Linear { input, output, .. } => {
                all(&[Read(input), Write(output)]);
            }
            StepOp::ConvGradFilter { input, grad_output, .. } => all(&[Read(input), Read(grad_output)]),
            StepOp::ConvGradInput { grad_output, grad_input, accumulate, .. } => {
                all(&[Read(grad_output), Access::write(grad_input, accumulate)]);
            }
            StepOp::BatchNormTrain { input, residual, output, stats, .. } => {
                all(&[Read(input), Write(output), Write(stats)]);
                residual.into_iter().for_each(|r| all(&[Read(r)]));
            }
            StepOp::BatchNormEval { input, residual, output, .. } => {
                all(&[Read(input), Write(output)]);
                residual.into_iter().for_each(|r| all(&[Read(r)]));
            }
            StepOp::BatchNormBackward { input, output, grad_output, stats, grad_input, grad_residual, .. } => {
                all(&[Read(input), Read(output), Read(grad_output), Write(grad_input)]);
                stats.into_iter().for_each(|s| all(&[Read(s)]));
                grad_residual.into_iter().for_each(|(r, accumulate)| all(&[Access::write(r, accumulate)]));
            }
            StepOp::Pool { input, output, indices, .. } => {
                all(&[Read(input), Write(output)]);
                indices.into_iter().for_each(|i| all(&[Write(i)]));
            }
            StepOp::PoolGradInput { grad_output, indices, grad_input, accumulate, .. } => {
                all(&[Read(grad_output), Access::write(grad_input, accumulate)]);
                indices.into_iter().for_each(|i| all(&[Read(i)]));
            }
            StepOp::Attention { heads, output, log2_sum, .. } => {
                all(&heads.map(Read));
                all(&[Write(output)]);
                log2_sum.into_iter().for_each(|l| all(&[Write(l)]));
            }
            StepOp::AttentionBackward { heads, output, log2_sum, grad_output, grads, .. } => {
                all(&heads.map(Read));
                all(&[Read(output), Read(grad_output)]);
                log2_sum.into_iter().for_each(|l| all(&[Read(l)]));
                all(&grads.map(Write));
            }
            StepOp::Dropout { input, output, .. } => all(&[Read(input), Write(output)]),
            StepOp::LinearBackward { input, grad_output, grad_input, .. } => {
                all(&[Read(input), Read(grad_output), Write(grad_input)]);
            }
            StepOp::CrossEntropy { logits, loss, grad_logits, .. }
            | StepOp::BinaryCrossEntropy { logits, loss, grad_logits, .. } => {
                all(&[Read(logits), Write(loss), Write(grad_logits)]);
            }
            StepOp::Softmax { logits, probabilities } | StepOp::Sigmoid { logits, probabilities } => {
                all(&[Read(logits), Write(probabilities)]);
            }
            StepOp::Fused(ref op) => op.visit(see),
        }
    }
}
