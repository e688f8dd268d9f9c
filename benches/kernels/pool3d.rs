//! The pools of SlowFast-8x8-R50, forward and gradient.

use criterion::{Criterion, Throughput};
use vcycle::device::Device;
use vcycle::ops::pool3d::{self, Pool3d, PoolKind};

use crate::cases::{self, slice, tensor};

pub fn bench(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    for row in cases::of("pool3d") {
        let name = cases::text(&row, "name");
        let kind = if cases::text(&row, "kind") == "max" { PoolKind::Max } else { PoolKind::Average };
        let or = |key: &str, default| if row.contains_key(key) { cases::sizes(&row, key) } else { default };
        let op = Pool3d {
            kind,
            input: cases::shape(&row, "input"),
            kernel: cases::sizes(&row, "kernel"),
            stride: or("stride", [1; 3]),
            padding: or("padding", [0; 3]),
        };
        let (x, y, dx) = (tensor(op.input, 1), tensor(op.output(), 2), tensor(op.input, 3));
        let indices = slice(&vec![0u32; op.output().num_elements()]);
        let outputs = op.output().num_elements() * if kind == PoolKind::Max { 2 } else { 1 };
        let bytes = Throughput::Bytes(4 * (op.input.num_elements() + outputs) as u64);
        let mut group = c.benchmark_group("pool3d_forward");
        group.throughput(bytes.clone());
        group.bench_function(format!("{name}/cpu"), |b| {
            b.iter(|| pool3d::forward(&stream, &op, &x, &y, Some(&indices)).expect("forward"));
        });
        group.finish();
        let mut group = c.benchmark_group("pool3d_grad_input");
        group.throughput(bytes);
        group.bench_function(format!("{name}/cpu"), |b| {
            b.iter(|| pool3d::grad_input(&stream, &op, &y, Some(&indices), &dx, false).expect("grad_input"));
        });
        group.finish();
    }
}
