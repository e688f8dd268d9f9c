//! Values in memory of any device, stored as f32, bf16 or f16.

use half::{bf16, f16};
use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::shape::ActivationShape;

/// The types that activations are stored as on executors with kernels.
pub const SHORT: [DType; 2] = [DType::Bf16, DType::F16];

/// `v` as `dtype` stores it.
pub fn round(dtype: DType, v: f64) -> f64 {
    match dtype {
        DType::Bf16 => bf16::from_f64(v).to_f64(),
        DType::F16 => f16::from_f64(v).to_f64(),
        _ => f64::from(v as f32),
    }
}

/// Rounding to `dtype`, for references.
pub fn rounding(dtype: DType) -> fn(f64) -> f64 {
    match dtype {
        DType::Bf16 => |v| bf16::from_f64(v).to_f64(),
        DType::F16 => |v| f16::from_f64(v).to_f64(),
        _ => |v| f64::from(v as f32),
    }
}

/// Largest relative error of one rounding to `dtype`.
pub fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

/// `values` in memory of `device`.
pub fn slice(device: &Device, dtype: DType, values: &[f32]) -> Slice {
    let made = match dtype {
        DType::Bf16 => Buffer::from_host(device, &values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()),
        DType::F16 => Buffer::from_host(device, &values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>()),
        _ => Buffer::from_host(device, values),
    };
    made.expect("slice")
}

/// `len` NaN: an op must not expect zeros.
pub fn garbage(device: &Device, dtype: DType, len: usize) -> Slice {
    slice(device, dtype, &vec![f32::NAN; len])
}

/// The elements of a slice.
pub fn read(slice: &Slice) -> Vec<f32> {
    match slice.dtype() {
        DType::Bf16 => slice.read::<bf16>().expect("read").into_iter().map(f32::from).collect(),
        DType::F16 => slice.read::<f16>().expect("read").into_iter().map(f32::from).collect(),
        _ => slice.read().expect("read"),
    }
}

/// What lies between the channels of two positions: no op may change it.
const GAP: f32 = 77.0;

/// A tensor that holds `values`; `before` and `after` channels of others surround its own.
pub fn tensor(
    device: &Device,
    dtype: DType,
    shape: ActivationShape,
    values: &[f32],
    [before, after]: [usize; 2],
) -> Tensor {
    let wide = shape.with_channels(before + shape.c + after);
    let mut all = vec![GAP; wide.num_elements()];
    for (to, from) in all.chunks_mut(wide.c).zip(values.chunks(shape.c)) {
        to[before..][..shape.c].copy_from_slice(from);
    }
    let wide = Tensor::new(slice(device, dtype, &all), wide, wide.c).expect("tensor");
    wide.channels(before, shape.c).expect("channels")
}

/// The values of a tensor of [`tensor`], after a check that what belongs to others is as it was.
pub fn read_tensor(tensor: &Tensor, [before, _]: [usize; 2]) -> Vec<f32> {
    let buffer = tensor.memory().buffer();
    let all =
        read(&buffer.slice_of(tensor.dtype(), 0, buffer.len_bytes() / tensor.dtype().size_bytes()).expect("slice"));
    let own = before..before + tensor.shape().c;
    let mut values = vec![];
    for row in all.chunks(tensor.pitch_c()) {
        let kept = row.iter().enumerate().all(|(i, &v)| own.contains(&i) || v == GAP);
        assert!(kept, "a gap was written: {row:?}");
        values.extend_from_slice(&row[own.clone()]);
    }
    values
}

/// Fails unless the largest error of `got` is at most twice that of `plain` (the same op done plainly at that dtype), plus one
/// rounding of the largest value to `dtype`.
#[track_caller]
pub fn assert_twice_plain(what: &str, dtype: DType, got: &[f32], plain: &[f64], want: &[f64]) {
    assert_eq!((got.len(), plain.len()), (want.len(), want.len()), "{what}: length");
    let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let plain_error = plain.iter().zip(want).fold(0.0, |m: f64, (p, w)| m.max((p - w).abs()));
    let bound = 2.0 * plain_error + largest * unit_roundoff(dtype);
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= bound,
            "{what} {dtype:?}: element {i}: got {got:e}, reference {want:e}: error {error:e} > {bound:e} (plain: \
             {plain_error:e})"
        );
    }
}
