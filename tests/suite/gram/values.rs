//! Numbers of moments and statistics on every executor.

use vcycle::device::{DType, Device};
use vcycle::ops::batch_norm::reference as batch_norm;
use vcycle::ops::gram::{Gram, reference};
use vcycle::shape::Part;

use super::rig::{Case, Operands, Results, cases, run};
use crate::compare::{as_f64, assert_equal, assert_same_bits, exact, integers, to_f32, with_threads};
use crate::executors;
use crate::stored::{SHORT, assert_twice_plain};

/// The types that activations have on a device.
fn dtypes(device: &Device) -> &'static [DType] {
    if *device == Device::Cpu { &[DType::F32] } else { &SHORT }
}

/// Runs `test` in all modes of the emulator where that is quick, in one elsewhere.
fn in_modes(device: &Device, op: &Gram, dtype: DType, test: impl Fn(&str)) {
    match op.input().num_elements() * op.c_in <= 200_000 && dtype == DType::Bf16 {
        true => executors::in_all_modes(device, test),
        false => test(&device.to_string()),
    }
}

/// Row `row` of `num` rows of `c` values, of each split that has clips.
fn rows(op: &Gram, values: &[f64], num: usize, row: usize) -> Vec<f64> {
    let c = op.norm.shape.c;
    (0..op.norm.splits_used()).flat_map(|s| values[(s * num + row) * c..][..c].to_vec()).collect()
}

/// Means, or covariances, of each split that has clips.
fn of_moments(op: &Gram, values: &[f64], is_mean: bool) -> Vec<f64> {
    let (len, c) = (op.moments_of_split(), op.c_in);
    let part = if is_mean { 0..c } else { c..len };
    values.chunks(len).take(op.norm.splits_used()).flat_map(|split| split[part.clone()].to_vec()).collect()
}

fn to_f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

/// Fails unless the results are as good as plain f32 arithmetic on the values as stored.
fn check_values(what: &str, op: &Gram, o: &Operands, got: &Results) {
    let (x, w) = (o.seen(op), as_f64(&o.w));
    let want = reference::moments(op, exact, &x);
    let plain = reference::moments_in_one_pass(op, to_f32, &x);
    let got_moments = as_f64(&got.moments);
    for (part, is_mean) in [("means", true), ("covariances", false)] {
        let [got, plain, want] = [&got_moments, &plain, &want].map(|values| of_moments(op, values, is_mean));
        assert_twice_plain(&format!("{what}: {part}"), DType::F32, &to_f32s(&got), &plain, &want);
    }
    let got_stats = as_f64(&got.stats);
    let [want, plain] =
        [(exact as fn(f64) -> f64, &want), (to_f32, &plain)].map(|(r, m)| reference::statistics(op, r, m, &w));
    for (row, part) in ["mean", "inverse deviation", "variance"].into_iter().enumerate() {
        let [got, plain, want] = [&got_stats, &plain, &want].map(|values| rows(op, values, 3, row));
        assert_twice_plain(&format!("{what}: {part}"), DType::F32, &to_f32s(&got), &plain, &want);
    }
    let table = |round| batch_norm::scale_shift(&op.norm, round, &got_stats, &as_f64(&o.gamma), &as_f64(&o.beta));
    let (got, plain, want) = (as_f64(&got.scale_shift), table(to_f32), table(exact));
    for row in 0..2 {
        let [got, plain, want] = [&got, &plain, &want].map(|values| rows(op, values, 2, row));
        assert_twice_plain(&format!("{what}: row {row} of scale_shift"), DType::F32, &to_f32s(&got), &plain, &want);
    }
}

#[test]
fn cases_agree_with_the_reference() {
    for device in executors::all() {
        for (case, dtype) in cases().iter().flat_map(|case| dtypes(&device).iter().map(move |dtype| (case, *dtype))) {
            let (op, o) = (case.op(), Operands::random(&device, dtype, case));
            in_modes(&device, &op, dtype, |mode| {
                let what = format!("{} {dtype:?} on {mode}", case.name);
                let got = run(&device, case, &o);
                check_values(&what, &op, &o, &got);
                assert_eq!(got.skip, 0, "{what}");
                for ((part, got), (_, again)) in got.parts().into_iter().zip(run(&device, case, &o).parts()) {
                    assert_same_bits(&format!("{what}: {part}, again"), again, got);
                }
            });
        }
    }
}

/// Whole numbers, as many of them as a power of two: no sum, mean or product is rounded.
#[test]
fn whole_numbers_are_exact() {
    for device in executors::all() {
        for (name, input, c_out, splits) in [
            ("narrow", [2, 2, 4, 4, 8], 8, 2),
            ("one_tile", [1, 4, 8, 8, 32], 24, 1),
            ("panels", [2, 1, 8, 16, 72], 72, 2),
        ] {
            let case = Case::new(name, input, c_out, splits);
            let op = case.op();
            for &dtype in dtypes(&device) {
                let o = Operands {
                    x: integers(&format!("{name}/x"), op.input().num_elements(), 4),
                    w: integers(&format!("{name}/w"), c_out * op.c_in, 2),
                    before: None,
                    ..Operands::random(&device, dtype, &case)
                };
                executors::in_all_modes(&device, |mode| {
                    let (what, got) = (format!("{name} {dtype:?} on {mode}"), run(&device, &case, &o));
                    let moments = reference::moments_in_one_pass(&op, exact, &o.seen(&op));
                    assert_equal(&format!("{what}: moments"), &got.moments, &moments);
                    let stats = reference::statistics(&op, exact, &moments, &as_f64(&o.w));
                    let (got, want) = (rows(&op, &as_f64(&got.stats), 3, 0), rows(&op, &stats, 3, 0));
                    assert_equal(&format!("{what}: mean"), &to_f32s(&got), &want);
                });
            }
        }
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_gaps() {
    for case in cases() {
        let o = Operands::random(&Device::Cpu, DType::F32, &case);
        let want = run(&Device::Cpu, &case, &o);
        for threads in [1, 2, 5] {
            let got = with_threads(threads, || run(&Device::Cpu, &Case { x: [3, 5], ..case.clone() }, &o));
            for ((part, got), (_, want)) in got.parts().into_iter().zip(want.parts()) {
                assert_same_bits(&format!("{}: {part}, {threads} threads", case.name), got, want);
            }
        }
    }
}

/// Splits in two calls have the bits of one.
#[test]
fn a_part_has_the_bits_of_the_whole() {
    for device in executors::all() {
        let dtype = dtypes(&device)[0];
        let whole = Case::new("parts", [5, 2, 5, 6, 24], 40, 3);
        let (op, o) = (whole.op(), Operands::random(&device, dtype, &whole));
        let want = run(&device, &whole, &o);
        for (first, clips) in [(0, 2), (2, 3)] {
            let part = Part { batch_clips: 5, batch_splits: 3, first_clip: first };
            let (per_clip, splits, before) = (op.input().num_elements() / 5, part.splits_of(clips), first / 2);
            let mut case = Case::new("parts", [clips, 2, 5, 6, 24], 40, splits);
            case.part = Some(part);
            let x = o.x[first * per_clip..(first + clips) * per_clip].to_vec();
            let got = run(&device, &case, &Operands { x, ..o.clone() });
            for ((name, got), (_, want)) in got.parts().into_iter().zip(want.parts()) {
                let of_split = want.len() / op.norm.splits;
                let want = &want[before * of_split..(before + splits) * of_split];
                assert_same_bits(&format!("{name} of {clips} clips from {first} on {device}"), got, want);
            }
        }
    }
}

/// What is not a number shows in what depends on it, and sets the flag.
#[test]
fn what_is_not_finite_shows() {
    for device in executors::all() {
        let dtype = dtypes(&device)[0];
        let case = Case::new("nan", [2, 1, 4, 5, 16], 8, 2);
        let (op, mut o) = (case.op(), Operands::random(&device, dtype, &case));
        for value in [f32::NAN, f32::INFINITY] {
            let at = o.x.len() - 3;
            o.x[at] = value;
            let got = run(&device, &case, &o);
            assert_eq!(got.skip, 1, "{value} on {device}");
            let (len, c_out) = (op.moments_of_split(), op.norm.shape.c);
            assert!(got.moments[..len].iter().chain(&got.stats[..3 * c_out]).all(|v| v.is_finite()), "the other split");
            assert!(got.stats[4 * c_out..5 * c_out].iter().all(|v| v.is_nan()), "{:?}", got.stats);
        }
    }
}
