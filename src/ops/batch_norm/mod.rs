//! Batch norm with `splits`: statistics over contiguous blocks of clips (METHOD: sub-batch norm), fused with the residual
//! join and ReLU that follow it. `y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual)`.
//!
//! Groups count clips, not devices (PySlowFast `slowfast/models/batchnorm_helper.py`, `SubBatchNorm3d`; there clip `i` is in
//! split `i mod splits`, here splits are contiguous). `gamma` and `beta` are shared by the splits.

pub(super) mod cpu;
mod fold;
mod fused;
mod launch;
mod moments;
pub(crate) mod params;
mod plan;
pub mod reference;
mod running;
mod running_table;

pub use fold::fold_split_statistics;
pub use fused::{
    GradTables, Mask, Tables, apply, finalise_gradient, finalise_statistics, gradient, gradient_sums,
    running_scale_shift, statistics,
};

pub use moments::{MomentsNorm, MomentsTable, add_moments_all, read_moments};
pub use running::backward_eval;
pub use running_table::{RunningNorm, RunningTable, update_running_all};

pub use crate::ops::conv3d::Running;

use crate::device::cpu::scratch;
use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;
use crate::shape::{ActivationShape, Part};

/// What is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Sizes.
    pub shape: ActivationShape,
    /// Blocks of ceil(n / splits) clips with statistics of their own; the last may be smaller. Where n is small against
    /// `splits`, fewer blocks hold all clips: see [`BatchNorm::splits_used`].
    pub splits: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Where these clips are part of a batch: that batch, of which they fill [`BatchNorm::splits`] at most. Gradients of gamma and
    /// beta are sums in the order of the splits.
    pub part: Option<Part>,
}

impl BatchNorm {
    /// f32 elements of `stats`: `[splits][3][c]`: mean, inverse standard deviation, unbiased variance. Rows of splits
    /// without clips are not written.
    pub fn stats_len(&self) -> usize {
        self.splits * 3 * self.shape.c
    }

    /// f32 elements of `scale_shift`: `[splits][2][c]`: gamma / deviation, beta - mean * gamma / deviation.
    pub fn scale_shift_len(&self) -> usize {
        self.splits * 2 * self.shape.c
    }

    /// f32 elements of `grad_table`: `[splits][3][c]`: A, B, C of `dy = A g + B y + C`.
    pub fn grad_table_len(&self) -> usize {
        self.splits * 3 * self.shape.c
    }

    /// The clips of split `split`, as a range.
    pub fn clips_of_split(&self, split: usize) -> std::ops::Range<usize> {
        let per_split = self.clips_per_split();
        (split * per_split).min(self.shape.n)..((split + 1) * per_split).min(self.shape.n)
    }

    /// Splits that hold clips.
    pub fn splits_used(&self) -> usize {
        self.shape.n.div_ceil(self.clips_per_split().max(1))
    }

    fn batch(&self) -> Part {
        self.part.unwrap_or(Part::whole(self.shape.n, self.splits))
    }

    fn clips_per_split(&self) -> usize {
        self.batch().clips_per_split()
    }

    /// Positions of all clips, and of a split that is not the last.
    pub(super) fn rows(&self) -> (usize, usize) {
        (self.shape.num_positions(), self.clips_per_split() * self.shape.t * self.shape.h * self.shape.w)
    }

    /// Positions of all clips of the batch.
    pub(super) fn rows_of_batch(&self) -> usize {
        ActivationShape { n: self.batch().batch_clips, ..self.shape }.num_positions()
    }

    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        if self.splits == 0 {
            return Err(Error::shape(op, "splits must be at least 1, got 0"));
        }
        if self.eps.is_nan() || self.eps < 0.0 {
            return Err(Error::shape(op, format!("eps must not be negative, got {}", self.eps)));
        }
        let Some(part) = self.part else { return Ok(()) };
        part.check(op, self.shape.n)?;
        if part.splits_of(self.shape.n) > self.splits {
            let (filled, splits) = (part.splits_of(self.shape.n), self.splits);
            return Err(Error::shape(
                op,
                format!("the clips fill {filled} splits of their batch, got {splits} splits"),
            ));
        }
        Ok(())
    }

    /// The running pair moves once a batch.
    fn check_is_whole(&self, op: &'static str) -> Result<()> {
        match self.shape.n < self.batch().batch_clips {
            true => Err(Error::shape(op, "running statistics follow from whole batches, got a part of one")),
            false => Ok(()),
        }
    }

    /// Every split has at least two values a channel: a single one has no variance.
    pub(super) fn check_counts(&self, op: &'static str) -> Result<()> {
        let smallest = self.clips_of_split(self.splits_used() - 1).len();
        let values = smallest * self.shape.num_positions() / self.shape.n;
        if values < 2 {
            return Err(Error::shape(
                op,
                format!("each split needs at least 2 values a channel, got {values} ({} in {} splits)", self.shape, {
                    self.splits
                }),
            ));
        }
        Ok(())
    }
}

/// Bytes of scratch memory for the functions that take some; f32 memory. Where kernels run, its first
/// [`TICKET_BYTES`](crate::ops::TICKET_BYTES) must be zero before the first call.
pub fn workspace_bytes(stream: &Stream, op: &BatchNorm) -> usize {
    match stream.device() {
        Device::Cpu => cpu::partials_len(op) * size_of::<f32>(),
        // After the partial sums the table of the gradient, between the two launches of `backward`.
        Device::Cuda(_) | Device::Simt => plan::workspace_bytes(op) + op.grad_table_len() * size_of::<f32>(),
    }
}

/// Statistics of each split of `input` into `stats`, then `output`. `output` may be the same memory as `input`.
///
/// # Errors
/// Sizes that do not fit `op`; fewer than two values a channel in a split.
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
    const OP: &str = "batch_norm forward_train";
    op.check(OP)?;
    check_forward(OP, stream, op, input, gamma, beta, residual, output)?;
    op.check_counts(OP)?;
    check::slice(OP, "stats", stats, op.stats_len(), DType::F32)?;
    check::workspace(OP, workspace, workspace_bytes(stream, op))?;
    if *stream.device() != Device::Cpu {
        let tables = Tables { gamma, beta, stats, scale_shift: None, running: None, skip: None };
        launch::statistics(stream, OP, op, input, &tables, workspace)?;
        let with = launch::With::Stats { stats, gamma, beta };
        return launch::apply(stream, OP, op, input, with, residual.map(|r| (r, None)), output);
    }
    with_host([input.memory()], [stats, workspace], |[x], [stats, workspace]| {
        cpu::statistics(op, input.view(x.get()?), stats.into_mut()?, workspace.into_mut()?);
        Ok(())
    })?;
    let empty = gamma.part(0, 0)?;
    let source = if check::same_memory(input, output) { &empty } else { input.memory() };
    let joined = residual.map_or(&empty, Tensor::memory);
    with_host([source, joined, gamma, beta, stats], [output.memory()], |[x, r, gamma, beta, stats], [y]| {
        let x = (!source.is_empty()).then_some(input.view(x.get()?));
        let r = residual.map(|t| Ok::<_, Error>(t.view(r.get()?))).transpose()?;
        let affine = cpu::affine_of_statistics(op, stats.get()?, gamma.get()?, beta.get()?);
        cpu::normalise(op, x, &affine, r, output.view_mut(y.into_mut()?));
        Ok(())
    })
}

/// `output` with the running statistics. `output` may be the same memory as `input`. `op.splits` plays no part.
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
    const OP: &str = "batch_norm forward_eval";
    let op = &BatchNorm { splits: 1, part: None, ..*op };
    op.check(OP)?;
    check_forward(OP, stream, op, input, gamma, beta, residual, output)?;
    check::slice(OP, "running_mean", running_mean, op.shape.c, DType::F32)?;
    check::slice(OP, "running_var", running_var, op.shape.c, DType::F32)?;
    if *stream.device() != Device::Cpu {
        let with = launch::With::Running { mean: running_mean, var: running_var, gamma, beta };
        return launch::apply(stream, OP, op, input, with, residual.map(|r| (r, None)), output);
    }
    let empty = gamma.part(0, 0)?;
    let source = if check::same_memory(input, output) { &empty } else { input.memory() };
    let joined = residual.map_or(&empty, Tensor::memory);
    let reads = [source, joined, gamma, beta, running_mean, running_var];
    with_host(reads, [output.memory()], |[x, r, gamma, beta, mean, var], [y]| {
        let x = (!source.is_empty()).then_some(input.view(x.get()?));
        let r = residual.map(|t| Ok::<_, Error>(t.view(r.get()?))).transpose()?;
        let affine = cpu::affine_of_running(op, mean.get()?, var.get()?, gamma.get()?, beta.get()?);
        cpu::normalise(op, x, &affine, r, output.view_mut(y.into_mut()?));
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)]
fn check_forward(
    name: &'static str,
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    gamma: &Slice,
    beta: &Slice,
    residual: Option<&Tensor>,
    output: &Tensor,
) -> Result<()> {
    let dtype = check::activation_dtype(name, stream, "input", input)?;
    check::tensor_of(name, "input", input, op.shape, dtype)?;
    check::tensor_of(name, "output", output, op.shape, dtype)?;
    if let Some(residual) = residual {
        check::tensor_of(name, "residual", residual, op.shape, dtype)?;
    }
    check::slice(name, "gamma", gamma, op.shape.c, DType::F32)?;
    check::slice(name, "beta", beta, op.shape.c, DType::F32)
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
    const OP: &str = "batch_norm update_running";
    running_table::check(OP, op, stats, [running_mean, running_var])?;
    if *stream.device() != Device::Cpu {
        return launch::update_running(stream, OP, op, stats, momentum, [running_mean, running_var]);
    }
    with_host([stats], [running_mean, running_var], |[stats], [mean, var]| {
        cpu::update_running(op, stats.get()?, momentum, mean.into_mut()?, var.into_mut()?);
        Ok(())
    })
}

/// The bit of skip flags that is set where a statistic is not finite.
pub const SKIP_BIT: u32 = 1;

/// Sets [`SKIP_BIT`] of `skip` (one u32) where a statistic of [`forward_train`] is not finite. On the CPU; kernels do it where they form
/// the statistics.
pub(crate) fn flag_non_finite(op: &BatchNorm, stats: &Slice, skip: &Slice) -> Result<()> {
    with_host([&stats.part(0, op.splits_used() * 3 * op.shape.c)?], [skip], |[stats], [skip]| {
        if stats.get::<f32>()?.iter().any(|v| !v.is_finite()) {
            skip.into_mut::<u32>()?[0] |= SKIP_BIT;
        }
        Ok(())
    })
}

/// Gradients of [`forward_train`]. With `op.relu`, `output` (what forward wrote) masks `grad_output`; without, it is not
/// read. `grad_residual`, where given, receives the masked gradient (added to it where the flag is set).
///
/// `grad_input` may be the same memory as `grad_output`; so may `grad_residual`, where it is not added to.
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
    const OP: &str = "batch_norm backward";
    op.check(OP)?;
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    for (name, tensor) in
        [("input", input), ("output", output), ("grad_output", grad_output), ("grad_input", grad_input)]
    {
        check::tensor_of(OP, name, tensor, op.shape, dtype)?;
    }
    if let Some((grad_residual, _)) = grad_residual {
        check::tensor_of(OP, "grad_residual", grad_residual, op.shape, dtype)?;
    }
    for (name, slice) in [("gamma", gamma), ("grad_gamma", grad_gamma), ("grad_beta", grad_beta)] {
        check::slice(OP, name, slice, op.shape.c, DType::F32)?;
    }
    check::slice(OP, "stats", stats, op.stats_len(), DType::F32)?;
    check::workspace(OP, workspace, workspace_bytes(stream, op))?;
    if *stream.device() != Device::Cpu {
        let (sums_len, table_len) = (plan::workspace_bytes(op) / size_of::<f32>(), op.grad_table_len());
        let (sums, table) = (workspace.part(0, sums_len)?, workspace.part(sums_len, table_len)?);
        let tables = GradTables { gamma, stats, grad_table: &table, grad_gamma, grad_beta };
        let mask = if op.relu { Mask::Output(output) } else { Mask::None };
        let from = [input, grad_output];
        launch::gradient_sums(stream, OP, op, from, mask, &tables, true, &sums)?;
        let tables = [Some(&table), Some(stats)];
        return launch::gradient(stream, OP, op, from, mask, tables, grad_input, grad_residual);
    }
    let of = running::Backward {
        input,
        output,
        grad_output,
        gamma,
        grad_input,
        grad_residual,
        grad_gamma,
        grad_beta,
        workspace,
    };
    // A copy: it may lie in the buffer that others of the pass lie in.
    let stats = with_host([stats], [], |[stats], []| Ok(scratch::copied::<f32>(stats.get()?)))?;
    of.on_host(op, &stats, cpu::slopes)
}
