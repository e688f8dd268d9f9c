//! Where a variance is a small difference of large sums: means far from zero, channels that are nearly the same. The bound of
//! docs/gram_batch_norm.md holds there, and with 16-bit tensors the result is as good as the standard form's.

use vcycle::device::{DType, Device};
use vcycle::ops::batch_norm::reference as batch_norm;
use vcycle::ops::conv3d::reference as conv;
use vcycle::ops::gram::{Gram, reference};

use super::rig::{Case, Operands, Results, run};
use crate::compare::{as_f64, exact};
use crate::executors;
use crate::stored::{self, assert_twice_plain, rounding};

/// Roundings of sums of products, and of all later sums, in units of 2^-24: docs/gram_batch_norm.md.
fn roundings(device: &Device, c: usize) -> [f64; 2] {
    let of_sums = if *device == Device::Cpu { 1024.0 } else { 531.0 };
    [of_sums, (3 * c + 2) as f64].map(|count| count * 2f64.powi(-24))
}

fn dtype(device: &Device) -> DType {
    if *device == Device::Cpu { DType::F32 } else { DType::Bf16 }
}

/// Fails where a variance is off by more than the bound; returns the largest bound.
fn check_bound(what: &str, device: &Device, op: &Gram, o: &Operands, got: &Results) -> f64 {
    let (c_out, eps) = (op.norm.shape.c, f64::from(op.norm.eps));
    let moments = reference::moments(op, exact, &as_f64(&o.x));
    let bounds = reference::error_bound(op, &moments, &as_f64(&o.w), roundings(device, op.c_in));
    let want = reference::statistics(op, exact, &moments, &as_f64(&o.w));
    for (i, bound) in bounds.iter().enumerate() {
        let at = (i / c_out * 3 + 1) * c_out + i % c_out;
        let [got, want] = [f64::from(got.stats[at]), want[at]].map(|inv_std| 1.0 / (inv_std * inv_std));
        let error = (got - want).abs() / want;
        // What is left is the rounding of the inverse deviation.
        assert!(error <= bound + 2f64.powi(-22), "{what}: variance {i} is off by {error:e} > {bound:e} (eps {eps})");
    }
    bounds.into_iter().fold(0.0, f64::max)
}

/// The output of Gram batch norm against the standard form, which rounds y before it takes statistics of it.
fn check_output(what: &str, op: &Gram, o: &Operands, got: &Results) {
    let (x, w, gamma, beta) = (as_f64(&o.x), as_f64(&o.w), as_f64(&o.gamma), as_f64(&o.beta));
    let y = conv::forward(&op.conv(), &x, &w, None);
    let want = batch_norm::forward(&op.norm, exact, &y, &gamma, &beta, None).y;
    let store = rounding(o.dtype);
    let stored_y: Vec<f64> = y.iter().map(|y| store(*y)).collect();
    let standard = batch_norm::forward(&op.norm, exact, &stored_y, &gamma, &beta, None).y;
    let standard: Vec<f64> = standard.into_iter().map(store).collect();
    let gram = batch_norm::apply(&op.norm, exact, &y, &as_f64(&got.scale_shift), None);
    let gram: Vec<f32> = gram.into_iter().map(|z| store(z) as f32).collect();
    assert_twice_plain(what, o.dtype, &gram, &standard, &want);
}

#[test]
fn a_mean_of_100_deviations() {
    for device in executors::all() {
        let dtype = dtype(&device);
        let case = Case::new("mean_of_100", [3, 2, 9, 10, 16], 24, 2);
        let (op, mut o) = (case.op(), Operands::random(&device, dtype, &case));
        // Uniform in [57, 59): a deviation of 0.58.
        let uniform = crate::golden::fill::f32("mean_of_100/x", o.x.len(), 1.0, 58.0);
        o.x = uniform.into_iter().map(|x| stored::round(dtype, f64::from(x)) as f32).collect();
        let got = run(&device, &case, &o);
        let bound = check_bound(&format!("mean of 100 deviations on {device}"), &device, &op, &o, &got);
        assert!(bound > 0.01, "the plan rule would not let it through: {bound}");
        if device != Device::Cpu {
            check_output(&format!("mean of 100 deviations on {device}"), &op, &o, &got);
        }
    }
}

#[test]
fn channels_that_are_nearly_the_same() {
    for device in executors::all() {
        let dtype = dtype(&device);
        let case = Case::new("collinear", [2, 2, 8, 9, 16], 8, 2);
        let (op, mut o) = (case.op(), Operands::random(&device, dtype, &case));
        // Each channel is the first of its position, and 1/64 of its own.
        for position in o.x.chunks_mut(op.c_in) {
            let first = position[0];
            let mixed = |x: &mut f32| *x = stored::round(dtype, f64::from(first + *x / 64.0)) as f32;
            position[1..].iter_mut().for_each(mixed);
        }
        // Differences of channels: what is common goes.
        for w in o.w.chunks_mut(op.c_in) {
            (0..w.len() / 2).for_each(|i| w[2 * i + 1] = -w[2 * i]);
        }
        let got = run(&device, &case, &o);
        check_bound(&format!("nearly the same channels on {device}"), &device, &op, &o, &got);
        if device != Device::Cpu {
            check_output(&format!("nearly the same channels on {device}"), &op, &o, &got);
        }
    }
}

/// As behind the batch norms of a network: the bound is far below a 16-bit rounding.
#[test]
fn behind_a_batch_norm_the_bound_is_small() {
    for device in executors::all() {
        let case = Case::new("usual", [2, 2, 8, 9, 64], 32, 2);
        let (op, o) = (case.op(), Operands::random(&device, dtype(&device), &case));
        let bound = check_bound("usual", &device, &op, &o, &run(&device, &case, &o));
        assert!(bound < 0.02, "{bound}");
    }
}
