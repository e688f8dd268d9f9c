//! Loss and gradient of 64 clips and the 400 classes of Kinetics, and of the 157 classes of Charades, several of them a clip.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::softmax_loss::{self, Extras};
use vcycle::shape::ActivationShape;

use crate::cases::random;
use crate::device::{device, time};

pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    let (dtype, executor) = match device {
        Device::Cpu => (DType::F32, "cpu"),
        _ => (DType::Bf16, "row_bf16"),
    };
    let labels: Vec<u32> = (0..64).map(|i| i * 37 % 400).collect();
    let labels = Buffer::from_host(device, &labels).expect("labels");
    let loss = Buffer::from_host(device, &[0f32; 64]).expect("loss");
    let mut group = c.benchmark_group("softmax_loss");
    for (name, classes, is_binary) in [("k400_n64", 400, false), ("charades_n64", 157, true)] {
        let shape = ActivationShape::new(64, 1, 1, 1, classes);
        let logits = Tensor::from_host(device, shape, &random(shape.num_elements(), 1)).expect("logits");
        let targets = Tensor::zeroed(device, DType::F32, shape).expect("targets");
        let grad = Tensor::zeroed(device, dtype, shape).expect("gradient");
        let bytes = 4 + dtype.size_bytes() + if is_binary { 4 } else { 0 };
        group.throughput(Throughput::Bytes((bytes * shape.num_elements()) as u64));
        group.bench_function(format!("{name}/{executor}"), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    match is_binary {
                        false => softmax_loss::cross_entropy(&stream, &logits, &labels, 1.0 / 64.0, &loss, &grad),
                        true => softmax_loss::binary_cross_entropy(
                            &stream,
                            &logits,
                            &targets,
                            1.0 / 64.0,
                            &loss,
                            &grad,
                            &Extras::default(),
                        ),
                    }
                    .expect("loss")
                })
            });
        });
    }
    group.finish();
}
