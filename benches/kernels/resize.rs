//! Resizes of activations, both directions: the cases of tests/cases/resize.toml with `bench = true`.

use criterion::{Criterion, Throughput};
use vcycle::device::{DType, Device, Tensor};
use vcycle::ops::resize;
use vcycle::shape::ActivationShape;

use crate::device::{cases, device, is_smoke, time};

#[derive(serde::Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    input: [usize; 5],
    output: [usize; 3],
    #[serde(default)]
    bench: bool,
}

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let all: Cases = toml::from_str(&cases("resize")).expect("tests/cases/resize.toml");
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, executor) = match device {
        Device::Cpu => (DType::F32, "cpu_f32"),
        _ => (DType::Bf16, "cuda_bf16"),
    };
    for case in all.case.iter().filter(|case| case.bench) {
        let ([n, t, h, w, c_in], [to, ho, wo]) = (case.input, case.output);
        let n = if is_smoke() || *device == Device::Cpu { 1 } else { n };
        let tensor = |t, h, w| Tensor::zeroed(device, dtype, ActivationShape::new(n, t, h, w, c_in)).expect("tensor");
        let (input, output) = (tensor(t, h, w), tensor(to, ho, wo));
        let bytes = Throughput::Bytes((input.memory().len_bytes() + output.memory().len_bytes()) as u64);
        for direction in ["resize_forward", "resize_grad_input"] {
            let mut group = c.benchmark_group(direction);
            group.throughput(bytes.clone());
            group.bench_function(format!("{}/{executor}_n{n}", case.name), |b| {
                b.iter_custom(|rounds| {
                    time(&stream, rounds, || match direction {
                        "resize_forward" => resize::forward(&stream, false, &input, &output).expect("forward"),
                        _ => resize::grad_input(&stream, false, &output, &input).expect("grad_input"),
                    })
                });
            });
            group.finish();
        }
    }
}
