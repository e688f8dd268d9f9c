//! Every loss on every executor, with gradients of every type, counters, and labels that are no class.

use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::softmax_loss::{self, Extras, SKIP_BIT, Targets, reference};
use vcycle::shape::ActivationShape;

use super::{labels, logits_shape};
use crate::compare::{as_f64, assert_gradient, exact, to_f32};
use crate::executors;
use crate::golden::{self, fill};
use crate::stored;

fn grad_dtypes(device: &Device) -> Vec<DType> {
    if *device == Device::Cpu { vec![DType::F32] } else { vec![DType::F32, DType::Bf16, DType::F16] }
}

/// Which loss, against what.
enum Against<'a> {
    Labels(&'a [u32], f32),
    Soft(&'a [f32]),
    Binary(&'a [f32]),
}

/// What a loss leaves: losses, gradient, counters.
struct Left {
    loss: Vec<f32>,
    grad: Vec<f32>,
    counters: Vec<u32>,
}

fn run(device: &Device, classes: usize, logits: &[f32], against: &Against, scale: f32, dtype: DType) -> Left {
    let shape = logits_shape(logits.len() / classes, classes);
    let stream = device.stream().unwrap();
    let x = stored::tensor(device, DType::F32, shape, logits, [1, 0]);
    let grad = stored::tensor(device, dtype, shape, &vec![f32::NAN; logits.len()], [2, 3]);
    let loss = stored::garbage(device, DType::F32, shape.n);
    let counters = Buffer::from_host(device, &[10u32, 20, 30, 40]).unwrap();
    // Half of the scale comes from the device.
    let half = stored::slice(device, DType::F32, &[0.5]);
    let skip = Buffer::from_host(device, &[1u32]).unwrap();
    let extras = Extras { counters: Some(&counters), loss_scale: Some(&half), skip: Some(&skip) };
    let soft = |values: &[f32]| stored::tensor(device, DType::F32, shape, values, [0, 5]);
    let cross_entropy = |targets: &Targets| {
        softmax_loss::cross_entropy_with(&stream, &x, targets, 2.0 * scale, &loss, &grad, &extras).unwrap();
    };
    match against {
        Against::Labels(labels, smoothing) => {
            let labels = Buffer::from_host(device, labels).unwrap();
            cross_entropy(&Targets::Labels { labels: &labels, smoothing: *smoothing });
        }
        Against::Soft(targets) => cross_entropy(&Targets::Soft(&soft(targets))),
        Against::Binary(targets) => {
            let targets = soft(targets);
            let extras = Extras { counters: None, ..extras };
            softmax_loss::binary_cross_entropy(&stream, &x, &targets, 2.0 * scale, &loss, &grad, &extras).unwrap();
        }
    }
    let loss: Vec<f32> = loss.read().unwrap();
    let is_bad = loss.iter().any(|l| !l.is_finite());
    // Batch norm's bit stays.
    assert_eq!(skip.read::<u32>().unwrap()[0], if is_bad { 1 | SKIP_BIT } else { 1 }, "{device}: {loss:?}");
    Left { loss, grad: stored::read_tensor(&grad, [2, 3]), counters: counters.read().unwrap() }
}

/// Losses, gradient of their mean and probabilities.
pub fn cross_entropy_on(
    device: &Device,
    classes: usize,
    logits: &[f32],
    labels: &[u32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let left = run(device, classes, logits, &Against::Labels(labels, 0.0), 1.0 / labels.len() as f32, DType::F32);
    (left.loss, left.grad, probabilities(device, classes, logits, false, false))
}

/// Probabilities that add up to 1, some of them 0.
fn soft_targets(clips: usize, classes: usize) -> Vec<f32> {
    let mut targets: Vec<f32> =
        fill::f32("soft", clips * classes, 1.0, 0.0).into_iter().map(|v| if v < 0.0 { 0.0 } else { v }).collect();
    for row in targets.chunks_mut(classes) {
        row[classes / 2] += 0.5;
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
    targets
}

fn expected(
    round: fn(f64) -> f64,
    classes: usize,
    logits: &[f32],
    against: &Against,
    scale: f32,
) -> (Vec<f64>, Vec<f64>) {
    let (x, scale) = (as_f64(logits), f64::from(scale));
    match against {
        Against::Labels(labels, 0.0) => reference::cross_entropy(round, classes, &x, labels, scale),
        Against::Labels(labels, smoothing) => {
            let targets = reference::smooth(round, classes, labels, f64::from(*smoothing));
            reference::soft_cross_entropy(round, classes, &x, &targets, scale)
        }
        Against::Soft(t) => reference::soft_cross_entropy(round, classes, &x, &as_f64(t), scale),
        Against::Binary(t) => reference::binary_cross_entropy(round, classes, &x, &as_f64(t), scale),
    }
}

#[test]
fn cases_agree_with_the_reference_on_every_executor() {
    // One class; fewer classes than threads, and more; logits that leave one class certain.
    let cases = [(3, 1, 1.0), (4, 10, 3.0), (2, 400, 5.0), (2, 37, 40.0), (1, 1003, 1.0)];
    for device in executors::all() {
        for (clips, classes, size) in cases {
            let logits = fill::f32(&format!("{clips}x{classes}/logits"), clips * classes, size, 0.0);
            let (labels, soft) = (labels("everywhere", clips, classes), soft_targets(clips, classes));
            let scale = 0.75;
            for (what, against) in [
                ("labels", Against::Labels(&labels, 0.0)),
                ("smoothed", Against::Labels(&labels, 0.1)),
                ("soft", Against::Soft(&soft)),
                ("binary", Against::Binary(&soft)),
            ] {
                let [want, plain] = [exact, to_f32].map(|round| expected(round, classes, &logits, &against, scale));
                let test = |mode: &str| {
                    for dtype in grad_dtypes(&device) {
                        let name = format!("{mode} {what} {clips}x{classes}x{size}");
                        let got = run(&device, classes, &logits, &against, scale, dtype);
                        stored::assert_twice_plain(&format!("{name}: loss"), DType::F32, &got.loss, &plain.0, &want.0);
                        stored::assert_twice_plain(&format!("{name}: gradient"), dtype, &got.grad, &plain.1, &want.1);
                        let again = run(&device, classes, &logits, &against, scale, dtype);
                        assert!(again.loss == got.loss && again.grad == got.grad, "{name}: two runs differ");
                    }
                };
                if classes == 37 { executors::in_all_modes(&device, test) } else { test(&device.to_string()) }
            }
        }
    }
}

#[test]
fn the_reference_gradients_are_the_derivatives() {
    let (logits, soft) = (as_f64(&fill::f32("derivative", 40, 3.0, 0.0)), as_f64(&soft_targets(4, 10)));
    type Loss = fn(fn(f64) -> f64, usize, &[f64], &[f64], f64) -> (Vec<f64>, Vec<f64>);
    for (what, loss) in
        [("soft", reference::soft_cross_entropy as Loss), ("binary", reference::binary_cross_entropy as Loss)]
    {
        let of = |x: &[f64]| loss(exact, 10, x, &soft, 0.25);
        assert_gradient(what, &logits, &of(&logits).1, |x| 0.25 * of(x).0.iter().sum::<f64>());
    }
}

#[test]
fn counters_add_up_the_recognised_clips() {
    // Ranks 0, 4, 5, 1 (of two equal logits the lower class is the larger), none (NaN), 1 (a NaN is larger).
    let rows = [
        ([9.0, 1.0, 2.0, 3.0, 4.0, 5.0], 0),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 1.0], 4),
        ([9.0, 8.0, 7.0, 6.0, 5.0, 1.0], 5),
        ([1.0, 3.0, 3.0, 0.0, 0.0, 0.0], 2),
        ([f32::NAN, 3.0, 3.0, 0.0, 0.0, 0.0], 0),
        ([f32::NAN, 3.0, 2.0, 0.0, 0.0, 0.0], 1),
    ];
    let logits: Vec<f32> = rows.iter().flat_map(|row| row.0).collect();
    let labels: Vec<u32> = rows.iter().map(|row| row.1).collect();
    let soft: Vec<f32> = labels.iter().flat_map(|&l| (0..6).map(move |c| if c == l { 0.6 } else { 0.08 })).collect();
    for device in executors::all() {
        for against in [Against::Labels(&labels, 0.0), Against::Labels(&labels, 0.1), Against::Soft(&soft)] {
            let left = run(&device, 6, &logits, &against, 1.0, DType::F32);
            assert_eq!(left.counters, [11, 24, 36, 40], "{device}");
            assert!(left.loss[3].is_finite() && left.loss[4].is_nan() && left.loss[5].is_nan(), "{device}");
        }
    }
}

/// A kernel cannot refuse a label: it marks the clip and counts it.
#[test]
fn a_label_that_is_no_class_shows() {
    for device in executors::with_kernels() {
        executors::in_all_modes(&device, |mode| {
            let against = Against::Labels(&[1, 3, u32::MAX, 0], 0.0);
            let left = run(&device, 3, &[1.0; 12], &against, 1.0, DType::Bf16);
            assert_eq!(left.counters[2..], [34, 42], "{mode}");
            for (i, grad) in left.grad.chunks(3).enumerate() {
                let is_bad = i == 1 || i == 2;
                assert!(left.loss[i].is_nan() == is_bad && grad.iter().all(|g| g.is_nan() == is_bad), "{mode}: {i}");
            }
        });
    }
}

#[test]
fn exact_values_digits_and_extremes_on_every_executor() {
    for device in executors::all() {
        let run = |classes, logits: &[f32], against: &Against| run(&device, classes, logits, against, 1.0, DType::F32);
        let left = run(4, &[7.5; 8], &Against::Labels(&[2, 0], 0.0));
        assert!(left.loss.iter().all(|l| (f64::from(*l) - 4f64.ln()).abs() < 2e-7), "{device}: {:?}", left.loss);
        assert_eq!(left.grad, [0.25, 0.25, -0.75, 0.25, -0.75, 0.25, 0.25, 0.25], "{device}");
        let left = run(3, &[3e38, -3e38, 0.0, -1e4, 1e4, 0.0], &Against::Labels(&[0, 0], 0.0));
        assert_eq!((left.loss, left.grad), (vec![0.0, 2e4], vec![0.0, 0.0, 0.0, -1.0, 1.0, 0.0]), "{device}");
        let left = run(2, &[20.0, 0.0], &Against::Labels(&[0], 0.0));
        let want = (-20f64).exp();
        for value in [left.loss[0], -left.grad[0], left.grad[1]] {
            assert!((f64::from(value) / want - 1.0).abs() < 1e-6, "{device}: {value:e} is not {want:e}");
        }
        let left = run(2, &[30.0, -1e30], &Against::Binary(&[1.0, 0.0]));
        let want = (-30f64).exp() / 2.0;
        for value in [left.loss[0], -left.grad[0]] {
            assert!((f64::from(value) / want - 1.0).abs() < 1e-6, "{device}: {value:e} is not {want:e}");
        }
        assert_eq!(left.grad[1], 0.0, "{device}");
        for bad in [f32::NAN, f32::INFINITY] {
            for against in [Against::Labels(&[0, 0], 0.0), Against::Labels(&[0, 0], 0.2), Against::Soft(&[0.5; 4])] {
                let left = run(2, &[0.0, bad, 1.0, 1.0], &against);
                assert!(!left.loss[0].is_finite() && left.loss[1].is_finite(), "{device} {bad}: {:?}", left.loss);
            }
        }
    }
}

fn probabilities(device: &Device, classes: usize, logits: &[f32], is_sigmoid: bool, in_place: bool) -> Vec<f32> {
    let shape = ActivationShape::new(1, 1, logits.len() / classes, 1, classes);
    let x = stored::tensor(device, DType::F32, shape, logits, [2, 1]);
    let y = stored::tensor(device, DType::F32, shape, &vec![f32::NAN; logits.len()], [2, 1]);
    let y = if in_place { &x } else { &y };
    let op = if is_sigmoid { softmax_loss::sigmoid } else { softmax_loss::softmax };
    op(&device.stream().unwrap(), &x, y).unwrap();
    stored::read_tensor(y, [2, 1])
}

#[test]
fn probabilities_are_as_good_as_plain_f32_and_in_place() {
    for device in executors::all() {
        for classes in [1, 20, 300] {
            let logits = fill::f32("probabilities", 3 * classes, 9.0, 0.0);
            let soft = |round| reference::softmax(round, classes, &as_f64(&logits));
            let sigmoid = |round| reference::sigmoid(round, &as_f64(&logits));
            for (is_sigmoid, [want, plain]) in
                [(false, [soft(exact), soft(to_f32)]), (true, [sigmoid(exact), sigmoid(to_f32)])]
            {
                let got = probabilities(&device, classes, &logits, is_sigmoid, false);
                stored::assert_twice_plain(&format!("{device} sigmoid {is_sigmoid}"), DType::F32, &got, &plain, &want);
                assert!(probabilities(&device, classes, &logits, is_sigmoid, true) == got, "{device}: in place");
            }
        }
    }
}

/// The gradient in the logits' memory.
#[test]
fn losses_in_place() {
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let logits = fill::f32("place", 30, 3.0, 0.0);
        let (labels, soft) = (labels("place", 3, 10), soft_targets(3, 10));
        let x = || stored::tensor(&device, DType::F32, logits_shape(3, 10), &logits, [1, 1]);
        let (loss, slice) = (stored::garbage(&device, DType::F32, 3), Buffer::from_host(&device, &labels).unwrap());
        let want = run(&device, 10, &logits, &Against::Labels(&labels, 0.0), 0.5, DType::F32);
        let place = x();
        softmax_loss::cross_entropy(&stream, &place, &slice, 0.5, &loss, &place).unwrap();
        assert!(stored::read_tensor(&place, [1, 1]) == want.grad && stored::read(&loss) == want.loss, "{device}");
        let want = run(&device, 10, &logits, &Against::Binary(&soft), 0.5, DType::F32);
        let (place, targets) = (x(), stored::tensor(&device, DType::F32, logits_shape(3, 10), &soft, [0, 0]));
        softmax_loss::binary_cross_entropy(&stream, &place, &targets, 0.5, &loss, &place, &Extras::default()).unwrap();
        assert!(stored::read_tensor(&place, [1, 1]) == want.grad && stored::read(&loss) == want.loss, "{device}");
    }
}

#[test]
fn what_does_not_fit_is_refused_everywhere() {
    for device in executors::all() {
        let stream = device.stream().unwrap();
        let tensor = |classes| -> Tensor {
            stored::tensor(&device, DType::F32, logits_shape(2, classes), &vec![0.0; 2 * classes], [0, 0])
        };
        let (x, grad, loss) = (tensor(4), tensor(4), stored::garbage(&device, DType::F32, 2));
        let labels = Buffer::from_host(&device, &[0u32; 2]).unwrap();
        let refused = |targets: &Targets, loss: &Slice, extras: &Extras, words: &str| {
            let result = softmax_loss::cross_entropy_with(&stream, &x, targets, 1.0, loss, &grad, extras);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{device}: {error}");
        };
        let (none, hard) = (Extras::default(), Targets::Labels { labels: &labels, smoothing: 0.0 });
        refused(&Targets::Soft(&tensor(5)), &loss, &none, "targets must be [2,1,1,1,4], got [2,1,1,1,5]");
        refused(
            &Targets::Labels { labels: &labels, smoothing: 1.5 },
            &loss,
            &none,
            "smoothing must be in [0, 1], got 1.5",
        );
        refused(&hard, &labels, &none, "loss must hold F32, got U32");
        refused(&hard, &loss, &Extras { counters: Some(&labels), ..none }, "counters must have 4 elements, got 2");
        refused(&hard, &loss, &Extras { loss_scale: Some(&loss), ..none }, "loss_scale must have 1 elements, got 2");
    }
}

/// A case of golden's binary cross-entropy, on every executor.
pub fn golden_binary_cross_entropy(golden: &golden::Golden, case: &serde_json::Value, name: &str) {
    let (dims, logits) = golden::input(&case["inputs"]["logits"]);
    let (clips, classes) = (dims[0], dims[1]);
    let is_set = |v: u64| if v == 0 { 1.0 } else { 0.0 };
    let targets: Vec<f32> =
        fill::int(&format!("loss/{name}/targets"), clips * classes, 4).into_iter().map(is_set).collect();
    assert_eq!(targets.iter().sum::<f32>(), case["inputs"]["targets"]["sum"].as_f64().expect("sum") as f32);
    for device in executors::all() {
        let left = run(&device, classes, &logits, &Against::Binary(&targets), 1.0 / clips as f32, DType::F32);
        let mean = as_f64(&left.loss).iter().sum::<f64>() / clips as f64;
        golden.assert_close(name, &case["outputs"]["loss"], &[mean], 1e-5);
        golden.assert_close(name, &case["outputs"]["dlogits"], &as_f64(&left.grad), 1e-5);
        let sigmoid = probabilities(&device, classes, &logits, true, false);
        golden.assert_close(name, &case["outputs"]["sigmoid"], &as_f64(&sigmoid), 1e-5);
    }
}
