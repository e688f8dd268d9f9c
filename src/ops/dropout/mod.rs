//! Dropout from a counter-based random stream: the mask is a function of (seed, step, clip, feature) and is never stored.

mod cpu;
mod launch;
mod params;
pub mod reference;

use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
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

const OP: &str = "dropout";

/// Zeroes elements and scales the others by `1 / (1 - rate)`: activations forward, gradients backward. In place allowed.
/// f32 on the CPU; f32, bf16 or f16 elsewhere.
///
/// # Errors
/// A rate outside of [0, 1); tensors of different shapes or types.
pub fn apply(stream: &Stream, op: &Dropout, input: &Tensor, output: &Tensor) -> Result<()> {
    check_arguments(stream, op, input, output)?;
    match stream.device() {
        Device::Cpu => on_cpu(op, input, output),
        Device::Cuda(_) | Device::Simt => launch::apply(stream, op, None, input, output),
    }
}

/// As [`apply`] with the step that lies on the device in `step`: two u32, the lower word first. A captured graph of it can be
/// replayed with another step.
///
/// # Errors
/// As [`apply`]; a step of another type or length.
pub fn apply_step(stream: &Stream, op: &Dropout, step: &Slice, input: &Tensor, output: &Tensor) -> Result<()> {
    check_arguments(stream, op, input, output)?;
    check::slice(OP, "step", step, 2, DType::U32)?;
    match stream.device() {
        Device::Cpu => {
            let step = with_host([step], [], |[words], []| {
                let words = words.get::<u32>()?;
                Ok(u64::from(words[1]) << 32 | u64::from(words[0]))
            })?;
            on_cpu(&Dropout { step, ..*op }, input, output)
        }
        Device::Cuda(_) | Device::Simt => launch::apply(stream, op, Some(step), input, output),
    }
}

fn check_arguments(stream: &Stream, op: &Dropout, input: &Tensor, output: &Tensor) -> Result<()> {
    if !(0.0..1.0).contains(&op.rate) {
        return Err(Error::shape(OP, format!("rate must be in [0, 1), got {}", op.rate)));
    }
    let dtype = check::activation_dtype(OP, stream, "input", input)?;
    check::tensor_of(OP, "input", input, output.shape(), dtype)?;
    check::tensor_of(OP, "output", output, input.shape(), dtype)
}

fn on_cpu(op: &Dropout, input: &Tensor, output: &Tensor) -> Result<()> {
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
