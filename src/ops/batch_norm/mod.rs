//! Batch norm with `splits`: statistics over contiguous blocks of clips (METHOD: sub-batch norm), fused with the residual
//! join and ReLU that follow it. `y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual)`.

use crate::device::{Slice, Stream, Tensor};
use crate::error::{Error, Result};
use crate::shape::ActivationShape;

/// What is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Sizes.
    pub shape: ActivationShape,
    /// Blocks of ceil(n / splits) clips with statistics of their own; the last may be smaller.
    pub splits: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl BatchNorm {
    /// f32 elements of `stats`: `[splits][2][c]`, mean then inverse standard deviation.
    pub fn stats_len(&self) -> usize {
        self.splits * 2 * self.shape.c
    }

    /// The clips of split `split`, as a range.
    pub fn clips_of_split(&self, split: usize) -> std::ops::Range<usize> {
        let per_split = self.shape.n.div_ceil(self.splits);
        (split * per_split).min(self.shape.n)..((split + 1) * per_split).min(self.shape.n)
    }
}

/// Bytes of scratch memory for the training functions.
pub fn workspace_bytes(stream: &Stream, op: &BatchNorm) -> usize {
    let _ = (stream, op);
    0
}

/// Statistics of each split of `input` into `stats`, then `output`. `output` may be the same memory as `input`.
#[allow(clippy::too_many_arguments)]
pub fn forward_train(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    gamma: &Slice,
    beta: &Slice,
    residual: Option<&Tensor>,
    output: &Tensor,
    stats: &Slice,
    workspace: &Slice,
) -> Result<()> {
    let _ = (stream, op, input, gamma, beta, residual, output, stats, workspace);
    Err(Error::unsupported("batch_norm forward", "stub"))
}

/// `output` with the running statistics.
#[allow(clippy::too_many_arguments)]
pub fn forward_eval(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    gamma: &Slice,
    beta: &Slice,
    running_mean: &Slice,
    running_var: &Slice,
    residual: Option<&Tensor>,
    output: &Tensor,
) -> Result<()> {
    let _ = (stream, op, input, gamma, beta, running_mean, running_var, residual, output);
    Err(Error::unsupported("batch_norm forward_eval", "stub"))
}

/// Running statistics: `(1 - momentum) * old + momentum * (mean of the split means, mean of the splits' unbiased variances)`.
pub fn update_running(
    stream: &Stream,
    op: &BatchNorm,
    stats: &Slice,
    momentum: f32,
    running_mean: &Slice,
    running_var: &Slice,
) -> Result<()> {
    let _ = (stream, op, stats, momentum, running_mean, running_var);
    Err(Error::unsupported("batch_norm update_running", "stub"))
}

/// Gradients. With `op.relu`, `output` (what forward wrote) masks `grad_output`. `grad_residual`, where given, receives the
/// masked gradient (added to it where `accumulate_residual` is set). `grad_input` may be the same memory as `grad_output`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    output: &Tensor,
    grad_output: &Tensor,
    gamma: &Slice,
    stats: &Slice,
    grad_input: &Tensor,
    grad_residual: Option<(&Tensor, bool)>,
    grad_gamma: &Slice,
    grad_beta: &Slice,
    workspace: &Slice,
) -> Result<()> {
    let _ = (
        stream,
        op,
        input,
        output,
        grad_output,
        gamma,
        stats,
        grad_input,
        grad_residual,
        grad_gamma,
        grad_beta,
        workspace,
    );
    Err(Error::unsupported("batch_norm backward", "stub"))
}
