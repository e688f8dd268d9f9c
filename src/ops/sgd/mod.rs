//! SGD with momentum, Nesterov and weight decay over all parameters in one launch (torch.optim.SGD's rule).

use crate::device::{Slice, Stream};
use crate::error::{Error, Result};

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

/// Updates `params` and `momentum` (flat f32 of one length) from `grads`. `ranges` must not overlap; elements in no range stay.
pub fn step(
    stream: &Stream,
    op: &Sgd,
    ranges: &[ParamRange],
    params: &Slice,
    grads: &Slice,
    momentum: &Slice,
) -> Result<()> {
    let _ = (stream, op, ranges, params, grads, momentum);
    Err(Error::unsupported("sgd", "stub"))
}
