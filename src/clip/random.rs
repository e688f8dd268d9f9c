//! Random numbers that depend on names, not on history: the stream of clip `index` in `epoch` is the same on every
//! machine, with any number of threads, and after a resume.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is for; two purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Order of the clips of an epoch.
    Order = 1,
    /// Frames, crop and flip of one clip.
    Sampling = 2,
    /// Which clip takes the place of an undecodable one.
    Replacement = 3,
    /// Content of a synthetic clip.
    Synthesis = 4,
    /// Which clips of a batch are blended how.
    Mixup = 5,
}

/// A stream of random numbers (ChaCha8), keyed by a seed, a purpose, an epoch and an index.
#[derive(Clone, Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream from which the frames, the crop and the flip of item `index` of `epoch` are drawn.
    pub fn new(seed: u64, epoch: u64, index: u64) -> Self {
        Draws::for_purpose(Purpose::Sampling, seed, epoch, index)
    }

    /// The stream from which the blend of step `iteration` of `epoch` is drawn.
    pub(crate) fn for_mixup(seed: u64, epoch: u64, iteration: u64) -> Self {
        Draws::for_purpose(Purpose::Mixup, seed, epoch, iteration)
    }

    pub(crate) fn for_purpose(purpose: Purpose, seed: u64, epoch: u64, index: u64) -> Self {
        let mut key = [0u8; 32];
        for (part, value) in key.chunks_exact_mut(8).zip([seed, epoch, index, purpose as u64]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        Draws(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// Uniform in 0..n (0 where n is 0). The bias is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// The numbers 0..n in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
