//! What a convolution may do to its operands on their way in and out: the batch norm, ReLU and residual join before it, the
//! statistics or the folded batch norm after it, and their gradients. So a normalised activation is never stored, unless it
//! is a block's output.
//!
//! | | on load | on store |
//! |---|---|---|
//! | forward | [`Prologue`] of the input | [`Epilogue`] of the output |
//! | grad_input | [`GradTable`] of the output's gradient | [`GradEpilogue`] of the input's gradient |
//! | grad_filter | both | |
//!
//! Splits are contiguous blocks of `ceil(clips / splits)` clips, as in [`batch_norm`](crate::ops::batch_norm). All tables are
//! f32, hold a row of channels after the other, and are written by whoever finalises statistics:
//!
//! | table | shape | rows |
//! |---|---|---|
//! | `scale_shift` | `[splits][2][c]` | scale = gamma / deviation, shift = beta - mean scale |
//! | `stats` | `[splits][3][c]` | mean, inverse deviation, unbiased variance |
//! | `grad_table` | `[splits][3][c]` | A, B, C of `dy = A g + B y + C` |

use crate::device::{DType, Slice, Tensor};
use crate::error::{Error, Result};
use crate::shape::{ActivationShape, Part};

/// The input is `relu(s x + b)` with a scale and a shift for each split and channel; with a join, what [`Join`] says. Outside
/// of the input it is exactly zero, whatever the shift.
#[derive(Clone, Copy, Debug)]
pub struct Prologue<'a> {
    /// `[splits][2][c_in]`.
    pub scale_shift: &'a Slice,
    /// Blocks of clips.
    pub splits: usize,
    /// The end of a residual block.
    pub join: Option<Join<'a>>,
}

/// The input is `relu(s y + b + r)`, or `relu(s y + b + s2 y2 + b2)` where the shortcut has a batch norm of its own.
#[derive(Clone, Copy, Debug)]
pub struct Join<'a> {
    /// `r`, or `y2`; shaped as the input.
    pub residual: &'a Tensor,
    /// `s2`, `b2`: `[splits][2][c_in]`.
    pub residual_scale_shift: Option<&'a Slice>,
    /// Receives the result, the block's output, once. Where each position of the input is read by the tile of one output
    /// position as its own (unit stride, output as large as the input, a tap at distance 0), the convolution itself stores it;
    /// elsewhere a launch before it does, and the convolution reads what that stored.
    pub output: Option<&'a Tensor>,
}

/// What follows the forward convolution.
#[derive(Clone, Copy, Debug, Default)]
pub enum Epilogue<'a> {
    /// The sums, rounded.
    #[default]
    None,
    /// The statistics of the output, for the batch norm after it.
    Statistics(Statistics<'a>),
    /// `relu(conv + bias + residual)`: a batch norm folded into filter and bias.
    Evaluation(Evaluation<'a>),
    /// `relu(s conv + b + residual)`: a batch norm whose statistics are known before the convolution runs.
    Normalise(Normalise<'a>),
}

/// Mean and variance of each split and channel of the output, as it is stored (rounded), finished by the last block.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// Blocks of clips, as in the [`Prologue`], where there is one.
    pub splits: usize,
    /// Added to the variance.
    pub eps: f32,
    /// `[c_out]`.
    pub gamma: &'a Slice,
    /// `[c_out]`.
    pub beta: &'a Slice,
    /// The layer's running pair.
    pub running: Option<Running<'a>>,
    /// Receives `[splits][3][c_out]`. Rows of splits without clips are not written, here and below.
    pub stats: &'a Slice,
    /// Receives `[splits][2][c_out]`.
    pub scale_shift: &'a Slice,
    /// One u32 that becomes 1 where a statistic is not finite, and is left alone elsewhere. Where there is one, such statistics
    /// stay out of the running pair.
    pub skip: Option<&'a Slice>,
}

/// `running = (1 - momentum) running + momentum (mean over the splits)`, of means and of unbiased variances.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// `[c_out]`.
    pub mean: &'a Slice,
    /// `[c_out]`.
    pub var: &'a Slice,
    /// Share of the new statistics.
    pub momentum: f32,
}

/// What a network in evaluation does with the sums, in this order; f32, then rounded once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evaluation<'a> {
    /// `[c_out]`, f32.
    pub bias: Option<&'a Slice>,
    /// Shaped as the output.
    pub residual: Option<&'a Tensor>,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// `relu(s conv + b + r)`, or `relu(s conv + b + s2 r + b2)` where the shortcut has a batch norm of its own: f32, then rounded once. What
/// the convolution itself gives is never stored: see [`gram`](crate::ops::gram).
#[derive(Clone, Copy, Debug)]
pub struct Normalise<'a> {
    /// `s`, `b`: `[splits][2][c_out]`.
    pub scale_shift: &'a Slice,
    /// Blocks of clips, as in the [`Prologue`], where there is one.
    pub splits: usize,
    /// `r`; shaped as the output.
    pub residual: Option<&'a Tensor>,
    /// `s2`, `b2`: `[splits][2][c_out]`. Only with a residual.
    pub residual_scale_shift: Option<&'a Slice>,
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// The gradient of the convolution's output is that of a batch norm: `dy = A g + B y + C`, with `g` the masked gradient of the
/// normalised value and `y` what forward stored. Exactly zero outside of the output.
#[derive(Clone, Copy, Debug)]
pub struct GradTable<'a> {
    /// `[splits][3][c_out]`: A, B, C.
    pub table: &'a Slice,
    /// The convolution's output as forward stored it.
    pub y: &'a Tensor,
    /// Blocks of clips.
    pub splits: usize,
    /// Receives `dy`, rounded: see [`Join::output`]. For grad_input only; grad_filter then reads one tensor.
    pub store_dy: Option<&'a Tensor>,
}

/// What becomes of the input's gradient: the gradient of the other branch is added, the ReLU's mask applied, the result rounded
/// and stored; of what is stored, the sums that the batch norms before it need. The last block writes their tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct GradEpilogue<'a> {
    /// The other branch's gradient; may be the memory of the result.
    pub add: Option<&'a Tensor>,
    /// Where the ReLU was open.
    pub mask: Mask<'a>,
    /// Blocks of clips, as in the [`GradTable`], where there is one. Not read without norms and a recomputed mask.
    pub splits: usize,
    /// The batch norms whose outputs were added up before the ReLU; two at most.
    pub norms: &'a [GradNorm<'a>],
}

/// Where the gradient of a ReLU passes.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mask<'a> {
    /// There was no ReLU.
    #[default]
    None,
    /// Where the stored output of the ReLU is positive.
    Output(&'a Tensor),
    /// Where `s y + b` is positive.
    Recomputed {
        /// `[splits][2][c_in]`.
        scale_shift: &'a Slice,
        /// Shaped as the input.
        y: &'a Tensor,
    },
}

/// A batch norm whose gradient begins here.
#[derive(Clone, Copy, Debug)]
pub struct GradNorm<'a> {
    /// What it normalised; shaped as the input of the convolution.
    pub y: &'a Tensor,
    /// `[splits][3][c_in]`, from forward.
    pub stats: &'a Slice,
    /// `[c_in]`.
    pub gamma: &'a Slice,
    /// Receives A, B, C: `[splits][3][c_in]`.
    pub grad_table: &'a Slice,
    /// Receives the gradient of gamma, `[c_in]`.
    pub grad_gamma: &'a Slice,
    /// Receives the gradient of beta, `[c_in]`.
    pub grad_beta: &'a Slice,
}

/// What a call's tensors must agree with.
#[derive(Clone, Copy)]
pub(super) struct Checker {
    pub op: &'static str,
    pub dtype: DType,
    /// Of the convolution.
    pub part: Option<Part>,
}

impl Checker {
    pub(super) fn tensor(&self, name: &str, got: &Tensor, expected: ActivationShape) -> Result<()> {
        if got.shape() != expected {
            return Err(Error::shape(self.op, format!("{name} must be {expected}, got {}", got.shape())));
        }
        if got.dtype() != self.dtype {
            return Err(Error::shape(self.op, format!("{name} must be {:?}, got {:?}", self.dtype, got.dtype())));
        }
        Ok(())
    }

    pub(super) fn slice(&self, name: &str, got: &Slice, dtype: DType, len: usize) -> Result<()> {
        if got.len() != len {
            return Err(Error::shape(self.op, format!("{name} must have {len} elements, got {}", got.len())));
        }
        if got.dtype() != dtype {
            return Err(Error::shape(self.op, format!("{name} must be {dtype:?}, got {:?}", got.dtype())));
        }
        Ok(())
    }

    fn table(&self, name: &str, got: &Slice, splits: usize, rows: usize, c: usize) -> Result<()> {
        if splits == 0 {
            return Err(Error::shape(self.op, "splits must be at least 1, got 0"));
        }
        self.slice(name, got, DType::F32, splits * rows * c)
    }

    /// A prologue of activations of this shape.
    pub(super) fn prologue(&self, p: &Prologue<'_>, shape: ActivationShape) -> Result<()> {
        self.table("prologue.scale_shift", p.scale_shift, p.splits, 2, shape.c)?;
        let Some(join) = &p.join else { return Ok(()) };
        self.tensor("join.residual", join.residual, shape)?;
        if let Some(table) = join.residual_scale_shift {
            self.table("join.residual_scale_shift", table, p.splits, 2, shape.c)?;
        }
        join.output.map_or(Ok(()), |o| self.tensor("join.output", o, shape))
    }

    /// The gradient of activations of this shape.
    pub(super) fn grad_table(&self, t: &GradTable<'_>, shape: ActivationShape) -> Result<()> {
        self.table("grad_table.table", t.table, t.splits, 3, shape.c)?;
        self.tensor("grad_table.y", t.y, shape)?;
        t.store_dy.map_or(Ok(()), |dy| self.tensor("grad_table.store_dy", dy, shape))
    }

    pub(super) fn epilogue(&self, e: &Epilogue<'_>, shape: ActivationShape) -> Result<()> {
        match e {
            Epilogue::None => Ok(()),
            Epilogue::Statistics(s) => self.statistics(s, shape),
            Epilogue::Evaluation(e) => {
                e.bias.map_or(Ok(()), |b| self.slice("bias", b, DType::F32, shape.c))?;
                e.residual.map_or(Ok(()), |r| self.tensor("residual", r, shape))
            }
            Epilogue::Normalise(n) => self.normalise(n, shape),
        }
    }

    fn normalise(&self, n: &Normalise<'_>, shape: ActivationShape) -> Result<()> {
        self.table("normalise.scale_shift", n.scale_shift, n.splits, 2, shape.c)?;
        match (n.residual, n.residual_scale_shift) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(Error::shape(self.op, "normalise.residual_scale_shift needs a residual, got none")),
            (Some(residual), table) => {
                self.tensor("normalise.residual", residual, shape)?;
                let check = |table| self.table("normalise.residual_scale_shift", table, n.splits, 2, shape.c);
                table.map_or(Ok(()), check)
            }
        }
    }

    fn statistics(&self, s: &Statistics<'_>, shape: ActivationShape) -> Result<()> {
        self.table("statistics.stats", s.stats, s.splits, 3, shape.c)?;
        self.table("statistics.scale_shift", s.scale_shift, s.splits, 2, shape.c)?;
        let pair = s.running.map_or(vec![], |r| vec![("running.mean", r.mean), ("running.var", r.var)]);
        for (name, slice) in [("gamma", s.gamma), ("beta", s.beta)].into_iter().chain(pair) {
            self.slice(name, slice, DType::F32, shape.c)?;
        }
        if s.eps.is_nan() || s.eps < 0.0 {
            return Err(Error::shape(self.op, format!("eps must not be negative, got {}", s.eps)));
        }
        let batch = self.part.unwrap_or(Part::whole(shape.n, s.splits));
        if s.running.is_some() && shape.n < batch.batch_clips {
            return Err(Error::shape(self.op, "running statistics follow from whole batches, got a part of one"));
        }
        let clips_of_last = shape.n - (batch.splits_of(shape.n) - 1) * batch.clips_per_split();
        let values = clips_of_last * shape.t * shape.h * shape.w;
        if values < 2 {
            let message =
                format!("each split needs at least 2 values a channel, got {values} ({shape}, {} splits)", s.splits);
            return Err(Error::shape(self.op, message));
        }
        s.skip.map_or(Ok(()), |flag| self.slice("skip", flag, DType::U32, 1))
    }

    pub(super) fn grad_epilogue(&self, e: &GradEpilogue<'_>, shape: ActivationShape) -> Result<()> {
        e.add.map_or(Ok(()), |t| self.tensor("add", t, shape))?;
        match e.mask {
            Mask::None => {}
            Mask::Output(output) => self.tensor("mask", output, shape)?,
            Mask::Recomputed { scale_shift, y } => {
                self.table("mask.scale_shift", scale_shift, e.splits, 2, shape.c)?;
                self.tensor("mask.y", y, shape)?;
            }
        }
        if e.norms.len() > 2 {
            return Err(Error::shape(self.op, format!("at most 2 batch norms can be served, got {}", e.norms.len())));
        }
        for norm in e.norms {
            self.tensor("norm.y", norm.y, shape)?;
            self.table("norm.stats", norm.stats, e.splits, 3, shape.c)?;
            self.table("norm.grad_table", norm.grad_table, e.splits, 3, shape.c)?;
            for (name, slice) in
                [("norm.gamma", norm.gamma), ("norm.grad_gamma", norm.grad_gamma), ("norm.grad_beta", norm.grad_beta)]
            {
                self.slice(name, slice, DType::F32, shape.c)?;
            }
        }
        Ok(())
    }
}
