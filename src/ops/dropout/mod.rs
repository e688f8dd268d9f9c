//! Dropout from a counter-based random stream: the mask is a function of (seed, step, clip, feature) and is never stored.

use crate::device::{Stream, Tensor};
use crate::error::{Error, Result};

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of a zero, in [0, 1).
    pub rate: f32,
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Index of the tensor's first clip in the whole batch.
    pub first_clip: usize,
}

/// Zeroes elements and scales the others by `1 / (1 - rate)`: activations forward, gradients backward. In place allowed.
pub fn apply(stream: &Stream, op: &Dropout, input: &Tensor, output: &Tensor) -> Result<()> {
    let _ = (stream, op, input, output);
    Err(Error::unsupported("dropout", "stub"))
}
