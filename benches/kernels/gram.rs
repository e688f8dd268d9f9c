//! Gram batch norm: the cases of tests/cases/gram.toml with `bench = true`. Bytes count x and what is written once.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, Device};
use vcycle::ops::batch_norm::BatchNorm;
use vcycle::ops::gram::{self, GradientResults, GradientSources, Gram, Tables};
use vcycle::shape::ActivationShape;

use crate::cases::{self, random_tensor};
use crate::device::{clips, device, dtype, label, time};

pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    for row in cases::of("gram") {
        let input = cases::shape(&row, "input");
        let (n, c_in) = (if *device == Device::Cpu { 1 } else { clips(input.n) }, input.c);
        let c_out = row["c_out"].as_integer().expect("c_out") as usize;
        let shape = ActivationShape { n, c: c_out, ..input };
        let op = Gram { norm: BatchNorm { shape, splits: 1, eps: 1e-5, relu: true, part: None }, c_in };
        let x = random_tensor(device, dtype(), op.input(), 1);
        let filter = random_tensor(device, dtype(), ActivationShape::new(shape.c, 1, 1, 1, c_in), 2);
        let floats = |len, seed| Buffer::from_host(device, &cases::random(len, seed)).expect("slice");
        let (moments, gamma, beta) = (floats(op.moments_len(), 3), floats(shape.c, 4), floats(shape.c, 5));
        let (stats, scale_shift) = (floats(op.norm.stats_len(), 6), floats(op.norm.scale_shift_len(), 7));
        let tables = Tables { gamma: &gamma, beta: &beta, stats: &stats, scale_shift: Some(&scale_shift), skip: None };
        let scratch = Buffer::zeroed(device, gram::workspace_bytes(&stream, &op)).expect("scratch");
        let scratch = scratch.slice::<f32>(0, scratch.len_bytes() / 4).expect("scratch");
        let name = cases::text(&row, "name");

        let mut group = c.benchmark_group("gram_moments");
        group.throughput(Throughput::Bytes((x.memory().len_bytes() + moments.len_bytes()) as u64));
        group.bench_function(format!("{name}/{}", label()), |bench| {
            bench.iter_custom(|rounds| {
                time(&stream, rounds, || gram::moments(&stream, &op, &x, None, &moments, &scratch).expect("moments"))
            });
        });
        group.finish();

        let mut group = c.benchmark_group("gram_statistics");
        group.throughput(Throughput::Elements(2 * (shape.c * c_in * c_in) as u64));
        group.bench_function(format!("{name}/{}", label()), |bench| {
            bench.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    gram::statistics(&stream, &op, &moments, filter.memory(), &tables, &scratch).expect("statistics")
                })
            });
        });
        group.finish();

        let (products, grad_sums) = (floats(shape.c * c_in, 8), floats(shape.c, 9));
        let back_filter = random_tensor(device, dtype(), ActivationShape::new(shape.c + c_in, 1, 1, 1, c_in), 10);
        let (grad_table, back_shift) = (floats(3 * shape.c, 11), floats(c_in, 12));
        let (grad_filter, grad_gamma, grad_beta) =
            (floats(shape.c * c_in, 13), floats(shape.c, 14), floats(shape.c, 15));
        let filter = filter.memory();
        let from = GradientSources {
            products: &products,
            grad_sums: &grad_sums,
            moments: &moments,
            stats: &stats,
            gamma: &gamma,
            filter,
        };
        let to = GradientResults {
            grad_table: &grad_table,
            back_filter: back_filter.memory(),
            back_shift: &back_shift,
            grad_filter: &grad_filter,
            grad_gamma: &grad_gamma,
            grad_beta: &grad_beta,
        };
        let mut group = c.benchmark_group("gram_gradient");
        group.throughput(Throughput::Elements(4 * (shape.c * c_in * c_in) as u64));
        group.bench_function(format!("{name}/{}", label()), |bench| {
            bench.iter_custom(|rounds| {
                time(&stream, rounds, || gram::gradient(&stream, &op, &from, &to).expect("gradient"))
            });
        });
        group.finish();
    }
}
