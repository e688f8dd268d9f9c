//! Attention of the non-local blocks of I3D-NLN-8x8-R50, softmax. FLOPs of the products that must be formed at least once: two
//! forward, five backward; bytes count each tensor once.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device};
use vcycle::ops::attention::{self, Heads, Instantiation};
use vcycle::shape::ActivationShape;

use crate::cases::random_tensor;
use crate::device::{cases, device, is_smoke, time};

#[derive(serde::Deserialize)]
struct Cases {
    layer: Vec<Layer>,
}

#[derive(serde::Deserialize)]
struct Layer {
    name: String,
    clips: usize,
    queries: [usize; 3],
    keys: [usize; 3],
    depth: usize,
}

pub fn bench(c: &mut Criterion) {
    let all: Cases = toml::from_str(&cases("attention")).expect("tests/cases/attention.toml");
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, executor) = match device {
        Device::Cpu => (DType::F32, "cpu"),
        _ => (DType::Bf16, "mma_bf16"),
    };
    for layer in all.layer {
        let shrink = if is_smoke() { 7 } else { 1 };
        let n = if is_smoke() || *device == Device::Cpu { 1 } else { layer.clips };
        let shape =
            |[t, h, w]: [usize; 3]| ActivationShape::new(n, t, h.div_ceil(shrink), w.div_ceil(shrink), layer.depth);
        let (of_q, of_k) = (shape(layer.queries), shape(layer.keys));
        let tensor = |shape, seed| random_tensor(device, dtype, shape, seed);
        let [q, y, dy, dq] = [1, 2, 3, 4].map(|seed| tensor(of_q, seed));
        let [k, v, dk, dv] = [5, 6, 7, 8].map(|seed| tensor(of_k, seed));
        let floats = |len| Buffer::from_host(device, &vec![0f32; len]).expect("rows");
        let (sums, scratch) = (floats(of_q.num_positions()), floats(attention::workspace_bytes(q.shape()) / 4));
        let inputs = Heads { query: &q, key: &k, value: &v };
        let grads = Heads { query: &dq, key: &dk, value: &dv };
        let kind = Instantiation::Softmax;
        attention::forward(&stream, kind, &inputs, &y, &sums).expect("forward");
        let (rows_q, rows_k) = (of_q.num_positions(), of_k.num_positions());
        let product = 2 * rows_q * (rows_k / n) * layer.depth;
        let throughput = |products: usize, [queries, keys]: [usize; 2]| Throughput::ElementsAndBytes {
            elements: (products * product) as u64,
            bytes: (dtype.size_bytes() * layer.depth * (queries * rows_q + keys * rows_k)) as u64,
        };
        let mut group = c.benchmark_group("attention_forward");
        group.sample_size(10).throughput(throughput(2, [2, 2]));
        group.bench_function(format!("{}/{executor}_n{n}", layer.name), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || attention::forward(&stream, kind, &inputs, &y, &sums).expect("forward"))
            });
        });
        group.finish();
        let mut group = c.benchmark_group("attention_backward");
        group.sample_size(10).throughput(throughput(5, [4, 4]));
        group.bench_function(format!("{}/{executor}_n{n}", layer.name), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    attention::backward(&stream, kind, &inputs, &y, &sums, &dy, &grads, &scratch).expect("backward")
                })
            });
        });
        group.finish();
    }
}
