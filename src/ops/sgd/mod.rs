//! SGD with momentum, Nesterov and weight decay over all parameters in one launch (torch.optim.SGD's rule).

mod cpu;
pub mod reference;

use std::ops::Range;

use crate::device::{DType, Slice, Stream, with_host};
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
    const OP: &str = "sgd";
    check::slice(OP, "params", params, params.len(), DType::F32)?;
    check::slice(OP, "grads", grads, params.len(), DType::F32)?;
    check::slice(OP, "momentum", momentum, params.len(), DType::F32)?;
    check_op(OP, op)?;
    check_ranges(OP, ranges, params.len())?;
    check::on_cpu(OP, stream)?;
    with_host([grads], [params, momentum], |[g], [p, m]| {
        cpu::step(op, ranges, p.into_mut()?, g.get()?, m.into_mut()?);
        Ok(())
    })
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
