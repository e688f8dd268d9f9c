//! Max pooling with blur: the cases of tests/cases/maxblur.toml with `bench = true`.

use criterion::{Criterion, Throughput};
use vcycle::device::{DType, Device, Tensor};
use vcycle::ops::maxblur;

use crate::cases::{of, random_tensor, shape, text};
use crate::device::{device, is_smoke, time};

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, executor) = match device {
        Device::Cpu => (DType::F32, "cpu_f32"),
        _ => (DType::Bf16, "cuda_bf16"),
    };
    for case in of("maxblur") {
        let mut shape = shape(&case, "input");
        if is_smoke() || *device == Device::Cpu {
            shape.n = 1;
        }
        let input = random_tensor(device, dtype, shape, 1);
        let output = Tensor::zeroed(device, dtype, maxblur::output_shape(shape)).expect("tensor");
        let mut group = c.benchmark_group("maxblur_forward");
        group.throughput(Throughput::Bytes((input.memory().len_bytes() + output.memory().len_bytes()) as u64));
        group.bench_function(format!("{}/{executor}_n{}", text(&case, "name"), shape.n), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || maxblur::forward(&stream, &input, &output).expect("forward"))
            });
        });
        group.finish();
    }
}
