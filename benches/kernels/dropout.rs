//! Dropout before the classifier of SlowFast-8x8-R50, batch 64.

use criterion::{Criterion, Throughput};
use vcycle::device::{DType, Device};
use vcycle::ops::dropout::{self, Dropout};
use vcycle::shape::ActivationShape;

use crate::cases::random_tensor;
use crate::device::{device, time};

pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, executor) = match device {
        Device::Cpu => (DType::F32, "cpu"),
        _ => (DType::Bf16, "vector8_bf16"),
    };
    let shape = ActivationShape::new(64, 1, 1, 1, 2304);
    let [x, y] = [1, 2].map(|seed| random_tensor(device, dtype, shape, seed));
    let op = Dropout { rate: 0.5, seed: 1, step: 0, first_clip: 0 };
    let mut group = c.benchmark_group("dropout");
    group.throughput(Throughput::Bytes((2 * dtype.size_bytes() * shape.num_elements()) as u64));
    group.bench_function(format!("head_n64/{executor}"), |b| {
        b.iter_custom(|rounds| time(&stream, rounds, || dropout::apply(&stream, &op, &x, &y).expect("apply")));
    });
    group.finish();
}
