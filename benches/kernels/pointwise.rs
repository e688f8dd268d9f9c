//! Element-wise ops, at the size of SlowFast-8x8-R50's second stage.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::pointwise;
use vcycle::shape::ActivationShape;

use crate::cases::tensor;

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    let shape = ActivationShape::new(1, 8, 28, 28, 256);
    let (x, y) = (tensor(shape, 1), tensor(shape, 2));
    let bytes = |arrays: usize| Throughput::Bytes((4 * arrays * shape.num_elements()) as u64);
    let mut group = c.benchmark_group("pointwise");
    group.throughput(bytes(2));
    group.bench_function("copy/slow_s2/cpu", |b| b.iter(|| pointwise::copy(&stream, &x, &y).expect("copy")));
    group.throughput(bytes(3));
    group.bench_function("add/slow_s2/cpu", |b| b.iter(|| pointwise::add(&stream, &x, &y).expect("add")));
    group.throughput(bytes(1));
    group.bench_function("fill/slow_s2/cpu", |b| b.iter(|| pointwise::fill(&stream, &y, 0.0).expect("fill")));
    group.finish();
}
