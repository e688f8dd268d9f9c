//! The tables of tests/cases, and memory with random values.

use vcycle::device::{Buffer, DType, Device, Element, Slice, Tensor};
use vcycle::shape::ActivationShape;

/// The rows of tests/cases/`name`.toml, `[[case]]` or `[[layer]]`, with `bench = true`.
pub fn of(name: &str) -> Vec<toml::Table> {
    let text = crate::device::cases(name);
    let mut table: toml::Table = text.parse().unwrap_or_else(|e| panic!("tests/cases/{name}.toml: {e}"));
    let lists = ["case", "layer"].into_iter().filter_map(|kind| table.remove(kind));
    let rows = lists.flat_map(|list| list.try_into::<Vec<toml::Table>>().expect("[[case]] or [[layer]]"));
    rows.filter(|row: &toml::Table| flag(row, "bench")).collect()
}

/// A name.
pub fn text<'a>(row: &'a toml::Table, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_else(|| panic!("{key} must be text"))
}

/// A flag; false where it is absent.
pub fn flag(row: &toml::Table, key: &str) -> bool {
    row.get(key).is_some_and(|v| v.as_bool().expect("a flag"))
}

/// `N` sizes.
pub fn sizes<const N: usize>(row: &toml::Table, key: &str) -> [usize; N] {
    let all = row[key].as_array().unwrap_or_else(|| panic!("{key} must be a list"));
    let all: Vec<usize> = all.iter().map(|v| v.as_integer().expect("a size") as usize).collect();
    all.try_into().unwrap_or_else(|_| panic!("{key} must hold {N} sizes"))
}

/// `[n, t, h, w, c]`.
pub fn shape(row: &toml::Table, key: &str) -> ActivationShape {
    let [n, t, h, w, c] = sizes(row, key);
    ActivationShape::new(n, t, h, w, c)
}

/// Values in [-1, 1), another sequence for another seed.
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Random activations of any type without gaps, on any device.
pub fn random_tensor(device: &Device, dtype: DType, shape: ActivationShape, seed: u64) -> Tensor {
    let values = random(shape.num_elements(), seed);
    match dtype {
        DType::Bf16 => {
            let values: Vec<_> = values.into_iter().map(half::bf16::from_f32).collect();
            Tensor::from_host(device, shape, &values)
        }
        DType::F16 => {
            let values: Vec<_> = values.into_iter().map(half::f16::from_f32).collect();
            Tensor::from_host(device, shape, &values)
        }
        _ => Tensor::from_host(device, shape, &values),
    }
    .expect("tensor")
}

/// Random activations without gaps.
pub fn tensor(shape: ActivationShape, seed: u64) -> Tensor {
    Tensor::from_host(&Device::Cpu, shape, &random(shape.num_elements(), seed)).expect("tensor")
}

/// Values on the device.
pub fn slice<T: Element>(values: &[T]) -> Slice {
    Buffer::from_host(&Device::Cpu, values).expect("buffer")
}
