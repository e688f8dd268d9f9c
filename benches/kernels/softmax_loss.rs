//! Loss and gradient of 64 clips and the 400 classes of Kinetics.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::softmax_loss;
use vcycle::shape::ActivationShape;

use crate::cases::{slice, tensor};

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    let shape = ActivationShape::new(64, 1, 1, 1, 400);
    let (logits, grad) = (tensor(shape, 1), tensor(shape, 2));
    let labels: Vec<u32> = (0..64).map(|i| i * 37 % 400).collect();
    let (labels, loss) = (slice(&labels), slice(&[0f32; 64]));
    let mut group = c.benchmark_group("softmax_loss");
    group.throughput(Throughput::Bytes(8 * shape.num_elements() as u64));
    group.bench_function("k400_n64/cpu", |b| {
        b.iter(|| {
            softmax_loss::cross_entropy(&stream, &logits, &labels, 1.0 / 64.0, &loss, &grad).expect("cross_entropy")
        });
    });
    group.finish();
}
