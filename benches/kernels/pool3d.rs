//! The pools of SlowFast-8x8-R50, forward and gradient; where kernels run also with the stem's batch norm and ReLU on load, and
//! with its sums in the backward pass.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::batch_norm::GradTables;
use vcycle::ops::pool3d::{self, NormBefore, Pool3d, PoolKind, Prologue};
use vcycle::shape::ActivationShape;

use crate::cases;
use crate::device::{activations, clips, device, f32s, label, time, workspace};

/// Winning positions: bytes where kernels run and a window has few enough positions.
fn indices(op: &Pool3d) -> Slice {
    let len = op.output().num_elements();
    let short = *device() != Device::Cpu && op.kernel.iter().product::<usize>() <= 256;
    let dtype = if short { DType::U8 } else { DType::U32 };
    Buffer::zeroed(device(), len * dtype.size_bytes()).and_then(|b| b.slice_of(dtype, 0, len)).expect("indices")
}

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let stream = device().stream().expect("stream");
    for row in cases::of("pool3d") {
        let kind = if cases::text(&row, "kind") == "max" { PoolKind::Max } else { PoolKind::Average };
        let or = |key: &str, default| if row.contains_key(key) { cases::sizes(&row, key) } else { default };
        let input = cases::shape(&row, "input");
        let op = Pool3d {
            kind,
            input: ActivationShape { n: clips(input.n), ..input },
            kernel: cases::sizes(&row, "kernel"),
            stride: or("stride", [1; 3]),
            padding: or("padding", [0; 3]),
        };
        let [x, dx] = [1, 3].map(|seed| activations(device(), op.input, seed));
        let y = activations(device(), op.output(), 2);
        let indices = indices(&op);
        let of_indices = if kind == PoolKind::Max { indices.len_bytes() } else { 0 };
        let bytes = (x.memory().len_bytes() + y.memory().len_bytes() + of_indices) as u64;
        let name = format!("{}/{}_n{}", cases::text(&row, "name"), label(), op.input.n);
        let mut run = |group: &str, call: &dyn Fn()| {
            let mut group = c.benchmark_group(group);
            group.throughput(Throughput::Bytes(bytes));
            group.bench_function(&name, |b| b.iter_custom(|rounds| time(&stream, rounds, call)));
            group.finish();
        };
        run("pool3d_forward", &|| pool3d::forward(&stream, &op, &x, &y, Some(&indices)).expect("forward"));
        run("pool3d_grad_input", &|| {
            pool3d::grad_input(&stream, &op, &y, Some(&indices), &dx, false).expect("grad_input");
        });
        if kind == PoolKind::Average || *device() == Device::Cpu {
            continue;
        }
        let (on, channels) = (device(), op.input.c);
        let [gamma, grad_gamma, grad_beta] = [1.0, 0.0, 0.0].map(|v| f32s(on, &vec![v; channels]));
        let scale_shift = f32s(on, &[vec![1.0; channels], vec![0.1; channels]].concat());
        let [stats, grad_table] = [0.5, 0.0].map(|v| f32s(on, &vec![v; 3 * channels]));
        let prologue = Prologue { scale_shift: &scale_shift, splits: 1, part: None };
        run("pool3d_forward_normalised", &|| {
            pool3d::forward_normalised(&stream, &op, &prologue, &x, &y, Some(&indices)).expect("forward_normalised");
        });
        let tables = GradTables {
            gamma: &gamma,
            stats: &stats,
            grad_table: &grad_table,
            grad_gamma: &grad_gamma,
            grad_beta: &grad_beta,
        };
        let norm = NormBefore { splits: 1, part: None, y: &x, scale_shift: &scale_shift, tables };
        let scratch = workspace(on, pool3d::workspace_bytes(&op, 1, None));
        run("pool3d_grad_norm", &|| {
            pool3d::grad_norm(&stream, &op, &y, &indices, &norm, None, &scratch).expect("grad_norm");
        });
    }
}
