//! Dropout before the classifier of SlowFast-8x8-R50, batch 64.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::dropout::{self, Dropout};
use vcycle::shape::ActivationShape;

use crate::cases::tensor;

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    let shape = ActivationShape::new(64, 1, 1, 1, 2304);
    let (x, y) = (tensor(shape, 1), tensor(shape, 2));
    let op = Dropout { rate: 0.5, seed: 1, step: 0, first_clip: 0 };
    let mut group = c.benchmark_group("dropout");
    group.throughput(Throughput::Bytes(8 * shape.num_elements() as u64));
    group.bench_function("head_n64/cpu", |b| b.iter(|| dropout::apply(&stream, &op, &x, &y).expect("apply")));
    group.finish();
}
