//! Forward (statistics and output) and backward of training, at layers of SlowFast-8x8-R50.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::batch_norm::{self, BatchNorm};

use crate::cases::{self, slice, tensor};

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    for row in cases::of("batch_norm") {
        let shape = cases::shape(&row, "input");
        let op = BatchNorm { shape, splits: 1, eps: 1e-5, relu: cases::flag(&row, "relu") };
        let (name, has_residual) = (cases::text(&row, "name"), cases::flag(&row, "residual"));
        let [x, y, residual, dy, dx, dr] = [1, 2, 3, 4, 5, 6].map(|seed| tensor(shape, seed));
        let (gamma, beta) = (slice(&vec![1f32; shape.c]), slice(&vec![0f32; shape.c]));
        let (dgamma, dbeta) = (slice(&vec![0f32; shape.c]), slice(&vec![0f32; shape.c]));
        let stats = slice(&vec![0f32; op.stats_len()]);
        let workspace = slice(&vec![0f32; batch_norm::workspace_bytes(&stream, &op) / 4]);
        let bytes = |arrays: usize| Throughput::Bytes((arrays * 4 * shape.num_elements()) as u64);
        let joined = has_residual.then_some(&residual);

        let mut group = c.benchmark_group("batch_norm_forward");
        group.throughput(bytes(2 + usize::from(has_residual)));
        group.bench_function(format!("{name}/cpu"), |b| {
            b.iter(|| {
                batch_norm::forward_train(&stream, &op, &x, &gamma, &beta, joined, &y, &stats, &workspace)
                    .expect("forward_train")
            });
        });
        group.finish();

        let dr = has_residual.then_some((&dr, false));
        let mut group = c.benchmark_group("batch_norm_backward");
        group.throughput(bytes(4 + usize::from(has_residual)));
        group.bench_function(format!("{name}/cpu"), |b| {
            b.iter(|| {
                batch_norm::backward(&stream, &op, &x, &y, &dy, &gamma, &stats, &dx, dr, &dgamma, &dbeta, &workspace)
                    .expect("backward")
            });
        });
        group.finish();
    }
}
