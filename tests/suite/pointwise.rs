//! copy, add, fill, cast.

use proptest::prelude::*;
use vcycle::device::{DType, Device, Tensor};
use vcycle::ops::pointwise;
use vcycle::shape::ActivationShape;

use crate::compare::{Place, assert_same_bits, integers, read, with_threads};
use crate::golden::fill;
use crate::{executors, stored};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_gaps(n in 1usize..4, t in 1usize..3, w in 1usize..20, c in 1usize..70, gaps in prop::array::uniform4(0usize..4)) {
        let shape = ActivationShape::new(n, t, 3, w, c);
        let stream = Device::Cpu.stream().unwrap();
        let [from, to] = [0, 2].map(|i| Place { before: gaps[i], after: gaps[i + 1] });
        let (x, y) = (integers("x", shape.num_elements(), 100), integers("y", shape.num_elements(), 100));
        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        let (input, output) = (from.tensor(shape, &x), to.tensor(shape, &y));
        pointwise::add(&stream, &input, &output).unwrap();
        assert_same_bits("add", &read(&output, to), &sum);
        pointwise::copy(&stream, &input, &output).unwrap();
        assert_same_bits("copy", &read(&output, to), &x);
        pointwise::fill(&stream, &output, 2.5).unwrap();
        assert_same_bits("fill", &read(&output, to), &vec![2.5; x.len()]);
        assert_same_bits("input", &read(&input, from), &x);
    }
}

#[test]
fn several_blocks_and_any_number_of_threads() {
    let shape = ActivationShape::new(2, 4, 31, 29, 48);
    let stream = Device::Cpu.stream().unwrap();
    let x = integers("x", shape.num_elements(), 100);
    let sum: Vec<f32> = x.iter().map(|x| 3.0 + x).collect();
    for threads in [1, 2, 5] {
        let (input, output) = (Place::DENSE.tensor(shape, &x), Place { before: 0, after: 16 }.garbage(shape));
        with_threads(threads, || {
            pointwise::fill(&stream, &output, 3.0).unwrap();
            pointwise::add(&stream, &input, &output).unwrap();
        });
        assert_same_bits("add", &output.read::<f32>().unwrap(), &sum);
    }
}

#[test]
fn the_same_memory_twice() {
    let shape = ActivationShape::new(1, 1, 2, 2, 3);
    let stream = Device::Cpu.stream().unwrap();
    let x = integers("x", 12, 100);
    let tensor = Place::DENSE.tensor(shape, &x);
    pointwise::copy(&stream, &tensor, &tensor).unwrap();
    assert_same_bits("copy", &tensor.read::<f32>().unwrap(), &x);
    pointwise::add(&stream, &tensor, &tensor).unwrap();
    assert_same_bits("add", &tensor.read::<f32>().unwrap(), &x.iter().map(|x| x + x).collect::<Vec<_>>());
}

#[test]
fn what_does_not_fit_is_refused() {
    let stream = Device::Cpu.stream().unwrap();
    let (a, b) = (ActivationShape::new(1, 1, 2, 2, 3), ActivationShape::new(1, 1, 2, 2, 4));
    let (x, y) = (Place::DENSE.garbage(a), Place::DENSE.garbage(b));
    let want = "copy: input must be [1,1,2,2,4], got [1,1,2,2,3]";
    assert_eq!(pointwise::copy(&stream, &x, &y).unwrap_err().to_string(), want);
    let empty = Place::DENSE.garbage(ActivationShape::new(0, 1, 2, 2, 3));
    assert_eq!(pointwise::fill(&stream, &empty, 0.0).unwrap_err().to_string(), "fill: output is empty: [0,1,2,2,3]");
}

/// Shapes and gaps that take vectors, that are misaligned, that leave threads idle.
#[test]
fn kernels_move_every_type() {
    let cases = [
        ([2, 3, 5, 7, 8], [0, 0], [0, 8]),
        ([1, 2, 3, 4, 64], [8, 0], [16, 8]),
        ([3, 1, 2, 5, 20], [0, 0], [1, 3]),
        ([2, 1, 3, 3, 16], [1, 7], [0, 0]),
        ([1, 1, 1, 1, 3], [0, 2], [0, 0]),
        ([1, 3, 7, 5, 320], [0, 0], [0, 0]),
    ];
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        for ([n, t, h, w, c], from, to) in cases {
            let shape = ActivationShape::new(n, t, h, w, c);
            let (x, y) = (integers("x", shape.num_elements(), 100), integers("y", shape.num_elements(), 100));
            let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            for dtype in [DType::Bf16, DType::F16, DType::F32] {
                let test = |mode: &str| {
                    let what = format!("{shape} {dtype:?} on {mode}");
                    let input = stored::tensor(&device, dtype, shape, &x, from);
                    let output = stored::tensor(&device, dtype, shape, &y, to);
                    let got = |output: &Tensor| stored::read_tensor(output, to);
                    pointwise::add(&stream, &input, &output).unwrap();
                    assert_same_bits(&format!("add {what}"), &got(&output), &sum);
                    pointwise::copy(&stream, &input, &output).unwrap();
                    assert_same_bits(&format!("copy {what}"), &got(&output), &x);
                    pointwise::add(&stream, &output, &output).unwrap();
                    let twice: Vec<f32> = x.iter().map(|x| x + x).collect();
                    assert_same_bits(&format!("add to itself {what}"), &got(&output), &twice);
                    pointwise::fill(&stream, &output, 2.5).unwrap();
                    assert_same_bits(&format!("fill {what}"), &got(&output), &vec![2.5; x.len()]);
                    assert_same_bits(&format!("input {what}"), &stored::read_tensor(&input, from), &x);
                };
                match dtype {
                    DType::Bf16 if x.len() < 4000 => executors::in_all_modes(&device, test),
                    _ => test(&device.to_string()),
                }
            }
        }
    }
}

#[test]
fn casts_round_once_and_scale() {
    let pairs = [
        (DType::F32, DType::F32),
        (DType::F32, DType::Bf16),
        (DType::F32, DType::F16),
        (DType::Bf16, DType::F32),
        (DType::F16, DType::F32),
    ];
    for device in executors::all() {
        let stream = device.stream().unwrap();
        for (from, to) in pairs {
            // Whole threads of eight, a tail, and an array that begins in the middle of a vector.
            for (len, first) in [(4096, 0), (2051, 0), (77, 1), (1, 0)] {
                let values: Vec<f32> = fill::f32("cast", len + first, 300.0, 0.0);
                let input = stored::slice(&device, from, &values).part(first, len).unwrap();
                let factor = stored::slice(&device, DType::F32, &[0.37]);
                for scale in [None, Some(&factor)] {
                    let output = stored::garbage(&device, to, len);
                    pointwise::cast(&stream, &input, &output, scale).unwrap();
                    let factor = if scale.is_some() { 0.37f32 } else { 1.0 };
                    let want = |v: &f32| {
                        let product = stored::round(from, f64::from(*v)) as f32 * factor;
                        stored::round(to, f64::from(product)) as f32
                    };
                    let want: Vec<f32> = values[first..].iter().map(want).collect();
                    assert_same_bits(&format!("{from:?} to {to:?} on {device}"), &stored::read(&output), &want);
                }
            }
        }
        let (short, long) = (stored::garbage(&device, DType::F32, 3), stored::garbage(&device, DType::Bf16, 4));
        let message = pointwise::cast(&stream, &short, &long, None).unwrap_err().to_string();
        assert_eq!(message, "cast: output must have 3 elements, got 4");
        let message = pointwise::cast(&stream, &long, &long.clone(), None).unwrap_err().to_string();
        assert!(message.contains("Bf16"), "{message}");
    }
}
