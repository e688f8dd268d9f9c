//! Mixup of the inputs of SlowFast-8x8-R50's fast pathway, batch 16.

use criterion::{Criterion, Throughput};
use vcycle::device::{DType, Device};
use vcycle::ops::mixup::{self, Mixup};
use vcycle::shape::ActivationShape;

use crate::cases::random_tensor;
use crate::device::{device, time};

pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, channels, executor) = match device {
        Device::Cpu => (DType::F32, 3, "cpu"),
        _ => (DType::Bf16, 4, "vector4_bf16"),
    };
    let shape = ActivationShape::new(16, 32, 112, 112, channels);
    let clips = random_tensor(device, dtype, shape, 1);
    let op = Mixup { keep: 0.5, rows: 0..112, columns: 0..112 };
    let mut group = c.benchmark_group("mixup");
    group.throughput(Throughput::Bytes((2 * dtype.size_bytes() * shape.num_elements()) as u64));
    group.bench_function(format!("input_n16/{executor}"), |b| {
        b.iter_custom(|rounds| time(&stream, rounds, || mixup::blend(&stream, &op, &clips).expect("blend")));
    });
    group.finish();
}
