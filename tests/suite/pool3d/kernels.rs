//! The kernels, in each type that activations have there; with indices of 8 and of 32 bits.

use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::batch_norm::{self, BatchNorm, GradTables};
use vcycle::ops::pool3d::{self, NormBefore, Pool3d, PoolKind, Prologue, reference};
use vcycle::shape::ActivationShape;

use super::{cases, zeros};
use crate::compare::{as_f64, assert_equal, assert_same_bits, exact, integers, to_f32};
use crate::executors;
use crate::golden::fill;
use crate::stored::{assert_twice_plain, read, read_tensor, rounding, slice, tensor};

const DTYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

fn new_indices(device: &Device, dtype: DType, len: usize) -> Slice {
    match dtype {
        DType::U8 => Buffer::from_host(device, &vec![255u8; len]).unwrap(),
        _ => Buffer::from_host(device, &vec![u32::MAX; len]).unwrap(),
    }
}

fn read_indices(indices: &Slice) -> Vec<u32> {
    match indices.dtype() {
        DType::U8 => indices.read::<u8>().unwrap().into_iter().map(u32::from).collect(),
        _ => indices.read().unwrap(),
    }
}

/// All modes of the emulator where that is quick, one elsewhere.
fn in_modes(device: &Device, op: &Pool3d, dtype: DType, test: impl Fn(&str)) {
    match op.input.num_elements() <= 4000 && dtype == DType::Bf16 {
        true => executors::in_all_modes(device, test),
        false => test(&device.to_string()),
    }
}

/// Values as `dtype` stores them.
fn rounded(dtype: DType, values: Vec<f32>) -> Vec<f32> {
    values.iter().map(|v| rounding(dtype)(f64::from(*v)) as f32).collect()
}

pub(super) struct Run<'a> {
    pub device: &'a Device,
    pub dtype: DType,
    pub index: DType,
    /// Channels of others around those of x and dx, and of y and dy.
    pub gaps: [[usize; 2]; 2],
}

impl Run<'_> {
    /// Output, indices, and the gradient, which is added to `before` where that is given.
    pub fn run(&self, op: &Pool3d, x: &[f32], dy: &[f32], before: Option<&[f32]>) -> (Vec<f32>, Vec<u32>, Vec<f32>) {
        let stream = self.device.stream().unwrap();
        let of = |shape, values: &[f32], gap| tensor(self.device, self.dtype, shape, values, gap);
        let garbage = |shape: ActivationShape, gap| of(shape, &vec![f32::NAN; shape.num_elements()], gap);
        let (x, y) = (of(op.input, x, self.gaps[0]), garbage(op.output(), self.gaps[1]));
        let indices = new_indices(self.device, self.index, op.output().num_elements());
        pool3d::forward(&stream, op, &x, &y, Some(&indices)).unwrap();
        if op.kind == PoolKind::Max {
            let without = garbage(op.output(), self.gaps[1]);
            pool3d::forward(&stream, op, &x, &without, None).unwrap();
            let (got, want) = (read_tensor(&without, self.gaps[1]), read_tensor(&y, self.gaps[1]));
            assert_same_bits("without indices", &got, &want);
        }
        let dy = of(op.output(), dy, self.gaps[1]);
        let dx = before.map_or_else(|| garbage(op.input, self.gaps[0]), |values| of(op.input, values, self.gaps[0]));
        pool3d::grad_input(&stream, op, &dy, Some(&indices), &dx, before.is_some()).unwrap();
        (read_tensor(&y, self.gaps[1]), read_indices(&indices), read_tensor(&dx, self.gaps[0]))
    }
}

#[test]
fn max_of_integers_is_exact_and_the_first_of_equals_wins() {
    for device in executors::with_kernels() {
        for (name, op) in cases().into_iter().filter(|(_, op)| op.kind == PoolKind::Max) {
            let x = integers(&format!("{name}/x"), op.input.num_elements(), 2);
            let dy = integers(&format!("{name}/dy"), op.output().num_elements(), 4);
            let before = integers(&format!("{name}/dx"), op.input.num_elements(), 4);
            let (y, winner) = reference::forward(&op, exact, &as_f64(&x));
            let dx = reference::grad_input(&op, exact, &as_f64(&dy), &winner, zeros(&op));
            let added = reference::grad_input(&op, exact, &as_f64(&dy), &winner, as_f64(&before));
            for (i, dtype) in DTYPES.into_iter().enumerate() {
                let index = [DType::U8, DType::U32][i % 2];
                let gaps = [[[0, 0], [0, 0]], [[8, 0], [0, 8]], [[1, 2], [3, 0]]][i];
                let run = Run { device: &device, dtype, index, gaps };
                in_modes(&device, &op, dtype, |mode| {
                    let what = format!("{name} {dtype:?} on {mode}");
                    let got = run.run(&op, &x, &dy, None);
                    assert_equal(&format!("{what}: y"), &got.0, &y);
                    assert_eq!(got.1, winner, "{what}: indices");
                    assert_equal(&format!("{what}: dx"), &got.2, &dx);
                    assert_equal(&format!("{what}: added to"), &run.run(&op, &x, &dy, Some(&before)).2, &added);
                });
            }
        }
    }
}

#[test]
fn random_values_agree_with_the_reference() {
    for device in executors::with_kernels() {
        for (name, op) in cases() {
            for dtype in DTYPES {
                let of =
                    |what: &str, n: usize, offset| rounded(dtype, fill::f32(&format!("{name}/{what}"), n, 1.0, offset));
                let (x, dy) = (of("x", op.input.num_elements(), 0.5), of("dy", op.output().num_elements(), 0.0));
                let before = of("dx", op.input.num_elements(), 0.0);
                let both = [exact, to_f32];
                let forward = both.map(|round| reference::forward(&op, round, &as_f64(&x)));
                let dx = both.map(|r| reference::grad_input(&op, r, &as_f64(&dy), &forward[0].1, as_f64(&before)));
                let run = Run { device: &device, dtype, index: DType::U8, gaps: [[0, 0]; 2] };
                // The head's window has more positions than a byte counts; its kind has no indices.
                in_modes(&device, &op, dtype, |mode| {
                    let what = format!("{name} {dtype:?} on {mode}");
                    let got = run.run(&op, &x, &dy, Some(&before));
                    assert_twice_plain(&format!("{what}: y"), dtype, &got.0, &forward[1].0, &forward[0].0);
                    assert_twice_plain(&format!("{what}: dx"), dtype, &got.2, &dx[1], &dx[0]);
                    let again = run.run(&op, &x, &dy, Some(&before));
                    assert_same_bits(&format!("{what}: y again"), &again.0, &got.0);
                    assert_same_bits(&format!("{what}: dx again"), &again.2, &got.2);
                });
            }
        }
    }
}

#[test]
fn a_nan_and_a_window_of_infinities() {
    let op = Pool3d {
        kind: PoolKind::Max,
        input: ActivationShape::new(1, 1, 1, 6, 1),
        kernel: [1, 1, 3],
        stride: [1, 1, 3],
        padding: [0; 3],
    };
    let low = f32::NEG_INFINITY;
    for device in executors::with_kernels() {
        for dtype in DTYPES {
            let run = Run { device: &device, dtype, index: DType::U32, gaps: [[0, 0]; 2] };
            let got = run.run(&op, &[1.0, f32::NAN, 2.0, low, low, low], &[1.0, 5.0], None);
            assert!(got.0[0].is_nan() && got.0[1] == low, "{dtype:?}: {:?}", got.0);
            assert_eq!(got.1, [1, 0], "{dtype:?}");
            assert_eq!(got.2, [0.0, 1.0, 0.0, 5.0, 0.0, 0.0], "{dtype:?}");
        }
    }
}

/// Pools behind a batch norm and ReLU.
fn stems() -> Vec<(&'static str, Pool3d, usize)> {
    let op = |input: [usize; 5], kernel, stride, padding| {
        let [n, t, h, w, c] = input;
        Pool3d { kind: PoolKind::Max, input: ActivationShape::new(n, t, h, w, c), kernel, stride, padding }
    };
    vec![
        ("stem", op([2, 2, 9, 8, 8], [1, 3, 3], [1, 2, 2], [0, 1, 1]), 1),
        ("ragged_splits", op([5, 1, 7, 7, 16], [1, 3, 3], [1, 2, 2], [0, 1, 1]), 2),
        ("channels_20", op([2, 3, 5, 6, 20], [2, 2, 3], [1, 2, 1], [1, 0, 1]), 2),
        ("channels_3", op([3, 1, 6, 5, 3], [1, 3, 3], [1, 2, 2], [0, 1, 1]), 2),
        ("gaps_between_windows", op([3, 2, 5, 7, 4], [1, 2, 2], [1, 3, 3], [0; 3]), 3),
    ]
}

/// Scale and shift of halves: products and sums with small integers are exact.
fn exact_table(name: &str, len: usize) -> Vec<f32> {
    integers(name, len, 4).into_iter().map(|v| v * 0.5).collect()
}

/// `scale x + shift` of each element.
fn normalised(op: &Pool3d, splits: usize, x: &[f32], table: &[f32]) -> Vec<f64> {
    let (c, per_split) = (op.input.c, op.input.n.div_ceil(splits) * op.input.num_elements() / op.input.n);
    let at = |i: usize, row: usize| f64::from(table[(i / per_split * 2 + row) * c + i % c]);
    x.iter().enumerate().map(|(i, x)| at(i, 0) * f64::from(*x) + at(i, 1)).collect()
}

#[test]
fn batch_norm_and_relu_on_load() {
    for device in executors::with_kernels() {
        for (name, op, splits) in stems() {
            let norm = BatchNorm { shape: op.input, splits, eps: 0.0, relu: true, part: None };
            let x = integers(&format!("{name}/x"), op.input.num_elements(), 6);
            let table = exact_table(&format!("{name}/table"), norm.scale_shift_len());
            let relu: Vec<f64> = normalised(&op, splits, &x, &table).into_iter().map(|v| v.max(0.0)).collect();
            let (y, winner) = reference::forward(&op, exact, &relu);
            for (dtype, index) in [(DType::Bf16, DType::U8), (DType::F16, DType::U32), (DType::F32, DType::U8)] {
                in_modes(&device, &op, dtype, |mode| {
                    let stream = device.stream().unwrap();
                    let gap = if op.input.c.is_multiple_of(8) { [8, 8] } else { [1, 0] };
                    let input = tensor(&device, dtype, op.input, &x, gap);
                    let output = tensor(&device, dtype, op.output(), &vec![f32::NAN; y.len()], gap);
                    let indices = new_indices(&device, index, y.len());
                    let table = slice(&device, DType::F32, &table);
                    let prologue = Prologue { scale_shift: &table, splits, part: None };
                    pool3d::forward_normalised(&stream, &op, &prologue, &input, &output, Some(&indices)).unwrap();
                    assert_equal(&format!("{name} {dtype:?} on {mode}"), &read_tensor(&output, gap), &y);
                    assert_eq!(read_indices(&indices), winner, "{name} {dtype:?} on {mode}: indices");
                });
            }
        }
    }
}

/// What `grad_norm` gives: table, gradients of gamma and beta, and the gradient behind the ReLU.
struct Backward {
    tables: [Vec<f32>; 3],
    g: Vec<f32>,
}

#[allow(clippy::too_many_arguments)]
fn grad_norm(
    device: &Device,
    dtype: DType,
    op: &Pool3d,
    splits: usize,
    [x, dy, gamma, stats, table]: [&[f32]; 5],
    winner: &[u32],
    index: DType,
    stores: bool,
) -> Backward {
    let stream = device.stream().unwrap();
    let norm = BatchNorm { shape: op.input, splits, eps: 1e-5, relu: true, part: None };
    let f32s = |values: &[f32]| slice(device, DType::F32, values);
    let y = tensor(device, dtype, op.input, x, [0, 8]);
    let dy = tensor(device, dtype, op.output(), dy, [8, 0]);
    let dx = tensor(device, dtype, op.input, &vec![f32::NAN; x.len()], [0, 0]);
    let indices = match index {
        DType::U8 => Buffer::from_host(device, &winner.iter().map(|w| *w as u8).collect::<Vec<_>>()).unwrap(),
        _ => Buffer::from_host(device, winner).unwrap(),
    };
    let [gamma, stats, scale_shift] = [gamma, stats, table].map(f32s);
    let [grad_table, grad_gamma, grad_beta] =
        [norm.grad_table_len(), op.input.c, op.input.c].map(|n| f32s(&vec![0.0; n]));
    let scratch = crate::batch_norm::rig::workspace(device, pool3d::workspace_bytes(op, splits, None));
    let tables = GradTables {
        gamma: &gamma,
        stats: &stats,
        grad_table: &grad_table,
        grad_gamma: &grad_gamma,
        grad_beta: &grad_beta,
    };
    let before = NormBefore { splits, part: None, y: &y, scale_shift: &scale_shift, tables };
    pool3d::grad_norm(&stream, op, &dy, &indices, &before, stores.then_some(&dx), &scratch).unwrap();
    crate::batch_norm::rig::assert_tickets_are_zero(device, &scratch);
    Backward { tables: [&grad_table, &grad_gamma, &grad_beta].map(read), g: read_tensor(&dx, [0, 0]) }
}

#[test]
fn the_sums_of_the_batch_norm_before() {
    for device in executors::with_kernels() {
        for ((name, op, splits), mean) in stems().into_iter().flat_map(|stem| [(stem, 0.0), (stem, 58.0)]) {
            for (dtype, index) in [(DType::Bf16, DType::U8), (DType::F16, DType::U32), (DType::F32, DType::U8)] {
                let norm = BatchNorm { shape: op.input, splits, eps: 1e-5, relu: true, part: None };
                let of = |what: &str, n: usize, offset| fill::f32(&format!("{name}/{what}"), n, 1.0, offset);
                let x = rounded(dtype, of("x", op.input.num_elements(), mean));
                let dy = rounded(dtype, of("dy", op.output().num_elements(), 0.1));
                let gamma = of("gamma", op.input.c, 1.5);
                let beta = of("beta", op.input.c, 0.2);
                let [x64, dy64, gamma64] = [&x, &dy, &gamma].map(|v| as_f64(v));
                let forward = batch_norm::reference::forward(&norm, to_f32, &x64, &gamma64, &as_f64(&beta), None);
                let f32s = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
                let stats = f32s(&forward.stats);
                let table =
                    batch_norm::reference::scale_shift(&norm, to_f32, &as_f64(&stats), &gamma64, &as_f64(&beta));
                let table = f32s(&table);
                let open = normalised(&op, splits, &x, &table);
                let relu: Vec<f64> = open.iter().map(|v| v.max(0.0)).collect();
                let winner = reference::forward(&op, exact, &relu).1;
                let both = [exact, to_f32];
                let [g, plain_g] = both.map(|round| {
                    let dx = reference::grad_input(&op, round, &dy64, &winner, zeros(&op));
                    dx.iter().zip(&open).map(|(g, open)| if *open > 0.0 { *g } else { 0.0 }).collect::<Vec<f64>>()
                });
                let tables = |round, g: &[f64]| {
                    batch_norm::reference::gradient_tables(&norm, round, &x64, g, &gamma64, &as_f64(&stats))
                };
                let (want, plain) = (tables(exact, &g), tables(to_f32, &plain_g));
                in_modes(&device, &op, dtype, |mode| {
                    let what = format!("{name} {dtype:?} mean {mean} on {mode}");
                    let operands = [&x[..], &dy, &gamma, &stats, &table];
                    let run = |stores| grad_norm(&device, dtype, &op, splits, operands, &winner, index, stores);
                    let got = run(true);
                    assert_twice_plain(&format!("{what}: g"), dtype, &got.g, &plain_g, &g);
                    for (i, part) in ["grad_table", "dgamma", "dbeta"].into_iter().enumerate() {
                        let what = format!("{what}: {part}");
                        assert_twice_plain(&what, DType::F32, &got.tables[i], &plain[i], &want[i]);
                    }
                    for (got, want) in run(false).tables.iter().zip(&got.tables) {
                        assert_same_bits(&format!("{what}: without storing"), got, want);
                    }
                });
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (_, op, splits) = stems().remove(0);
    let message = |result: vcycle::Result<()>| result.unwrap_err().to_string();
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let of = |shape: ActivationShape| tensor(&device, DType::F32, shape, &vec![0.0; shape.num_elements()], [0, 0]);
        let (x, y) = (of(op.input), of(op.output()));
        let table = slice(&device, DType::F32, &vec![0.0; 2 * op.input.c]);
        let short = new_indices(&device, DType::U8, op.output().num_elements());
        let fused = message(pool3d::forward_normalised(
            &stream,
            &op,
            &Prologue { scale_shift: &table, splits: splits + 1, part: None },
            &x,
            &y,
            None,
        ));
        if device == Device::Cpu {
            assert!(fused.contains("no form on the CPU"), "{fused}");
            let refused = message(pool3d::forward(&stream, &op, &x, &y, Some(&short)));
            assert_eq!(refused, "pool3d forward: indices must hold U32, got U8");
            continue;
        }
        assert_eq!(fused, "pool3d forward_normalised: scale_shift must have 32 elements, got 16");
        let large = Pool3d { kernel: [1, 9, 8], stride: [1; 3], padding: [0; 3], ..op };
        let large = Pool3d { input: ActivationShape { t: 8, ..large.input }, kernel: [8, 9, 8], ..large };
        let indices = new_indices(&device, DType::U8, large.output().num_elements());
        let refused = message(pool3d::forward(&stream, &large, &of(large.input), &of(large.output()), Some(&indices)));
        assert_eq!(refused, "pool3d forward: indices must hold U32, got U8");
    }
}
