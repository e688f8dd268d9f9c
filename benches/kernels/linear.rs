//! Fully connected layers, forward and backward. Two FLOPs per multiply-add; bytes count each operand once.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::linear;
use vcycle::shape::ActivationShape;

use crate::cases::{self, slice, tensor};

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    for row in cases::of("linear") {
        let [positions, c_in, c_out] =
            ["positions", "c_in", "c_out"].map(|key| row[key].as_integer().expect("a size") as usize);
        let shape = |c| ActivationShape::new(positions, 1, 1, 1, c);
        let [x, dx] = [1, 2].map(|seed| tensor(shape(c_in), seed));
        let [y, dy] = [3, 4].map(|seed| tensor(shape(c_out), seed));
        let [w, dw] = [5, 6].map(|seed| slice(&cases::random(c_out * c_in, seed)));
        let [b, db] = [7, 8].map(|seed| slice(&cases::random(c_out, seed)));
        let throughput = |flops: usize, arrays: usize| Throughput::ElementsAndBytes {
            elements: (flops * positions * c_in * c_out) as u64,
            bytes: 4 * (arrays * (positions * (c_in + c_out) + c_out * c_in)) as u64,
        };
        let name = cases::text(&row, "name");

        let mut group = c.benchmark_group("linear_forward");
        group.throughput(throughput(2, 1));
        group.bench_function(format!("{name}/cpu"), |bench| {
            bench.iter(|| linear::forward(&stream, &x, &w, Some(&b), &y).expect("forward"));
        });
        group.finish();

        let mut group = c.benchmark_group("linear_backward");
        group.throughput(throughput(4, 2));
        group.bench_function(format!("{name}/cpu"), |bench| {
            bench.iter(|| linear::backward(&stream, &x, &w, &dy, &dx, &dw, Some(&db)).expect("backward"));
        });
        group.finish();
    }
}
