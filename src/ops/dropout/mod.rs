//! Dropout from a counter-based random stream: the mask is a function of (seed, step, clip, feature) and is never stored.

mod cpu;
pub mod reference;

use crate::device::{Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;

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

impl Dropout {
    /// Whether element `feature` (counted within the clip, `[t][h][w][c]` without gaps) of clip `clip` (counted in the
    /// whole batch) is kept. This is the definition that every executor follows: two rounds of splitmix64, one that
    /// makes a key of (seed, step, clip), one that draws number `feature` of the key's stream; the upper 24 bits are
    /// compared with `rate * 2^24`, rounded to the nearest integer.
    pub fn keeps(&self, clip: usize, feature: usize) -> bool {
        draw(self.key(clip), feature as u64) >= self.threshold()
    }

    /// What kept elements are multiplied with.
    pub fn scale(&self) -> f32 {
        1.0 / (1.0 - self.rate)
    }

    fn key(&self, clip: usize) -> u64 {
        let with_step = splitmix64(self.seed ^ splitmix64(self.step));
        splitmix64(with_step ^ splitmix64(clip as u64 ^ 0x6472_6f70_6f75_7421))
    }

    fn threshold(&self) -> u32 {
        (f64::from(self.rate) * f64::from(1u32 << 24)).round() as u32
    }
}

#[inline(always)]
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[inline(always)]
fn draw(key: u64, feature: u64) -> u32 {
    (splitmix64(key.wrapping_add(feature.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 40) as u32
}

/// Zeroes elements and scales the others by `1 / (1 - rate)`: activations forward, gradients backward. In place allowed.
pub fn apply(stream: &Stream, op: &Dropout, input: &Tensor, output: &Tensor) -> Result<()> {
    const OP: &str = "dropout";
    if !(0.0..1.0).contains(&op.rate) {
        return Err(Error::shape(OP, format!("rate must be in [0, 1), got {}", op.rate)));
    }
    check::tensor(OP, "input", input, output.shape())?;
    check::tensor(OP, "output", output, input.shape())?;
    check::on_cpu(OP, stream)?;
    if check::same_memory(input, output) {
        return with_host([], [output.memory()], |[], [y]| {
            cpu::apply(op, None, output.view_mut(y.into_mut()?));
            Ok(())
        });
    }
    with_host([input.memory()], [output.memory()], |[x], [y]| {
        cpu::apply(op, Some(input.view(x.get()?)), output.view_mut(y.into_mut()?));
        Ok(())
    })
}
