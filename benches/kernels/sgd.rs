//! A step over as many parameters as SlowFast-8x8-R50 has: the update alone, and with its check and a 16-bit copy. The bytes are
//! those of the update (gradients, and parameters and momentum in and out, and the copy) and of the check (gradients).

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device};
use vcycle::ops::sgd::{self, Arrays, Guard, LossScaling, ParamRange, RangeTable, Sgd, State};

use crate::cases::random;
use crate::device::{device, is_smoke, time};

pub fn bench(c: &mut Criterion) {
    let device = device();
    let stream = device.stream().expect("stream");
    let len = if is_smoke() { 10_000 } else { 34_566_488 };
    let [params, grads, momentum] = [1, 2, 3].map(|seed| Buffer::from_host(device, &random(len, seed)).expect("array"));
    let copy = Buffer::zeroed(device, 2 * len).and_then(|b| b.slice_of(DType::Bf16, 0, len)).expect("copy");
    let op = Sgd { lr: 1e-3, momentum: 0.9, dampening: 0.0, nesterov: true, first_step: false };
    let table = RangeTable::new(device, &[ParamRange { start: 0, len, weight_decay: 1e-4 }], len).expect("table");
    let state = State::new(1.0).to_device(device).expect("state");
    let workspace = Buffer::zeroed(device, table.workspace_bytes()).expect("workspace");
    let workspace = workspace.slice::<f32>(0, workspace.len_bytes() / 4).expect("workspace");
    let guard = Guard {
        state: &state,
        workspace: &workspace,
        skip_flag: None,
        scaling: LossScaling::FIXED,
        max_grad_norm: f32::INFINITY,
        max_grad_value: f32::INFINITY,
    };
    let plain = Arrays::new(&params, &grads, &momentum);
    let executor = if *device == Device::Cpu { "cpu" } else { "vector4" };
    let mut group = c.benchmark_group("sgd");
    group.sample_size(20);
    for (name, bytes, arrays, guard) in [
        ("slowfast_8x8_r50", 5 * 4, plain, None),
        ("slowfast_8x8_r50_checked_copy", 6 * 4 + 2, Arrays { copy: Some(&copy), ..plain }, Some(&guard)),
    ] {
        group.throughput(Throughput::Bytes((bytes * len) as u64));
        group.bench_function(format!("{name}/{executor}"), |b| {
            b.iter_custom(|rounds| {
                time(&stream, rounds, || sgd::step_all(&stream, &op, &table, &arrays, guard).expect("step"))
            });
        });
    }
    group.finish();
}
