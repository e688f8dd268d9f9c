//! A step over as many parameters as SlowFast-8x8-R50 has.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::sgd::{self, ParamRange, Sgd};

use crate::cases::{random, slice};

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    let len = 34_566_488;
    let [params, grads, momentum] = [1, 2, 3].map(|seed| slice(&random(len, seed)));
    let op = Sgd { lr: 1e-3, momentum: 0.9, dampening: 0.0, nesterov: true, first_step: false };
    let ranges = [ParamRange { start: 0, len, weight_decay: 1e-4 }];
    let mut group = c.benchmark_group("sgd");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(5 * 4 * len as u64));
    group.bench_function("slowfast_8x8_r50/cpu", |b| {
        b.iter(|| sgd::step(&stream, &op, &ranges, &params, &grads, &momentum).expect("step"));
    });
    group.finish();
}
