//! The plain kernels of conv3d, forward and grad_input, over the cases of tests/cases/conv3d.toml.

use vcycle::device::Device;
use vcycle::ops::conv3d::{self, Direction, reference};

use super::typed::{Half, assert_exact, assert_near, floats, garbage, held, slice, workspace};
use super::{Case, cases, f64s, golden_case};
use crate::executors;
use crate::golden::{self, fill};

/// The operands of both directions, dense, rounded to a type.
struct Operands {
    x: Vec<f64>,
    w: Vec<f64>,
    bias: Option<Vec<f64>>,
    dy: Vec<f64>,
    dx_before: Vec<f64>,
}

impl Operands {
    fn new(case: &Case, value: impl Fn(&str, usize) -> Vec<f64>) -> Operands {
        let op = case.op();
        Operands {
            x: value("x", op.input.num_elements()),
            w: value("w", op.filter_len()),
            bias: case.bias.then(|| value("bias", op.c_out)),
            dy: value("dy", op.output().num_elements()),
            dx_before: value("dx", op.input.num_elements()),
        }
    }

    /// Integers in -4..=4: all sums are exact in f32, and rounded once.
    fn integers(case: &Case) -> Operands {
        Operands::new(case, |what, n| {
            fill::int(&format!("{}/{what}", case.name), n, 9).into_iter().map(|v| v as f64 - 4.0).collect()
        })
    }

    fn random<T: Half>(case: &Case) -> Operands {
        Operands::new(case, |what, n| {
            let all = fill::f32(&format!("{}/{what}", case.name), n, 1.0, 0.0);
            all.into_iter().map(|v| T::store(f64::from(v))).collect()
        })
    }
}

/// y, dx, and dx added to what was there.
type Results = [Vec<f64>; 3];

fn run<T: Half>(device: &Device, case: &Case, o: &Operands) -> Results {
    let (op, stream) = (case.op(), device.stream().expect("stream"));
    let (w, bias) = (slice::<T>(device, &o.w), o.bias.as_ref().map(|b| floats(device, b)));
    let x = held::<T>(device, op.input, &o.x, case.input_pitch);
    let dy = held::<T>(device, op.output(), &o.dy, case.output_pitch);
    let y = garbage::<T>(device, op.output(), case.output_pitch);
    let scratch = |direction| workspace(device, conv3d::workspace_bytes(&stream, &op, direction));
    conv3d::forward(&stream, &op, &x.tensor, &w, bias.as_ref(), &y.tensor, &scratch(Direction::Forward))
        .expect("forward");
    let scratch = scratch(Direction::GradInput);
    let [dx, added] = [false, true].map(|accumulate| {
        let dx = match accumulate {
            false => garbage::<T>(device, op.input, case.input_pitch),
            true => held::<T>(device, op.input, &o.dx_before, case.input_pitch),
        };
        conv3d::grad_input(&stream, &op, &dy.tensor, &w, &dx.tensor, accumulate, &scratch).expect("grad_input");
        dx.read::<T>()
    });
    [y.read::<T>(), dx, added]
}

/// The reference, with every sum and every stored value rounded.
fn expected(case: &Case, o: &Operands, round: fn(f64) -> f64, store: fn(f64) -> f64) -> Results {
    let op = case.op();
    let (mut y, mut dx) = (vec![0.0; op.output().num_elements()], vec![0.0; op.input.num_elements()]);
    reference::for_each_term(&op, |t| {
        y[t.y] = round(y[t.y] + o.x[t.x] * o.w[t.w]);
        dx[t.x] = round(dx[t.x] + o.dy[t.y] * o.w[t.w]);
    });
    for (i, y) in y.iter_mut().enumerate() {
        *y = store(round(*y + o.bias.as_ref().map_or(0.0, |b| b[i % op.c_out])));
    }
    let added = dx.iter().zip(&o.dx_before).map(|(a, b)| store(round(a + b))).collect();
    [y, dx.into_iter().map(store).collect(), added]
}

const NAMES: [&str; 3] = ["y", "dx", "dx added"];

fn integers_are_exact<T: Half>(device: &Device, case: &Case) {
    let operands = Operands::integers(case);
    let got = run::<T>(device, case, &operands);
    for ((what, got), want) in NAMES.iter().zip(&got).zip(&expected(case, &operands, |v| v, T::store)) {
        assert_exact(&format!("{} {} {what} on {device}", case.name, T::NAME), got, want);
    }
}

fn random_is_near<T: Half>(device: &Device, case: &Case) {
    let operands = Operands::random::<T>(case);
    let (want, plain) =
        (expected(case, &operands, |v| v, |v| v), expected(case, &operands, |v| f64::from(v as f32), T::store));
    let got = run::<T>(device, case, &operands);
    for (i, what) in NAMES.iter().enumerate() {
        let what = format!("{} {} {what} on {device}", case.name, T::NAME);
        assert_near(&what, &got[i], &plain[i], &want[i], T::ROUNDING);
    }
}

#[test]
fn kernels_small_integers_are_exact() {
    for device in executors::with_kernels() {
        for case in cases() {
            integers_are_exact::<half::bf16>(&device, &case);
            integers_are_exact::<half::f16>(&device, &case);
        }
    }
}

#[test]
fn kernels_random_values_are_near() {
    for device in executors::with_kernels() {
        for case in cases() {
            random_is_near::<half::bf16>(&device, &case);
            random_is_near::<half::f16>(&device, &case);
        }
    }
}

#[test]
fn kernels_give_the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        for case in cases().iter().filter(|case| case.all_modes) {
            let operands = Operands::random::<half::bf16>(case);
            let first = run::<half::bf16>(&device, case, &operands);
            executors::in_all_modes(&device, |mode| {
                assert!(first == run::<half::bf16>(&device, case, &operands), "{} on {mode}: other bits", case.name);
            });
        }
    }
}

/// Multiply-adds of a golden case that the emulator does in a second or two.
const MAX_GOLDEN_MACS: u64 = 4 << 20;

/// PyTorch's results from operands rounded to the type: no further than twice what plain code at that type is, plus one rounding.
fn golden_is_near<T: Half>(device: &Device, golden: &golden::Golden, case: &serde_json::Value) -> bool {
    let (described, o, [x_shape, _, y_shape]) = golden_case(case);
    if *device == Device::Simt && described.op().macs() > MAX_GOLDEN_MACS {
        return false;
    }
    let rounded = |v: &[f32]| f64s(v).into_iter().map(T::store).collect::<Vec<f64>>();
    let operands = Operands {
        x: rounded(&o.x),
        w: rounded(&o.w),
        bias: o.bias.as_deref().map(f64s),
        dy: rounded(&o.dy),
        dx_before: f64s(&o.dx_before),
    };
    let got = run::<T>(device, &described, &operands);
    let plain = expected(&described, &operands, |v| f64::from(v as f32), T::store);
    for (i, (what, shape)) in [("y", &y_shape), ("dx", &x_shape)].into_iter().enumerate() {
        let error = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            golden.compare(&case["outputs"][what], &golden::channels_first(shape, &values)).rel_l2
        };
        let (ours, allowed) = (error(&got[i]), 2.0 * error(&plain[i]) + T::ROUNDING);
        assert!(ours <= allowed, "{} {} {what} on {device}: {ours:e} > {allowed:e}", described.name, T::NAME);
    }
    true
}

#[test]
fn golden_conv3d_on_kernels() {
    let Some(golden) = golden::open("ops/conv3d.json") else { return };
    for device in executors::with_kernels() {
        let list = golden.json.as_array().expect("a list of cases");
        let both = |case| {
            golden_is_near::<half::bf16>(&device, &golden, case) && golden_is_near::<half::f16>(&device, &golden, case)
        };
        let compared = list.iter().filter(|case| both(case)).count();
        golden::passed("conv3d on kernels", compared);
    }
}
