//! Softmax and cross-entropy: golden file, values against the reference, extreme logits, gaps, memory in place, refusals.
//! `everywhere`: every loss on every executor.

mod everywhere;

use proptest::prelude::*;
use vcycle::device::Device;
use vcycle::ops::softmax_loss::{self, reference};
use vcycle::shape::ActivationShape;

use crate::compare::{
    Place, as_f64, assert_gradient, assert_same_bits, assert_twice_plain, exact, garbage, read, slice, to_f32,
};
use crate::executors;
use crate::golden::{self, Golden, fill};

const DENSE: [Place; 2] = [Place::DENSE; 2];

fn logits_shape(clips: usize, classes: usize) -> ActivationShape {
    ActivationShape::new(clips, 1, 1, 1, classes)
}

/// Loss and gradient. `places`: of the logits, of the gradient.
fn run(classes: usize, logits: &[f32], labels: &[u32], scale: f32, places: [Place; 2]) -> (Vec<f32>, Vec<f32>) {
    let shape = logits_shape(labels.len(), classes);
    let (x, grad, loss) = (places[0].tensor(shape, logits), places[1].garbage(shape), garbage(labels.len()));
    let stream = Device::Cpu.stream().unwrap();
    softmax_loss::cross_entropy(&stream, &x, &slice(labels), scale, &loss, &grad).unwrap();
    (loss.read().unwrap(), read(&grad, places[1]))
}

fn softmax(classes: usize, logits: &[f32]) -> Vec<f32> {
    let shape = logits_shape(logits.len() / classes, classes);
    let (x, y) = (Place::DENSE.tensor(shape, logits), Place::DENSE.garbage(shape));
    softmax_loss::softmax(&Device::Cpu.stream().unwrap(), &x, &y).unwrap();
    y.read().unwrap()
}

fn labels(name: &str, n: usize, classes: usize) -> Vec<u32> {
    fill::int(name, n, classes as u64).into_iter().map(|l| l as u32).collect()
}

#[test]
fn random_values_are_as_good_as_plain_f32() {
    for (clips, classes, size) in [(4, 10, 3.0), (16, 400, 5.0), (8, 20, 30.0), (3, 2, 0.01), (5, 1, 1.0)] {
        let name = format!("{clips}x{classes}x{size}");
        let logits = fill::f32(&format!("{name}/logits"), clips * classes, size, 0.0);
        let labels = labels(&format!("{name}/labels"), clips, classes);
        let scale = 1.0 / clips as f32;
        let (loss, grad) = run(classes, &logits, &labels, scale, DENSE);
        let of = |round| reference::cross_entropy(round, classes, &as_f64(&logits), &labels, f64::from(scale));
        let (plain, want) = (of(to_f32), of(exact));
        assert_twice_plain(&format!("{name}: loss"), &loss, &plain.0, &want.0);
        assert_twice_plain(&format!("{name}: gradient"), &grad, &plain.1, &want.1);
        let probabilities = |round| reference::softmax(round, classes, &as_f64(&logits));
        let got = softmax(classes, &logits);
        assert_twice_plain(&format!("{name}: softmax"), &got, &probabilities(to_f32), &probabilities(exact));
    }
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    let (logits, labels) = (as_f64(&fill::f32("derivative", 40, 3.0, 0.0)), labels("derivative", 4, 10));
    let of = |x: &[f64]| reference::cross_entropy(exact, 10, x, &labels, 0.25);
    assert_gradient("cross_entropy", &logits, &of(&logits).1, |x| 0.25 * of(x).0.iter().sum::<f64>());
}

#[test]
fn equal_logits_are_exact() {
    // e^0 / 4 is exact; the loss is ln 4 rounded once.
    let (loss, grad) = run(4, &[7.5; 8], &[2, 0], 0.5, DENSE);
    assert_eq!(loss, [4f64.ln() as f32; 2]);
    assert_eq!(grad, [0.125, 0.125, -0.375, 0.125, -0.375, 0.125, 0.125, 0.125]);
}

#[test]
fn large_logits_stay_finite() {
    let (loss, grad) = run(3, &[3e38, -3e38, 0.0, -1e4, 1e4, 0.0], &[0, 0], 1.0, DENSE);
    assert_eq!(loss, [0.0, 2e4]);
    assert_eq!(grad, [0.0, 0.0, 0.0, -1.0, 1.0, 0.0]);
}

#[test]
fn a_certain_answer_keeps_its_digits() {
    // The label's probability rounds to 1, yet loss and gradient are e^-20, not zero.
    let (loss, grad) = run(2, &[20.0, 0.0], &[0], 1.0, DENSE);
    let want = (-20f64).exp();
    for value in [loss[0], -grad[0], grad[1]] {
        assert!((f64::from(value) / want - 1.0).abs() < 1e-6, "{value:e} is not {want:e}");
    }
}

#[test]
fn what_is_not_finite_shows_in_the_loss_of_its_clip_alone() {
    for bad in [f32::NAN, f32::INFINITY] {
        let (loss, _) = run(2, &[0.0, bad, 1.0, 1.0], &[0, 0], 1.0, DENSE);
        assert!(!loss[0].is_finite() && loss[1].is_finite(), "{bad}: {loss:?}");
    }
    let (loss, _) = run(2, &[f32::NEG_INFINITY; 2], &[0], 1.0, DENSE);
    assert!(!loss[0].is_finite(), "{loss:?}");
}

#[test]
fn memory_in_place() {
    let (logits, labels) = (fill::f32("place", 40, 3.0, 0.0), labels("place", 4, 10));
    let (want_loss, want_grad) = run(10, &logits, &labels, 0.25, DENSE);
    let place = Place { before: 1, after: 3 };
    let (x, loss) = (place.tensor(logits_shape(4, 10), &logits), garbage(4));
    let stream = Device::Cpu.stream().unwrap();
    softmax_loss::cross_entropy(&stream, &x, &slice(&labels), 0.25, &loss, &x).unwrap();
    assert_same_bits("gradient in place", &read(&x, place), &want_grad);
    assert_same_bits("loss", &loss.read::<f32>().unwrap(), &want_loss);
    let x = place.tensor(logits_shape(4, 10), &logits);
    softmax_loss::softmax(&stream, &x, &x).unwrap();
    assert_same_bits("softmax in place", &read(&x, place), &softmax(10, &logits));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn gaps_do_not_matter(clips in 1usize..5, classes in 1usize..30, gaps in prop::array::uniform4(0usize..4)) {
        let (logits, labels) = (fill::f32("gaps", clips * classes, 3.0, 0.0), labels("gaps", clips, classes));
        let places = [0, 2].map(|i| Place { before: gaps[i], after: gaps[i + 1] });
        let (got, want) = (run(classes, &logits, &labels, 1.0, places), run(classes, &logits, &labels, 1.0, DENSE));
        assert_same_bits("loss", &got.0, &want.0);
        assert_same_bits("gradient", &got.1, &want.1);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let stream = Device::Cpu.stream().unwrap();
    let (x, loss) = (Place::DENSE.garbage(logits_shape(2, 4)), garbage(2));
    let refused = |labels: &[u32]| {
        softmax_loss::cross_entropy(&stream, &x, &slice(labels), 1.0, &loss, &x).unwrap_err().to_string()
    };
    assert_eq!(refused(&[3, 4]), "softmax_loss: labels[1] is 4, must be less than 4 (classes)");
    assert_eq!(refused(&[u32::MAX, 0]), "softmax_loss: labels[0] is 4294967295, must be less than 4 (classes)");
    assert_eq!(refused(&[1]), "softmax_loss: labels must have 2 elements, got 1");
    let map = Place::DENSE.garbage(ActivationShape::new(2, 1, 2, 1, 4));
    let error = softmax_loss::cross_entropy(&stream, &map, &slice(&[0u32; 2]), 1.0, &loss, &map).unwrap_err();
    assert_eq!(error.to_string(), "softmax_loss: logits must be [n,1,1,1,classes], got [2,1,2,1,4]");
}

#[test]
fn golden_loss() {
    let Some(golden) = golden::open("ops/loss.json") else { return };
    let cases = golden.json.as_array().expect("cases");
    for case in cases {
        let name = case["case"].as_str().expect("case");
        match case["params"]["kind"].as_str().expect("kind") {
            "cross_entropy" => golden_cross_entropy(&golden, case, name),
            "bce_with_logits" => everywhere::golden_binary_cross_entropy(&golden, case, name),
            other => panic!("{name}: loss {other:?}"),
        }
    }
    golden.passed(cases.len());
    executors::with_kernels().iter().for_each(|device| golden.passed_on(device, cases.len()));
}

fn golden_cross_entropy(golden: &Golden, case: &serde_json::Value, name: &str) {
    let (dims, logits) = golden::input(&case["inputs"]["logits"]);
    let labels = golden::dims(&case["inputs"]["labels"]["values"]);
    let labels: Vec<u32> = labels.iter().map(|&l| l as u32).collect();
    let (clips, classes) = (dims[0], dims[1]);
    let check = |loss: &[f32], grad: &[f32], softmax: &[f32]| {
        let mean = as_f64(loss).iter().sum::<f64>() / clips as f64;
        golden.assert_close(name, &case["outputs"]["loss"], &[mean], 1e-5);
        golden.assert_close(name, &case["outputs"]["dlogits"], &as_f64(grad), 1e-5);
        golden.assert_close(name, &case["outputs"]["softmax"], &as_f64(softmax), 1e-5);
    };
    let (loss, grad) = run(classes, &logits, &labels, 1.0 / clips as f32, DENSE);
    check(&loss, &grad, &softmax(classes, &logits));
    for device in executors::with_kernels() {
        let (loss, grad, softmax) = everywhere::cross_entropy_on(&device, classes, &logits, &labels);
        check(&loss, &grad, &softmax);
    }
}
