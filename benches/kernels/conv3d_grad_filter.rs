//! The filter gradient on kernels, as a training step asks for it: the input normalised on load, the batch norm's gradient
//! formed on load. Layers of tests/cases/conv3d.toml with eight times the positions; stems read their clips as they are.
//! Bytes count each tensor once. The native form is in `conv3d`.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::conv3d::{self, Conv3d, Direction, GradFilterSources, GradTable, Prologue};

use crate::cases;
use crate::conv3d::op_of;
use crate::device::{device, is_smoke, time};

fn layer(row: &toml::Table) -> Conv3d {
    let mut op = op_of(row);
    if !is_smoke() {
        op.input.n *= 8;
    }
    if cases::flag(row, "is_first") {
        op.input.c = op.input.c.next_multiple_of(4);
    }
    op
}

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let device = device();
    if *device == Device::Cpu {
        return;
    }
    let stream = device.stream().expect("stream");
    for row in cases::of("conv3d") {
        let op = layer(&row);
        let tensor = |shape| Tensor::zeroed(device, DType::Bf16, shape).expect("tensor");
        let floats = |n: usize| Buffer::from_host(device, &cases::random(n, 7)).expect("table");
        let (x, g, y) = (tensor(op.input), tensor(op.output()), tensor(op.output()));
        fill(&x, 1);
        fill(&g, 2);
        fill(&y, 3);
        let (scale_shift, table) = (floats(2 * op.input.c), floats(3 * op.c_out));
        let from = GradFilterSources {
            input: &x,
            prologue: (!cases::flag(&row, "is_first")).then_some(Prologue {
                scale_shift: &scale_shift,
                splits: 1,
                join: None,
            }),
            grad_output: &g,
            grad_table: Some(GradTable { table: &table, y: &y, splits: 1, store_dy: None }),
            pool: None,
        };
        let dw = floats(op.filter_len());
        let bytes = conv3d::workspace_bytes(&stream, &op, Direction::GradFilter);
        let workspace = Buffer::zeroed(device, bytes).and_then(|b| b.slice::<u8>(0, bytes)).expect("workspace");
        let moved = 2 * (op.input.num_elements() + 2 * op.output().num_elements()) + 4 * op.filter_len();
        let mut group = c.benchmark_group("conv3d_grad_filter");
        group.throughput(Throughput::ElementsAndBytes { elements: 2 * op.macs(), bytes: moved as u64 });
        group.bench_function(format!("{}/mma_bf16", cases::text(&row, "name")), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    conv3d::grad_filter_fused(&stream, &op, &from, &dw, None, &workspace).expect("grad_filter");
                })
            });
        });
        group.finish();
    }
}

fn fill(tensor: &Tensor, seed: u64) {
    let values: Vec<half::bf16> =
        cases::random(tensor.memory().len(), seed).into_iter().map(half::bf16::from_f32).collect();
    tensor.memory().write(&values).expect("write");
}
