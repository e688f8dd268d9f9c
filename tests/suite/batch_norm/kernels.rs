//! The kernels behind `forward_train`, `backward`, `forward_eval` and `update_running`, in each type that activations have there.

use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::batch_norm::{self, BatchNorm, MomentsNorm, MomentsTable, RunningNorm, RunningTable, reference};
use vcycle::shape::ActivationShape;

use super::rig::{Case, Operands, Results, Share, cases, step_on, workspace};
use crate::compare::{as_f64, assert_same_bits, exact, to_f32};
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, assert_twice_plain, read_tensor, slice, tensor};

const DTYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];
const DENSE: [usize; 2] = [0; 2];

/// Runs `test` in all modes of the emulator where that is quick, in one elsewhere.
fn in_modes(device: &Device, op: &BatchNorm, dtype: DType, test: impl Fn(&str)) {
    match op.shape.num_elements() <= 4000 && dtype == DType::Bf16 {
        true => executors::in_all_modes(device, test),
        false => test(&device.to_string()),
    }
}

/// Fails unless a step is as good as plain f32 arithmetic on the values as stored, and one rounding where results are stored.
fn check_step(what: &str, dtype: DType, case: &Case, o: &Operands, got: &Results) {
    let op = case.op();
    let (x, gamma, beta) = (as_f64(&o.x), as_f64(&o.gamma), as_f64(&o.beta));
    let (residual, dy) = (o.residual.as_deref().map(as_f64), as_f64(&o.dy));
    let forward = [exact, to_f32].map(|round| reference::forward(&op, round, &x, &gamma, &beta, residual.as_deref()));
    // Backward starts from what forward wrote: a value next to zero may round to either side of the ReLU.
    let written = reference::Forward { y: as_f64(&got.y), stats: as_f64(&got.stats) };
    let backward = [exact, to_f32].map(|round| reference::backward(&op, round, &x, &gamma, &written, &dy));
    for (part, values) in got.parts() {
        let [want, plain] = [0, 1].map(|i| match part {
            "y" => &forward[i].y,
            "stats" => &forward[i].stats,
            "dx" => &backward[i].dx,
            "dr" => &backward[i].dr,
            "dgamma" => &backward[i].dgamma,
            _ => &backward[i].dbeta,
        });
        let stored_as = if matches!(part, "y" | "dx" | "dr") { dtype } else { DType::F32 };
        assert_twice_plain(&format!("{what}: {part}"), stored_as, values, plain, want);
    }
}

fn check_case(device: &Device, dtype: DType, case: &Case, o: &Operands) {
    in_modes(device, &case.op(), dtype, |mode| {
        let what = format!("{} {dtype:?} on {mode}", case.name);
        let got = step_on(device, dtype, case, o, Share::Nothing);
        check_step(&what, dtype, case, o, &got);
        let shares = [Share::Nothing, Share::Input, Share::Residual];
        for share in shares.into_iter().filter(|s| *s != Share::Residual || case.residual) {
            let again = step_on(device, dtype, case, o, share);
            for ((part, got), (_, again)) in got.parts().into_iter().zip(again.parts()) {
                assert_same_bits(&format!("{what}: {part}, again, {share:?}"), again, got);
            }
        }
    });
}

#[test]
fn cases_agree_with_the_reference() {
    for device in executors::with_kernels() {
        for case in cases() {
            let is_large = case.op().shape.num_elements() > 50_000;
            for dtype in DTYPES.into_iter().take(if is_large { 1 } else { 3 }) {
                check_case(&device, dtype, &case, &Operands::random(&case).rounded(dtype));
            }
        }
    }
}

/// A mean of 100 deviations: nothing may be a difference of two large sums.
#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    for device in executors::with_kernels() {
        for case in cases().into_iter().filter(|c| ["plain", "ragged_splits", "channels_20"].contains(&c.name.as_str()))
        {
            for dtype in DTYPES {
                let mut o = Operands::random(&case);
                // Uniform in [-0.3, 1.7): a deviation of 0.58.
                o.x.iter_mut().for_each(|x| *x += 58.0);
                let o = o.rounded(dtype);
                check_case(&device, dtype, &case, &o);
                let got = step_on(&device, dtype, &case, &o, Share::Nothing);
                let (op, c) = (case.op(), case.op().shape.c);
                let want =
                    reference::forward(&op, exact, &as_f64(&o.x), &as_f64(&o.gamma), &as_f64(&o.beta), None).stats;
                for (i, (got, want)) in got.stats.iter().zip(&want).take(op.splits_used() * 3 * c).enumerate() {
                    let error = (f64::from(*got) / want - 1.0).abs();
                    // Means of parts are rounded to 2^-24 of 100 deviations: that is what the variance may be off by.
                    assert!(
                        error < 100.0 * 2f64.powi(-24),
                        "{} {dtype:?}: statistic {i} is off by {error:e}",
                        case.name
                    );
                }
            }
        }
    }
}

/// Whole numbers in powers of two: no sum, mean or quotient is rounded.
#[test]
fn statistics_of_whole_numbers_are_exact() {
    for device in executors::with_kernels() {
        for (c, splits, gap) in [(8, 1, 0), (16, 2, 8), (64, 4, 0), (4, 2, 1), (256, 1, 0)] {
            let shape = ActivationShape::new(4, 2, 4, 4, c);
            let op = BatchNorm { shape, splits, eps: 0.0, relu: false, part: None };
            // Channel ch alternates between ch - 4 and ch + 4: mean ch, variance 16.
            let centre = |i: usize| (i % c % 32) as f32;
            let sign = |i: usize| if (i / c).is_multiple_of(2) { 1.0 } else { -1.0 };
            let x: Vec<f32> = (0..shape.num_elements()).map(|i| centre(i) + 4.0 * sign(i)).collect();
            let want: Vec<f32> = (0..x.len()).map(|i| 1.0 + 2.0 * sign(i)).collect();
            for dtype in DTYPES {
                executors::in_all_modes(&device, |mode| {
                    let stream = device.stream().unwrap();
                    let f32s = |values: &[f32]| slice(&device, DType::F32, values);
                    let tensor = tensor(&device, dtype, shape, &x, [0, gap]);
                    let (gamma, beta) = (f32s(&vec![2.0; c]), f32s(&vec![1.0; c]));
                    let stats = f32s(&vec![0.0; op.stats_len()]);
                    let scratch = workspace(&device, batch_norm::workspace_bytes(&stream, &op));
                    batch_norm::forward_train(&stream, &op, &tensor, &gamma, &beta, None, &tensor, &stats, &scratch)
                        .unwrap();
                    let what = format!("{c} channels, {splits} splits, {dtype:?} on {mode}");
                    assert_same_bits(&what, &read_tensor(&tensor, [0, gap]), &want);
                    for (i, rows) in stats.read::<f32>().unwrap().chunks(3 * c).enumerate() {
                        let what = format!("{what}: split {i}");
                        assert_same_bits(&what, &rows[..c], &(0..c).map(centre).collect::<Vec<_>>());
                        assert_same_bits(&what, &rows[c..2 * c], &vec![0.25; c]);
                    }
                });
            }
        }
    }
}

#[test]
fn sums_of_integer_gradients_are_exact() {
    for device in executors::with_kernels() {
        for case in cases().into_iter().filter(|c| c.op().shape.num_elements() <= 20_000) {
            let (op, o) = (case.op(), Operands::integers(&case).rounded(DType::Bf16));
            in_modes(&device, &op, DType::Bf16, |mode| {
                let got = step_on(&device, DType::Bf16, &case, &o, Share::AddToResidual);
                let open = |i: usize| !op.relu || got.y[i] > 0.0;
                let masked: Vec<f32> = (0..o.dy.len()).map(|i| if open(i) { o.dy[i] } else { 0.0 }).collect();
                let sum = |ch: usize| masked.iter().skip(ch).step_by(op.shape.c).sum::<f32>();
                let want: Vec<f64> = (0..op.shape.c).map(|ch| f64::from(sum(ch))).collect();
                crate::compare::assert_equal(&format!("{} on {mode}: dbeta", case.name), &got.dbeta, &want);
                if let Some(dr) = &got.dr {
                    let want: Vec<f64> = masked.iter().zip(&o.dr_before).map(|(g, b)| f64::from(g + b)).collect();
                    crate::compare::assert_equal(&format!("{} on {mode}: dr added to", case.name), dr, &want);
                }
            });
        }
    }
}

#[test]
fn evaluation_in_place_and_running_statistics() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let f32s = |values: &[f32]| slice(&device, DType::F32, values);
        for case in cases().into_iter().filter(|c| c.op().shape.num_elements() <= 20_000) {
            for dtype in DTYPES {
                let (op, o) = (case.op(), Operands::random(&case).rounded(dtype));
                let (mean, var): (Vec<f32>, Vec<f32>) = (0..op.shape.c).map(|c| (o.beta[c] * 50.0, o.gamma[c])).unzip();
                let x = tensor(&device, dtype, op.shape, &o.x, DENSE);
                let y = tensor(&device, dtype, op.shape, &o.dy, DENSE);
                let residual = o.residual.as_ref().map(|r| tensor(&device, dtype, op.shape, r, DENSE));
                for output in [&y, &x] {
                    let [gamma, beta, mean, var] = [&o.gamma, &o.beta, &mean, &var].map(|v| f32s(v));
                    batch_norm::forward_eval(&stream, &op, &x, &gamma, &beta, &mean, &var, residual.as_ref(), output)
                        .unwrap();
                }
                let parameters = [&o.gamma, &o.beta, &mean, &var].map(|v| as_f64(v));
                let residual = o.residual.as_deref().map(as_f64);
                let [want, plain] = [exact, to_f32].map(|round| {
                    let parameters = parameters.each_ref().map(|p| &p[..]);
                    reference::forward_eval(&op, round, &as_f64(&o.x), parameters, residual.as_deref())
                });
                let (what, got) = (format!("{}: eval {dtype:?}", case.name), read_tensor(&y, DENSE));
                assert_twice_plain(&what, dtype, &got, &plain, &want);
                assert_same_bits(&format!("{what} in place"), &read_tensor(&x, DENSE), &got);
            }
        }
        let case = cases().into_iter().find(|c| c.name == "an_empty_split").unwrap();
        let (op, o) = (case.op(), Operands::random(&case));
        let stats = step_on(&device, DType::F32, &case, &o, Share::Nothing).stats;
        let moved = [&device, &Device::Cpu].map(|device| {
            let [stats, mean, var] = [&stats, &o.beta, &o.gamma].map(|v| slice(device, DType::F32, v));
            let stream = device.stream().unwrap();
            batch_norm::update_running(&stream, &op, &stats, 0.25, &mean, &var).unwrap();
            let alone = [stored::read(&mean), stored::read(&var)].concat();
            assert_same_bits(&format!("{device}: with others"), &running_with_others(device, &op, &stats, &o), &alone);
            alone
        });
        for (i, (kernel, cpu)) in moved[0].iter().zip(&moved[1]).enumerate() {
            // Both are f64 rounded once; the kernel fuses a product.
            assert!((kernel - cpu).abs() <= cpu.abs() * f32::EPSILON, "running {i}: {kernel} is not {cpu}");
        }
    }
}

/// Over two batches, the last split of each ragged, beside a norm of one channel: the kernel's sums are the CPU's but for a fused product.
#[test]
fn moments_of_batches_are_added_up() {
    let shape = ActivationShape::new(5, 2, 3, 1, 300);
    let op = BatchNorm { shape, splits: 3, eps: 1e-5, relu: false, part: None };
    let narrow = BatchNorm { shape: ActivationShape::new(2, 1, 1, 1, 1), splits: 1, ..op };
    let values = fill::f32("stats", op.stats_len(), 2.0, 3.0);
    let sums_on = |device: &Device| {
        let (stream, lens) = (device.stream().unwrap(), [1, 300].map(MomentsNorm::sums_len));
        let sums = Buffer::from_host(device, &vec![0u32; lens[0] + lens[1]]).unwrap();
        let norm = |op: BatchNorm, stats: &[f32], begin, len| MomentsNorm {
            op,
            stats: slice(device, DType::F32, stats),
            sums: sums.part(begin, len).unwrap(),
        };
        let norms = vec![norm(narrow, &[3.0, 1.0, 4.0], 0, lens[0]), norm(op, &values, lens[0], lens[1])];
        let table = MomentsTable::new(device, norms).unwrap();
        (0..2).for_each(|_| batch_norm::add_moments_all(&stream, &table).unwrap());
        batch_norm::read_moments(&sums).unwrap()
    };
    let want = sums_on(&Device::Cpu);
    // Two values about 3 of unbiased variance 4: mean square 9 + 4 / 2, for two clips, twice.
    assert_eq!(want[..2], [12.0, 44.0]);
    let clips = [2.0, 2.0, 1.0];
    for ch in [0, 299] {
        let at = |split: usize, row: usize| f64::from(values[(3 * split + row) * 300 + ch]);
        let mean: f64 = (0..3).map(|split| 2.0 * clips[split] * at(split, 0)).sum();
        let square =
            |split: usize| at(split, 2) * (6.0 * clips[split] - 1.0) / (6.0 * clips[split]) + at(split, 0).powi(2);
        let squares: f64 = (0..3).map(|split| 2.0 * clips[split] * square(split)).sum();
        assert!(
            (want[2 + ch] - mean).abs() <= 1e-14 * mean.abs() && (want[302 + ch] - squares).abs() <= 1e-14 * squares
        );
    }
    for device in executors::with_kernels() {
        for (i, (got, want)) in sums_on(&device).into_iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-14 * want.abs(), "{device} sum {i}: {got} is not {want}");
        }
    }
}

/// The running pair of `op` after a launch that also moves that of a norm with one channel, and after one for a skipped step.
fn running_with_others(device: &Device, op: &BatchNorm, stats: &Slice, o: &Operands) -> Vec<f32> {
    let stream = device.stream().unwrap();
    let own = [&o.beta, &o.gamma].map(|v| slice(device, DType::F32, v));
    let other = [4.0, 8.0].map(|v| slice(device, DType::F32, &[v]));
    let narrow = BatchNorm { shape: ActivationShape::new(2, 1, 1, 1, 1), splits: 1, ..*op };
    let norms = vec![
        RunningNorm { op: narrow, stats: slice(device, DType::F32, &[0.0, 1.0, 4.0]), running: other.clone() },
        RunningNorm { op: *op, stats: stats.clone(), running: own.clone() },
    ];
    let table = RunningTable::new(device, norms).unwrap();
    let skipped = Buffer::from_host(device, &[1u32]).unwrap();
    batch_norm::update_running_all(&stream, &table, 0.25, Some(&skipped)).unwrap();
    let [mean, var] = own.each_ref().map(stored::read);
    assert!(mean == o.beta && var == o.gamma && stored::read(&other[0]) == [4.0], "{device}: a skipped step");
    skipped.write(&[0u32]).unwrap();
    batch_norm::update_running_all(&stream, &table, 0.25, Some(&skipped)).unwrap();
    assert_eq!(other.map(|v| stored::read(&v)), [vec![3.0], vec![7.0]], "{device}: the other norm");
    own.each_ref().map(stored::read).concat()
}
