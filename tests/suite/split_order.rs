//! Ops whose gradients of parameters sum over clips: a batch whose batch-norm splits come in several calls has the bits of one call. The last
//! split is ragged. For convolutions see conv3d/split_order.rs.

use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::batch_norm::{self, BatchNorm, GradTables};
use vcycle::ops::linear;
use vcycle::ops::pool3d::{self, NormBefore, Pool3d, PoolKind};
use vcycle::shape::{ActivationShape, Part};

use crate::batch_norm::rig::workspace;
use crate::executors;
use crate::golden::fill;
use crate::stored::{garbage, read, read_tensor, slice, tensor};

const DENSE: [usize; 2] = [0; 2];

/// The executors, each with the types of activations that it takes.
fn devices() -> Vec<(Device, DType)> {
    let kernels = executors::with_kernels().into_iter().flat_map(|d| [DType::Bf16, DType::F16].map(|t| (d.clone(), t)));
    [(Device::Cpu, DType::F32)].into_iter().chain(kernels).collect()
}

type Results = Vec<Vec<f32>>;

/// Calls `run` with each part of a batch and its clips, for cuts into all splits, two parts, single splits; `run` returns the results for
/// the clips at hand. Fails unless results one after the other, and `sums` in the end, are the same.
fn check(what: &str, batch: Part, sums: &[Slice], run: impl Fn(Part, usize) -> Results) {
    let used = batch.splits_of(batch.batch_clips);
    let mut wants: Option<[Results; 2]> = None;
    for cut in [vec![used], vec![used - 1, 1], vec![1; used]] {
        let (mut part, mut results) = (batch, vec![]);
        for splits in &cut {
            let clips = (splits * part.clips_per_split()).min(part.batch_clips - part.first_clip);
            let of_part = run(part, clips);
            results.resize(of_part.len(), vec![]);
            results.iter_mut().zip(of_part).for_each(|(all, more): (&mut Vec<f32>, _)| all.extend(more));
            part.first_clip += clips;
        }
        let sums: Vec<Vec<f32>> = sums.iter().map(read).collect();
        assert!(sums.iter().chain(&results).flatten().all(|v| v.is_finite()), "{what}");
        let want = wants.get_or_insert_with(|| [results.clone(), sums.clone()]);
        assert!(results == want[0], "{what} in {cut:?} splits: what each clip gives");
        assert!(sums == want[1], "{what} in {cut:?} splits: gradients of parameters");
    }
}

/// The values of some clips.
fn of_clips(what: &str, part: Part, shape: ActivationShape) -> Vec<f32> {
    let of_clip = shape.num_elements() / shape.n;
    let all = fill::f32(what, part.batch_clips * of_clip, 1.0, 0.3);
    all[part.first_clip * of_clip..][..shape.n * of_clip].to_vec()
}

#[test]
fn batch_norm_has_the_bits_of_all_splits() {
    // Few rows; so many that tiles are joined in groups and blocks hold less than a split.
    for (device, dtype) in devices() {
        for [n, t, h, w, c, splits] in [[7, 2, 3, 5, 24, 3], [5, 4, 40, 41, 8, 2], [5, 1, 3, 3, 5, 5]] {
            let (stream, batch) = (device.stream().unwrap(), Part::whole(n, splits));
            let sums = [0, 1].map(|_| garbage(&device, DType::F32, c));
            let gamma = slice(&device, DType::F32, &fill::f32("gamma", c, 1.0, 1.5));
            check(&format!("{n} clips {t}x{h}x{w}x{c} {dtype:?} on {device}"), batch, &sums, |part, clips| {
                let shape = ActivationShape::new(clips, t, h, w, c);
                let op = BatchNorm { shape, splits: part.splits_of(clips), eps: 1e-5, relu: true, part: Some(part) };
                let of = |what: &str| tensor(&device, dtype, shape, &of_clips(what, part, shape), DENSE);
                let (x, y, dy, dx) = (of("x"), of("y"), of("dy"), of("dx"));
                let stats = garbage(&device, DType::F32, op.stats_len());
                let scratch = workspace(&device, batch_norm::workspace_bytes(&stream, &op));
                batch_norm::forward_train(&stream, &op, &x, &gamma, &gamma, None, &y, &stats, &scratch).unwrap();
                let [dgamma, dbeta] = &sums;
                batch_norm::backward(&stream, &op, &x, &y, &dy, &gamma, &stats, &dx, None, dgamma, dbeta, &scratch)
                    .unwrap();
                vec![read(&stats), read_tensor(&y, DENSE), read_tensor(&dx, DENSE)]
            });
        }
    }
}

#[test]
fn running_statistics_take_whole_batches() {
    let part = Part { batch_clips: 4, batch_splits: 2, first_clip: 2 };
    let shape = ActivationShape::new(2, 1, 2, 2, 3);
    let op = BatchNorm { shape, splits: 1, eps: 1e-5, relu: true, part: Some(part) };
    let f32s = |n: usize| Buffer::from_host(&Device::Cpu, &vec![1f32; n]).unwrap();
    let stream = Device::Cpu.stream().unwrap();
    let error = batch_norm::update_running(&stream, &op, &f32s(9), 0.1, &f32s(3), &f32s(3)).unwrap_err().to_string();
    assert!(error.contains("whole batches"), "{error}");
}

#[test]
fn the_norm_before_a_pool_has_the_bits_of_all_splits() {
    for device in executors::with_kernels() {
        let (stream, batch, c) = (device.stream().unwrap(), Part::whole(5, 3), 16);
        let sums = [0, 1].map(|_| garbage(&device, DType::F32, c));
        let gamma = slice(&device, DType::F32, &fill::f32("gamma", c, 1.0, 1.5));
        check(&format!("pool on {device}"), batch, &sums, |part, clips| {
            let input = ActivationShape::new(clips, 2, 13, 12, c);
            let (kernel, stride, padding) = ([1, 3, 3], [1, 2, 2], [0, 1, 1]);
            let op = Pool3d { kind: PoolKind::Max, input, kernel, stride, padding };
            let (splits, part_of) = (part.splits_of(clips), Some(part));
            let norm = BatchNorm { shape: input, splits, eps: 1e-5, relu: true, part: part_of };
            let of = |what: &str, shape| tensor(&device, DType::Bf16, shape, &of_clips(what, part, shape), DENSE);
            let (y, g) = (of("y", input), of("g", op.output()));
            let f32s = |len: usize| garbage(&device, DType::F32, len);
            let (stats, scale_shift) = (f32s(norm.stats_len()), f32s(norm.scale_shift_len()));
            let tables = batch_norm::Tables {
                gamma: &gamma,
                beta: &gamma,
                stats: &stats,
                scale_shift: Some(&scale_shift),
                running: None,
                skip: None,
            };
            let scratch = workspace(&device, batch_norm::workspace_bytes(&stream, &norm));
            batch_norm::statistics(&stream, &norm, &y, &tables, &scratch).unwrap();
            let output = of("output", op.output());
            let indices = Buffer::zeroed(&device, op.output().num_elements()).unwrap();
            let indices = indices.slice::<u8>(0, op.output().num_elements()).unwrap();
            let prologue = pool3d::Prologue { scale_shift: &scale_shift, splits, part: part_of };
            pool3d::forward_normalised(&stream, &op, &prologue, &y, &output, Some(&indices)).unwrap();
            let grad_table = f32s(norm.grad_table_len());
            let [grad_gamma, grad_beta] = &sums;
            let tables = GradTables { gamma: &gamma, stats: &stats, grad_table: &grad_table, grad_gamma, grad_beta };
            let before = NormBefore { splits, part: part_of, y: &y, scale_shift: &scale_shift, tables };
            let scratch = workspace(&device, pool3d::workspace_bytes(&op, splits, part_of));
            pool3d::grad_norm(&stream, &op, &g, &indices, &before, None, &scratch).unwrap();
            vec![read_tensor(&output, DENSE), read(&grad_table)]
        });
    }
}

#[test]
fn linear_has_the_bits_of_all_splits() {
    for (device, dtype) in devices() {
        // Few clips, more than a tile's rows; splits that end within an instruction.
        for (clips, splits, c_in, c_out) in [(7, 3, 37, 11), (70, 4, 320, 24), (25, 25, 24, 9)] {
            let (stream, batch) = (device.stream().unwrap(), Part::whole(clips, splits));
            let weight = slice(&device, dtype, &fill::f32("w", c_in * c_out, 0.5, 0.0));
            let bias = slice(&device, DType::F32, &fill::f32("b", c_out, 0.5, 0.0));
            let sums = [c_in * c_out, c_out].map(|len| garbage(&device, DType::F32, len));
            check(&format!("{clips} clips, {c_in} to {c_out} {dtype:?} on {device}"), batch, &sums, |part, clips| {
                let of = |what: &str, c: usize| -> Tensor {
                    let shape = ActivationShape::new(clips, 1, 1, 1, c);
                    tensor(&device, dtype, shape, &of_clips(what, part, shape), DENSE)
                };
                let (x, y, dy, dx) = (of("x", c_in), of("y", c_out), of("dy", c_out), of("dx", c_in));
                let bytes = linear::workspace_bytes(&device, part.batch_clips, c_in, c_out);
                let scratch = workspace(&device, bytes.max(vcycle::ops::TICKET_BYTES));
                let (at, [dw, db]) = (Some(part), &sums);
                linear::forward_with(&stream, at, &x, &weight, Some(&bias), &y, &scratch).unwrap();
                linear::backward_with(&stream, at, &x, &weight, &dy, &dx, dw, Some(db), &scratch).unwrap();
                vec![read_tensor(&y, DENSE), read_tensor(&dx, DENSE)]
            });
        }
    }
}
