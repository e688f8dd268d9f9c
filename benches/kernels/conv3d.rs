//! The three convolutions of a training step, at layers of SlowFast-8x8-R50. GFLOP/s count two per multiply-add, padding
//! included; bytes count each operand once.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::device::cpu::Isa;
use vcycle::ops::conv3d::{self, Conv3d, Direction};

use crate::cases::{self, slice, tensor};

fn op_of(row: &toml::Table) -> Conv3d {
    let or = |key: &str, default: usize| match row.contains_key(key) {
        true => cases::sizes(row, key),
        false => [default; 3],
    };
    Conv3d {
        input: cases::shape(row, "input"),
        c_out: row["c_out"].as_integer().expect("c_out") as usize,
        filter: cases::sizes(row, "filter"),
        stride: or("stride", 1),
        padding: or("padding", 0),
        dilation: or("dilation", 1),
        groups: 1,
    }
}

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    let isa = Isa::chosen().expect("isa").name();
    for row in cases::of("conv3d") {
        let op = op_of(&row);
        let [x, dx] = [1, 2].map(|seed| tensor(op.input, seed));
        let [y, dy] = [3, 4].map(|seed| tensor(op.output(), seed));
        let [w, dw] = [5, 6].map(|seed| slice(&cases::random(op.filter_len(), seed)));
        let bytes = 4 * (op.input.num_elements() + op.output().num_elements() + op.filter_len()) as u64;
        for direction in [Direction::Forward, Direction::GradInput, Direction::GradFilter] {
            if direction == Direction::GradInput && cases::flag(&row, "is_first") {
                continue;
            }
            let workspace = slice(&vec![0f32; conv3d::workspace_bytes(&stream, &op, direction) / 4]);
            let name = ["conv3d_forward", "conv3d_grad_input", "conv3d_grad_filter"][direction as usize];
            let mut group = c.benchmark_group(name);
            group.throughput(Throughput::ElementsAndBytes { elements: 2 * op.macs(), bytes });
            group.bench_function(format!("{}/{isa}", cases::text(&row, "name")), |b| {
                b.iter(|| {
                    match direction {
                        Direction::Forward => conv3d::forward(&stream, &op, &x, &w, None, &y, &workspace),
                        Direction::GradInput => conv3d::grad_input(&stream, &op, &dy, &w, &dx, false, &workspace),
                        Direction::GradFilter => conv3d::grad_filter(&stream, &op, &x, &dy, &dw, None, &workspace),
                    }
                    .expect("conv3d")
                });
            });
            group.finish();
        }
    }
}
