//! Both gradients of a convolution behind a batch norm and a ReLU: by one kernel (`at_once`) and one after the other (`in_turn`). Pointwise
//! layers of tests/cases/conv3d.toml that have such a kernel, with eight times the positions. Bytes count each tensor once, for both ways.

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::conv3d::{self, Direction, GradEpilogue, GradFilterSources, GradNorm, GradTable, Mask, Prologue};

use crate::cases;
use crate::conv3d::op_of;
use crate::device::{device, is_smoke, time};

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let device = device();
    if *device == Device::Cpu {
        return;
    }
    let stream = device.stream().expect("stream");
    for row in cases::of("conv3d") {
        let mut op = op_of(&row);
        op.input.n *= if is_smoke() { 1 } else { 8 };
        if !conv3d::backward_fits(&stream, &op, 1) {
            continue;
        }
        let tensor = |shape| Tensor::zeroed(device, DType::Bf16, shape).expect("tensor");
        let floats = |n: usize| Buffer::from_host(device, &cases::random(n, 7)).expect("table");
        let (x, g, y, dx) = (tensor(op.input), tensor(op.output()), tensor(op.output()), tensor(op.input));
        let (c_in, c_out) = (op.input.c, op.c_out);
        let (scale_shift, table, stats, gamma) = (floats(2 * c_in), floats(3 * c_out), floats(3 * c_in), floats(c_in));
        let (grad_table, grad_gamma, grad_beta, dw) =
            (floats(3 * c_in), floats(c_in), floats(c_in), floats(op.filter_len()));
        let w = Buffer::from_host(device, &vec![half::bf16::ONE; op.filter_len()]).expect("filter");
        let from = GradFilterSources {
            input: &x,
            prologue: Some(Prologue { scale_shift: &scale_shift, splits: 1, join: None }),
            grad_output: &g,
            grad_table: Some(GradTable { table: &table, y: &y, splits: 1, store_dy: None }),
            pool: None,
        };
        let norm = GradNorm {
            y: &x,
            stats: &stats,
            gamma: &gamma,
            grad_table: &grad_table,
            grad_gamma: &grad_gamma,
            grad_beta: &grad_beta,
        };
        let mask = Mask::Recomputed { scale_shift: &scale_shift, y: &x };
        let epilogue = GradEpilogue { add: None, mask, splits: 1, norms: &[norm] };
        let of = |direction| conv3d::workspace_bytes_fused(&stream, &op, direction, 1);
        let bytes = conv3d::backward_workspace_bytes(&stream, &op, 1).max(of(Direction::GradFilter));
        let bytes = bytes.max(of(Direction::GradInput));
        let workspace = Buffer::zeroed(device, bytes).and_then(|b| b.slice::<u8>(0, bytes)).expect("workspace");
        let moved = 4 * (op.input.num_elements() + op.output().num_elements()) + 6 * op.filter_len();
        let mut group = c.benchmark_group("conv3d_backward");
        group.throughput(Throughput::ElementsAndBytes { elements: 4 * op.macs(), bytes: moved as u64 });
        let name = cases::text(&row, "name");
        group.bench_function(format!("{name}/at_once_bf16"), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    conv3d::backward_fused(&stream, &op, &from, &w, &epilogue, &dx, &dw, &workspace).expect("backward");
                })
            });
        });
        group.bench_function(format!("{name}/in_turn_bf16"), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || {
                    let table = from.grad_table.as_ref();
                    conv3d::grad_filter_fused(&stream, &op, &from, &dw, None, &workspace).expect("grad_filter");
                    conv3d::grad_input_fused(&stream, &op, &g, table, &w, &epilogue, &dx, &workspace)
                        .expect("grad_input");
                })
            });
        });
        group.finish();
    }
}
