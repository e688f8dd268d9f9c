//! Batch norm of a convolution's output that is never stored: Gram batch norm.
//!
//! For an expanding 1x1x1 convolution `y = W x`, such as the last of a bottleneck, mean and variance of `y` follow from mean and
//! covariance of the narrower `x`: `mean_o = <w_o, m>`, `var_o = w_o' Cov w_o`. So one pass over `x` gives batch norm's tables, and
//! convolution, batch norm, shortcut and ReLU are one pass after it (`conv3d`'s `Epilogue::Normalise`). Derivation, backward pass and
//! conditioning: docs/gram_batch_norm.md.
//!
//! | function | reads | writes |
//! |---|---|---|
//! | [`moments`] | x, as the convolution sees it | `[splits][c_in + c_in * c_in]`: mean, biased covariance |
//! | [`statistics`] | moments, filter, gamma, beta | `stats` `[splits][3][c_out]`, `scale_shift` `[splits][2][c_out]`, as batch norm's |
//! | [`gradient`] | those of forward, the sums of `g` and `g x'` | gradients of filter, gamma and beta; what makes the input's |
//! | [`conditioning`] | the filter, gamma and beta of the norm before | how far rounding may carry |

mod conditioning;
mod cpu;
mod gradient;
mod gradient_params;
mod launch;
mod params;
mod plan;
mod predict;
#[doc(hidden)]
pub mod reference;

pub use conditioning::{Conditioning, MAX_AMPLIFICATION, conditioning};
pub use gradient::{GradientResults, GradientSources, gradient};
pub use predict::predicted_saving_s;

use crate::device::cpu::Isa;
use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::check;
use crate::ops::conv3d::{Conv3d, Prologue};
use crate::shape::ActivationShape;

/// A convolution of 1x1x1 and unit stride, and the batch norm behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gram {
    /// The batch norm: sizes of the convolution's output, splits, eps, part of a batch. Its ReLU plays no part here.
    pub norm: BatchNorm,
    /// Input channels of the convolution.
    pub c_in: usize,
}

impl Gram {
    /// Sizes of the convolution's input.
    pub fn input(&self) -> ActivationShape {
        self.norm.shape.with_channels(self.c_in)
    }

    /// The convolution.
    pub fn conv(&self) -> Conv3d {
        let (c_out, part) = (self.norm.shape.c, self.norm.part);
        Conv3d {
            input: self.input(),
            c_out,
            filter: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            groups: 1,
            part,
        }
    }

    /// Multiply-adds of [`moments`]: half of the covariance's products, which are symmetric.
    pub fn moments_macs(&self) -> u64 {
        (self.input().num_positions() * self.c_in * (self.c_in + 1) / 2) as u64
    }

    /// Multiply-adds of the filter with the covariance of every split.
    pub fn table_macs(&self) -> u64 {
        (self.norm.splits * self.norm.shape.c * self.c_in * self.c_in) as u64
    }

    /// f32 elements of a split's moments: mean, then the whole covariance, row by row.
    pub fn moments_of_split(&self) -> usize {
        self.c_in + self.c_in * self.c_in
    }

    /// f32 elements of all moments.
    pub fn moments_len(&self) -> usize {
        self.norm.splits * self.moments_of_split()
    }

    /// Positions of split `split`, as a range.
    fn rows_of_split(&self, split: usize) -> std::ops::Range<usize> {
        let (clips, shape) = (self.norm.clips_of_split(split), self.norm.shape);
        let per_clip = shape.t * shape.h * shape.w;
        clips.start * per_clip..clips.end * per_clip
    }

    fn check(&self, op: &'static str) -> Result<()> {
        if self.c_in == 0 || self.norm.shape.num_elements() == 0 {
            return Err(Error::shape(op, format!("sizes must not be zero: {} to {}", self.input(), self.norm.shape)));
        }
        self.norm.check(op)?;
        self.norm.check_counts(op)
    }
}

/// Whether the kernels take `op`'s sizes, with tensors of `dtype`. Alignment of the tensors is another matter.
pub fn kernels_take(op: &Gram, dtype: DType) -> bool {
    op.norm.shape.c.is_multiple_of(8)
        && plan::MomentsPlan::new("gram", op).is_ok()
        && plan::launch_statistics("gram", op, dtype).is_ok()
}

/// Bytes of scratch memory for [`moments`] and [`statistics`]; f32 memory. Where kernels run, its first
/// [`TICKET_BYTES`](crate::ops::TICKET_BYTES) must be zero before the first call, and every call leaves them zero.
pub fn workspace_bytes(stream: &Stream, op: &Gram) -> usize {
    match stream.device() {
        Device::Cpu => Isa::chosen().map_or(0, |isa| cpu::workspace_len(isa, op) * size_of::<f32>()),
        Device::Cuda(_) | Device::Simt => plan::workspace_bytes(op),
    }
}

/// Mean and biased covariance of each split of `x`, as the convolution sees it: behind the prologue `relu(s x + b)`, rounded to the
/// stored type, where there is one. Rows of splits without clips are not written.
///
/// On `Cpu` `x` is f32 and there is no prologue; elsewhere it is bf16 or f16, with `c_in` and channel pitch multiples of 8.
///
/// # Errors
/// Sizes and types that do not fit `op`; fewer than two positions in a split.
pub fn moments(
    stream: &Stream,
    op: &Gram,
    x: &Tensor,
    prologue: Option<&Prologue<'_>>,
    moments: &Slice,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "gram moments";
    op.check(OP)?;
    let dtype = match check::activation_dtype(OP, stream, "x", x)? {
        DType::F32 if *stream.device() != Device::Cpu => {
            return Err(Error::unsupported(OP, "the kernels take Bf16 or F16, got F32; use the cpu executor"));
        }
        dtype => dtype,
    };
    check::tensor_of(OP, "x", x, op.input(), dtype)?;
    check::slice(OP, "moments", moments, op.moments_len(), DType::F32)?;
    check::workspace(OP, workspace, workspace_bytes(stream, op))?;
    if let Some(p) = prologue {
        check_prologue(OP, stream, op, p)?;
    }
    match stream.device() {
        Device::Cpu => with_host([x.memory()], [moments, workspace], |[values], [moments, scratch]| {
            cpu::moments(Isa::chosen()?, op, x.view(values.get()?), moments.into_mut()?, scratch.into_mut()?);
            Ok(())
        }),
        _ => launch::moments(stream, OP, op, x, prologue.map(|p| p.scale_shift), moments, workspace),
    }
}

fn check_prologue(name: &'static str, stream: &Stream, op: &Gram, p: &Prologue<'_>) -> Result<()> {
    if *stream.device() == Device::Cpu {
        return Err(Error::unsupported(
            format!("{name} with a prologue"),
            "the cpu executor has no fused form; call batch_norm first",
        ));
    }
    if p.join.is_some() {
        return Err(Error::unsupported(
            format!("{name} with a join"),
            "the input of this convolution is relu(s x + b)",
        ));
    }
    if p.splits != op.norm.splits {
        return Err(Error::shape(name, format!("prologue must have {} splits, got {}", op.norm.splits, p.splits)));
    }
    check::slice(name, "prologue.scale_shift", p.scale_shift, p.splits * 2 * op.c_in, DType::F32)
}

/// What [`statistics`] reads besides the filter, and what it writes.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// `[c_out]`.
    pub gamma: &'a Slice,
    /// `[c_out]`.
    pub beta: &'a Slice,
    /// Receives `[splits][3][c_out]`: [`BatchNorm::stats_len`]. The running pair follows from it:
    /// [`batch_norm::update_running_all`].
    pub stats: &'a Slice,
    /// Receives `[splits][2][c_out]`: [`BatchNorm::scale_shift_len`].
    pub scale_shift: Option<&'a Slice>,
    /// One u32: [`batch_norm::SKIP_BIT`] of it is set where a statistic is not finite.
    pub skip: Option<&'a Slice>,
}

/// Batch norm's tables for `y = W x`, from the [`moments`] of x. `filter` is `[c_out][c_in]`, as the convolution takes it: f32 on `Cpu`,
/// bf16 or f16 elsewhere. A variance that rounding made negative counts as 0.
///
/// # Errors
/// Sizes and types that do not fit `op`.
pub fn statistics(
    stream: &Stream,
    op: &Gram,
    moments: &Slice,
    filter: &Slice,
    tables: &Tables<'_>,
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "gram statistics";
    op.check(OP)?;
    let (c_out, is_cpu) = (op.norm.shape.c, *stream.device() == Device::Cpu);
    check::slice(OP, "moments", moments, op.moments_len(), DType::F32)?;
    let dtype = match filter.dtype() {
        DType::F32 if is_cpu => DType::F32,
        dtype @ (DType::Bf16 | DType::F16) if !is_cpu => dtype,
        got => {
            let wanted = if is_cpu { "F32" } else { "Bf16 or F16" };
            return Err(Error::shape(OP, format!("filter must hold {wanted}, got {got:?}")));
        }
    };
    check::slice(OP, "filter", filter, c_out * op.c_in, dtype)?;
    check::slice(OP, "gamma", tables.gamma, c_out, DType::F32)?;
    check::slice(OP, "beta", tables.beta, c_out, DType::F32)?;
    check::slice(OP, "stats", tables.stats, op.norm.stats_len(), DType::F32)?;
    tables.scale_shift.map_or(Ok(()), |t| check::slice(OP, "scale_shift", t, op.norm.scale_shift_len(), DType::F32))?;
    tables.skip.map_or(Ok(()), |flag| check::slice(OP, "skip", flag, 1, DType::U32))?;
    check::workspace(OP, workspace, workspace_bytes(stream, op))?;
    if !is_cpu {
        return launch::statistics(stream, OP, op, moments, filter, tables, workspace);
    }
    let Tables { gamma, beta, stats, scale_shift, skip } = *tables;
    with_host([moments, filter], [stats, workspace], |[moments, filter], [stats, scratch]| {
        cpu::statistics(Isa::chosen()?, op, moments.get()?, filter.get()?, stats.into_mut()?, scratch.into_mut()?);
        Ok(())
    })?;
    if let Some(table) = scale_shift {
        with_host([stats, gamma, beta], [table], |[stats, gamma, beta], [table]| {
            batch_norm::cpu::scale_shift(&op.norm, stats.get()?, gamma.get()?, beta.get()?, table.into_mut()?);
            Ok(())
        })?;
    }
    skip.map_or(Ok(()), |flag| batch_norm::flag_non_finite(&op.norm, stats, flag))
}
