//! Fully connected layers, forward and backward. Two FLOPs per multiply-add; bytes count each operand once. With kernels the logits
//! are f32, all other activations and the weight bf16.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device};
use vcycle::ops::linear;
use vcycle::shape::ActivationShape;

use crate::cases::{self, random_tensor};
use crate::device::{device, time};

pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, executor) = match device {
        Device::Cpu => (DType::F32, "cpu"),
        _ => (DType::Bf16, "mma_bf16"),
    };
    for row in cases::of("linear") {
        let [positions, c_in, c_out] =
            ["positions", "c_in", "c_out"].map(|key| row[key].as_integer().expect("a size") as usize);
        let tensor = |dtype, c, seed| random_tensor(device, dtype, ActivationShape::new(positions, 1, 1, 1, c), seed);
        let [x, dx] = [1, 2].map(|seed| tensor(dtype, c_in, seed));
        let (y, dy) = (tensor(DType::F32, c_out, 3), tensor(dtype, c_out, 4));
        let floats = |len, seed| Buffer::from_host(device, &cases::random(len, seed)).expect("slice");
        let weight = random_tensor(device, dtype, ActivationShape::new(c_out, 1, 1, 1, c_in), 5);
        let (w, dw, b, db) = (weight.memory(), floats(c_out * c_in, 6), floats(c_out, 7), floats(c_out, 8));
        let scratch = Buffer::zeroed(device, linear::workspace_bytes(device, positions, c_in, c_out)).expect("scratch");
        let scratch = scratch.slice::<f32>(0, scratch.len_bytes() / 4).expect("scratch");
        let of_x = positions * c_in * dtype.size_bytes();
        let throughput = |flops: usize, bytes: usize| Throughput::ElementsAndBytes {
            elements: (flops * positions * c_in * c_out) as u64,
            bytes: bytes as u64,
        };
        let name = cases::text(&row, "name");

        let mut group = c.benchmark_group("linear_forward");
        group.throughput(throughput(2, of_x + w.len_bytes() + y.memory().len_bytes()));
        group.bench_function(format!("{name}/{executor}"), |bench| {
            bench.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    linear::forward_with(&stream, None, &x, w, Some(&b), &y, &scratch).expect("forward")
                })
            });
        });
        group.finish();

        let mut group = c.benchmark_group("linear_backward");
        group.throughput(throughput(4, 2 * of_x + w.len_bytes() + dw.len_bytes() + dy.memory().len_bytes()));
        group.bench_function(format!("{name}/{executor}"), |bench| {
            bench.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    linear::backward_with(&stream, None, &x, w, &dy, &dx, &dw, Some(&db), &scratch).expect("backward")
                })
            });
        });
        group.finish();
    }
}
