//! Numbers, memory and comparisons that the tests of several ops share.

use vcycle::device::{Buffer, Device, Element, Slice, Tensor};
use vcycle::shape::ActivationShape;

use crate::golden::fill;

/// A value that no gap between the channels of two positions may lose.
const GAP: f32 = 77.0;

/// Integers in `-size ..= size` as floats: sums of few of them are exact in f32, in any order.
pub fn integers(name: &str, n: usize, size: u64) -> Vec<f32> {
    fill::int(name, n, 2 * size + 1).into_iter().map(|v| v as f32 - size as f32).collect()
}

/// The same values in f64.
pub fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// The rounding of plain code in f32: see the references.
pub fn to_f32(v: f64) -> f64 {
    f64::from(v as f32)
}

/// The rounding of references: none.
pub fn exact(v: f64) -> f64 {
    v
}

/// Values in device memory.
pub fn slice<T: Element>(values: &[T]) -> Slice {
    Buffer::from_host(&Device::Cpu, values).expect("buffer")
}

/// `len` f32 of garbage: an op must not expect zeros.
pub fn garbage(len: usize) -> Slice {
    slice(&vec![f32::NAN; len])
}

/// How a tensor lies in memory: `before` channels that belong to others precede its own, `after` follow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub before: usize,
    pub after: usize,
}

impl Place {
    /// Without gaps.
    pub const DENSE: Place = Place { before: 0, after: 0 };

    /// A tensor that holds `values`, in the middle of a wider one.
    pub fn tensor(self, shape: ActivationShape, values: &[f32]) -> Tensor {
        let wide = shape.with_channels(self.before + shape.c + self.after);
        let mut all = vec![GAP; wide.num_elements()];
        for (to, from) in all.chunks_mut(wide.c).zip(values.chunks(shape.c)) {
            to[self.before..][..shape.c].copy_from_slice(from);
        }
        let wide = Tensor::from_host(&Device::Cpu, wide, &all).expect("tensor");
        wide.channels(self.before, shape.c).expect("channels")
    }

    /// A tensor of garbage to be overwritten.
    pub fn garbage(self, shape: ActivationShape) -> Tensor {
        self.tensor(shape, &vec![f32::NAN; shape.num_elements()])
    }
}

/// The values of a tensor of [`Place::tensor`], after a check that what belongs to others is as it was.
pub fn read(tensor: &Tensor, place: Place) -> Vec<f32> {
    let buffer = tensor.memory().buffer();
    let all = buffer.slice::<f32>(0, buffer.len_bytes() / 4).expect("slice").read::<f32>().expect("read");
    for row in all.chunks(tensor.pitch_c()) {
        let own = place.before..place.before + tensor.shape().c;
        let kept = row.iter().enumerate().all(|(i, &v)| own.contains(&i) || v == GAP);
        assert!(kept, "a gap was written: {row:?}");
    }
    tensor.read().expect("read")
}

/// Fails unless both are equal bit for bit.
#[track_caller]
pub fn assert_same_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: element {i}: {got:e} is not {want:e}");
    }
}

/// Fails unless `got` is exactly `want`, but for the sign of zeros.
#[track_caller]
pub fn assert_equal(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(f64::from(*got) == *want, "{what}: element {i}: {got:e} is not {want:e}");
    }
}

/// Fails unless the largest error of `got` is at most twice that of `plain` (the same op in plain f32), plus one rounding.
#[track_caller]
pub fn assert_twice_plain(what: &str, got: &[f32], plain: &[f64], reference: &[f64]) {
    assert_eq!(got.len(), reference.len(), "{what}: length");
    let worst = |of: &dyn Fn(usize) -> f64| {
        (0..reference.len()).map(|i| (of(i), i)).fold((0.0, 0), |a, b| if b.0 <= a.0 { a } else { b })
    };
    let (error, at) = worst(&|i| (f64::from(got[i]) - reference[i]).abs());
    let (plain_error, _) = worst(&|i| (plain[i] - reference[i]).abs());
    let (largest, _) = worst(&|i| reference[i].abs());
    let bound = 2.0 * plain_error + largest * f64::from(f32::EPSILON) / 2.0;
    assert!(
        error <= bound,
        "{what}: element {at}: got {:e}, reference {:e}: error {error:e} > {bound:e} (plain f32: {plain_error:e})",
        got[at],
        reference[at]
    );
}

/// Runs `work` with `threads` threads for parallel loops.
pub fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads").install(work)
}

/// Fails unless `gradient` is the derivative of `loss` at `x`: central differences in f64 at up to 40 of the elements.
#[track_caller]
pub fn assert_gradient(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}: length");
    let largest = gradient.iter().fold(1e-3, |a: f64, g| a.max(g.abs()));
    for i in (0..x.len()).step_by(x.len().div_ceil(40)) {
        let step = 1e-6;
        let moved = |by: f64| {
            let mut x = x.to_vec();
            x[i] += by;
            loss(&x)
        };
        let difference = (moved(step) - moved(-step)) / (2.0 * step);
        let noise = 1e-15 * loss(x).abs().max(1.0) / step;
        let error = (difference - gradient[i]).abs();
        assert!(
            error < 1e-7 * largest + noise,
            "{what}: element {i}: {} but the difference quotient is {difference}",
            gradient[i]
        );
    }
}
