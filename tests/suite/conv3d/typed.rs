//! Tensors of 16-bit types for the kernels of conv3d, and the rule that their results obey.

use vcycle::device::{Buffer, DType, Device, Element, Slice, Tensor};
use vcycle::shape::ActivationShape;

/// A 16-bit type with its rounding.
pub trait Half: Element + std::fmt::Debug {
    /// Its name in messages.
    const NAME: &'static str;
    /// Half a unit in the last place of 1.
    const ROUNDING: f64;
    /// To the nearest, through f32 as the kernels do.
    fn of(v: f64) -> Self;
    fn value(self) -> f64;
    /// Rounded.
    fn store(v: f64) -> f64 {
        Self::of(v).value()
    }
}

impl Half for half::bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDING: f64 = 1.0 / 512.0;
    fn of(v: f64) -> Self {
        half::bf16::from_f32(v as f32)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

impl Half for half::f16 {
    const NAME: &'static str = "f16";
    const ROUNDING: f64 = 1.0 / 4096.0;
    fn of(v: f64) -> Self {
        half::f16::from_f32(v as f32)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// A value that no gap between channels may lose.
const GAP: f64 = 77.0;

/// Values in memory, with channels of another tensor behind those of each position.
#[derive(Clone)]
pub struct Held {
    pub tensor: Tensor,
    memory: Slice,
}

/// A tensor of `values`, which are representable, with `gap` channels of another tensor behind its own.
pub fn held<T: Half>(device: &Device, shape: ActivationShape, values: &[f64], gap: usize) -> Held {
    let mut wide = vec![T::of(GAP); shape.num_positions() * (shape.c + gap)];
    for (to, from) in wide.chunks_mut(shape.c + gap).zip(values.chunks(shape.c)) {
        to.iter_mut().zip(from).for_each(|(to, v)| *to = T::of(*v));
    }
    let memory = Buffer::from_host(device, &wide).expect("buffer");
    Held { tensor: Tensor::new(memory.clone(), shape, shape.c + gap).expect("tensor"), memory }
}

/// A tensor to be overwritten: NaN.
pub fn garbage<T: Half>(device: &Device, shape: ActivationShape, gap: usize) -> Held {
    held::<T>(device, shape, &vec![f64::NAN; shape.num_elements()], gap)
}

impl Held {
    /// The values, after a check that the gaps are as they were.
    pub fn read<T: Half>(&self) -> Vec<f64> {
        let (all, c) = (self.memory.read::<T>().expect("read"), self.tensor.shape().c);
        for row in all.chunks(self.tensor.pitch_c()) {
            assert!(row[c..].iter().all(|v| v.value() == GAP), "a gap was written");
        }
        self.tensor.read::<T>().expect("read").into_iter().map(Half::value).collect()
    }
}

/// Values of the type in device memory.
pub fn slice<T: Half>(device: &Device, values: &[f64]) -> Slice {
    Buffer::from_host(device, &values.iter().map(|v| T::of(*v)).collect::<Vec<T>>()).expect("slice")
}

/// f32 values in device memory.
pub fn floats(device: &Device, values: &[f64]) -> Slice {
    Buffer::from_host(device, &values.iter().map(|v| *v as f32).collect::<Vec<f32>>()).expect("slice")
}

/// f32 values from device memory.
pub fn read_floats(slice: &Slice) -> Vec<f64> {
    slice.read::<f32>().expect("read").into_iter().map(f64::from).collect()
}

/// Zeroed scratch memory, as the first call wants it.
pub fn workspace(device: &Device, bytes: usize) -> Slice {
    Buffer::zeroed(device, bytes).and_then(|b| b.slice_of(DType::U8, 0, bytes)).expect("workspace")
}

/// Fails unless `got` is `want`, whatever the sign of zeros; NaN is NaN.
#[track_caller]
pub fn assert_exact(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || g.is_nan() && w.is_nan(), "{what}: element {i}: got {g}, want {w}");
    }
}

/// Fails unless the largest error is at most twice that of `plain` (the op done plainly at the kernel's types), plus one
/// rounding of the largest value. Where `want` is NaN nothing is compared.
#[track_caller]
pub fn assert_near(what: &str, got: &[f64], plain: &[f64], want: &[f64], rounding: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let (mut plain_error, mut largest) = (0f64, 0f64);
    for (p, w) in plain.iter().zip(want).filter(|(_, w)| !w.is_nan()) {
        plain_error = plain_error.max((p - w).abs());
        largest = largest.max(w.abs());
    }
    let bound = 2.0 * plain_error + largest * rounding;
    for (i, (g, w)) in got.iter().zip(want).enumerate().filter(|(_, (_, w))| !w.is_nan()) {
        let error = (g - w).abs();
        assert!(
            error <= bound,
            "{what}: element {i}: got {g}, want {w}: error {error:e} > {bound:e} (plain: {plain_error:e})"
        );
    }
}
