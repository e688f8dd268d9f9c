//! Element-wise ops, at the size of SlowFast-8x8-R50's second stage.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType};
use vcycle::ops::pointwise;
use vcycle::shape::ActivationShape;

use crate::device::{activations, clips, device, f32s, label, time};

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let stream = device().stream().expect("stream");
    let shape = ActivationShape::new(clips(1), 8, 28, 28, 256);
    let (x, y) = (activations(device(), shape, 1), activations(device(), shape, 2));
    let bytes = x.memory().len_bytes();
    let master = f32s(device(), &vec![0.5; shape.num_elements()]);
    let short = Buffer::zeroed(device(), 2 * master.len()).and_then(|b| b.slice_of(DType::Bf16, 0, master.len()));
    let short = short.expect("16-bit copy");
    let mut run = |name: &str, bytes: usize, call: &dyn Fn()| {
        let mut group = c.benchmark_group("pointwise");
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{name}/slow_s2/{}_n{}", label(), shape.n), |b| {
            b.iter_custom(|rounds| time(&stream, rounds, call));
        });
        group.finish();
    };
    run("copy", 2 * bytes, &|| pointwise::copy(&stream, &x, &y).expect("copy"));
    run("add", 3 * bytes, &|| pointwise::add(&stream, &x, &y).expect("add"));
    run("fill", bytes, &|| pointwise::fill(&stream, &y, 0.0).expect("fill"));
    let cast_bytes = master.len_bytes() + short.len_bytes();
    run("cast_f32_to_bf16", cast_bytes, &|| pointwise::cast(&stream, &master, &short, None).expect("cast"));
}
