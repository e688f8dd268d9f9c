//! SGD with momentum, Nesterov and weight decay over all parameters in one launch (torch.optim.SGD's rule).
//!
//! [`step`] is the plain rule on the host. [`step_all`] runs everywhere and does more: it writes the 16-bit copy of the
//! parameters in the same pass, and with a [`Guard`] it first forms the gradient norm, looks for gradients that are not
//! finite, keeps the loss scale and skips the step where it must. With kernels that is one more launch before the update's:
//! an update in place must know before its first store that nothing is wrong.

mod cpu;
mod guard;
mod launch;
mod params;
pub mod reference;
mod table;

use std::ops::Range;

pub use guard::{Guard, LossScaling, State};
pub use table::RangeTable;

use crate::device::{DType, Device, Slice, Stream, with_host};
use crate::error::{Error, Result};
use crate::ops::check;

/// Hyper-parameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Dampening of the gradient in the momentum buffer; 0 with Nesterov.
    pub dampening: f32,
    /// Nesterov's form.
    pub nesterov: bool,
    /// First step: the momentum buffer becomes the gradient itself.
    pub first_step: bool,
}

/// A contiguous range of the flat parameter array with one weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamRange {
    /// First element.
    pub start: usize,
    /// Elements.
    pub len: usize,
    /// Weight decay.
    pub weight_decay: f32,
}

/// Updates `params` and `momentum` (flat f32 of one length) from `grads`: with `g = grad + weight_decay * param`,
/// `m = momentum * m + (1 - dampening) * g` (`m = g` in the first step), and `param -= lr * d` where `d` is `m`, with
/// Nesterov `g + momentum * m`, and without momentum `g` (`momentum` is then left alone).
///
/// # Errors
/// Lengths that differ; `ranges` out of order, overlapping or past the end. Elements in no range stay.
pub fn step(
    stream: &Stream,
    op: &Sgd,
    ranges: &[ParamRange],
    params: &Slice,
    grads: &Slice,
    momentum: &Slice,
) -> Result<()> {
    check_arrays(params, grads, momentum)?;
    check_op(OP, op)?;
    check_ranges(OP, ranges, params.len())?;
    if *stream.device() != Device::Cpu {
        return Err(Error::unsupported(OP, "kernels read the ranges from the device: make a RangeTable, use step_all"));
    }
    with_host([grads], [params, momentum], |[g], [p, m]| {
        cpu::step(op, &cpu::blocks(ranges).collect::<Vec<_>>(), p.into_mut()?, g.get()?, m.into_mut()?);
        Ok(())
    })
}

/// What [`step_all`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Arrays<'a> {
    /// f32, all of them.
    pub params: &'a Slice,
    /// f32, of the same length; with a [`Guard`] of the loss times its loss scale.
    pub grads: &'a Slice,
    /// f32, of the same length.
    pub momentum: &'a Slice,
    /// bf16 or f16 copy of `params`, written with them.
    pub copy: Option<&'a Slice>,
    /// One f32 that takes the place of [`Sgd::lr`], so that a captured graph can be replayed with another rate.
    pub lr: Option<&'a Slice>,
}

impl<'a> Arrays<'a> {
    /// Without copy, with the rate of the op.
    pub fn new(params: &'a Slice, grads: &'a Slice, momentum: &'a Slice) -> Arrays<'a> {
        Arrays { params, grads, momentum, copy: None, lr: None }
    }

    /// What the kernels reach by vectors, with its alignment in bytes.
    fn aligned(&self) -> Vec<(&'static str, &'a Slice, u64)> {
        let mut all = vec![("params", self.params, 16), ("grads", self.grads, 16), ("momentum", self.momentum, 16)];
        all.extend(self.copy.map(|copy| ("copy", copy, 8)));
        all
    }
}

/// As [`step`], with the extras of `arrays` and, with a `guard`, only if nothing speaks against it. Kernels need f32 arrays that
/// are aligned to 16 bytes and a copy aligned to 8.
///
/// # Errors
/// As [`step`]; a table for other lengths; a copy, rate, state, flag or workspace of another type or length.
pub fn step_all(
    stream: &Stream,
    op: &Sgd,
    table: &RangeTable,
    arrays: &Arrays<'_>,
    guard: Option<&Guard<'_>>,
) -> Result<()> {
    let len = table.len();
    check::slice(OP, "params", arrays.params, len, DType::F32)?;
    check_arrays(arrays.params, arrays.grads, arrays.momentum)?;
    check_op(OP, op)?;
    if let Some(copy) = arrays.copy {
        let dtype = if copy.dtype() == DType::F16 { DType::F16 } else { DType::Bf16 };
        check::slice(OP, "copy", copy, len, dtype)?;
    }
    if let Some(lr) = arrays.lr {
        check::slice(OP, "lr", lr, 1, DType::F32)?;
    }
    if let Some(guard) = guard {
        check::slice(OP, "state", guard.state, State::NUM_WORDS, DType::U32)?;
        check::workspace(OP, guard.workspace, table.workspace_bytes())?;
        if let Some(flag) = guard.skip_flag {
            check::slice(OP, "skip_flag", flag, 1, DType::U32)?;
        }
        for (name, limit) in [("max_grad_norm", guard.max_grad_norm), ("max_grad_value", guard.max_grad_value)] {
            if limit.is_nan() || limit <= 0.0 {
                return Err(Error::shape(OP, format!("{name} must be positive, got {limit}")));
            }
        }
    }
    match stream.device() {
        Device::Cpu => cpu::step_all(op, table.blocks(), arrays, guard),
        Device::Cuda(_) | Device::Simt => launch::step(stream, op, table, arrays, guard),
    }
}

const OP: &str = "sgd";

fn check_arrays(params: &Slice, grads: &Slice, momentum: &Slice) -> Result<()> {
    check::slice(OP, "params", params, params.len(), DType::F32)?;
    check::slice(OP, "grads", grads, params.len(), DType::F32)?;
    check::slice(OP, "momentum", momentum, params.len(), DType::F32)
}

fn check_op(name: &'static str, op: &Sgd) -> Result<()> {
    if op.nesterov && (op.momentum == 0.0 || op.dampening != 0.0) {
        return Err(Error::shape(
            name,
            format!("nesterov needs momentum and no dampening, got {} and {}", op.momentum, op.dampening),
        ));
    }
    Ok(())
}

fn check_ranges(name: &'static str, ranges: &[ParamRange], len: usize) -> Result<()> {
    let mut end = 0;
    for (i, range) in ranges.iter().enumerate() {
        let range_end = range.start.checked_add(range.len).filter(|&e| range.start >= end && e <= len);
        end = range_end.ok_or_else(|| {
            let Range { start, end: to } = range.start..range.start.saturating_add(range.len);
            let message = format!("range {i} is {start}..{to}, must lie in {end}..{len} (in order, no overlap)");
            Error::shape(name, message)
        })?;
    }
    Ok(())
}
