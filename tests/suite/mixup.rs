//! Mixup on every executor: exact values, the reference, odd batches, gaps, boxes, refusals.

use vcycle::device::{DType, Device};
use vcycle::ops::mixup::{self, Mixup, reference};
use vcycle::shape::ActivationShape;

use crate::compare::{as_f64, assert_same_bits, assert_twice_plain, exact, integers, to_f32};
use crate::golden::fill;
use crate::stored::SHORT;
use crate::{executors, stored};

fn dtypes(device: &Device) -> Vec<DType> {
    if *device == Device::Cpu { vec![DType::F32] } else { [&[DType::F32], &SHORT[..]].concat() }
}

/// Shapes with and without vectors of four, odd and even batches, more elements than a block has threads.
const SHAPES: [[usize; 5]; 4] = [[2, 1, 3, 4, 3], [5, 2, 4, 3, 4], [4, 3, 9, 8, 4], [3, 1, 2, 2, 5]];

/// Halves and quarters of small integers are exact: results must be equal.
#[test]
fn shares_of_small_integers_are_exact_on_every_executor() {
    for device in executors::all() {
        let stream = device.stream().unwrap();
        for (i, [n, t, h, w, c]) in SHAPES.into_iter().enumerate() {
            let shape = ActivationShape::new(n, t, h, w, c);
            let x = integers("mixup", shape.num_elements(), 31);
            let gaps = [[0, 0], [4, 8], [0, 4], [1, 2]][i];
            for op in [
                Mixup { keep: 0.75, rows: 0..h, columns: 0..w },
                Mixup { keep: 0.0, rows: 1..2, columns: 1..w },
                Mixup { keep: 0.5, rows: 0..h - 1, columns: 0..1 },
                Mixup { keep: 1.0, rows: 0..h, columns: 0..w },
                Mixup { keep: 0.0, rows: 1..1, columns: 0..w },
            ] {
                let want: Vec<f32> =
                    reference::blend(&op, exact, shape, &as_f64(&x)).into_iter().map(|v| v as f32).collect();
                for dtype in dtypes(&device) {
                    let test = |mode: &str| {
                        let clips = stored::tensor(&device, dtype, shape, &x, gaps);
                        mixup::blend(&stream, &op, &clips).unwrap();
                        let got = stored::read_tensor(&clips, gaps);
                        assert_same_bits(&format!("{mode} {dtype:?} {shape} {op:?}"), &got, &want);
                    };
                    if i == 1 { executors::in_all_modes(&device, test) } else { test(&device.to_string()) }
                }
            }
        }
    }
}

#[test]
fn any_share_is_as_good_as_plain_f32() {
    let shape = ActivationShape::new(6, 2, 5, 7, 4);
    let x = fill::f32("mixup/x", shape.num_elements(), 2.0, 0.0);
    let op = Mixup { keep: 0.3, rows: 1..5, columns: 2..6 };
    let of = |round| reference::blend(&op, round, shape, &as_f64(&x));
    for device in executors::all() {
        let clips = stored::tensor(&device, DType::F32, shape, &x, [0, 0]);
        mixup::blend(&device.stream().unwrap(), &op, &clips).unwrap();
        let got = stored::read_tensor(&clips, [0, 0]);
        assert_twice_plain(&device.to_string(), &got, &of(to_f32), &of(exact));
    }
}

#[test]
fn what_does_not_fit_is_refused_everywhere() {
    for device in executors::all() {
        let shape = ActivationShape::new(2, 1, 3, 4, 3);
        let clips = stored::tensor(&device, DType::F32, shape, &vec![0.0; shape.num_elements()], [0, 0]);
        let op = Mixup { keep: 0.5, rows: 0..3, columns: 0..4 };
        let refused = |op: Mixup, words: &str| {
            let error = mixup::blend(&device.stream().unwrap(), &op, &clips).unwrap_err().to_string();
            assert!(error.contains(words), "{device}: {error}");
        };
        refused(Mixup { keep: 1.5, ..op.clone() }, "mixup: keep must be in [0, 1], got 1.5");
        refused(Mixup { keep: f32::NAN, ..op.clone() }, "keep must be in [0, 1], got NaN");
        refused(Mixup { rows: 0..4, ..op.clone() }, "rows must lie in 0..3, got 0..4");
        refused(Mixup { columns: 5..5, ..op.clone() }, "columns must lie in 0..4, got 5..5");
    }
}
