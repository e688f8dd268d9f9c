//! `ops::resize` against its f64 reference and PyTorch.

use vcycle::device::{Device, Element, Tensor};
use vcycle::ops::resize::{self, reference};
use vcycle::shape::ActivationShape;

use crate::executors;
use crate::golden::{self, Golden, fill};

#[test]
fn golden_interpolate_trilinear() {
    let Some(golden) = golden::open("ops/interpolate_trilinear.json") else { return };
    executors::all().iter().for_each(|device| compare(&golden, device));
}

fn compare(golden: &Golden, device: &Device) {
    let cases = golden.json.as_array().unwrap();
    let stream = device.stream().unwrap();
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let align_corners = case["params"]["align_corners"].as_bool().unwrap();
        let (x_shape, x) = golden::input(&case["inputs"]["x"]);
        let (y_shape, dy) = golden::input(&case["inputs"]["dy"]);
        let shape = |s: &[usize]| ActivationShape::new(s[0], s[2], s[3], s[4], s[1]);
        let input = Tensor::from_host(device, shape(&x_shape), &golden::channels_last(&x_shape, &x)).unwrap();
        let grad = Tensor::from_host(device, shape(&y_shape), &golden::channels_last(&y_shape, &dy)).unwrap();
        let output = Tensor::zeroed(device, vcycle::device::DType::F32, grad.shape()).unwrap();
        resize::forward(&stream, align_corners, &input, &output).unwrap();
        let got = golden::channels_first(&y_shape, &output.read::<f32>().unwrap());
        golden.assert_close(name, &case["outputs"]["y"], &got, 2e-5);
        let grad_input = Tensor::zeroed(device, vcycle::device::DType::F32, input.shape()).unwrap();
        resize::grad_input(&stream, align_corners, &grad, &grad_input).unwrap();
        let got = golden::channels_first(&x_shape, &grad_input.read::<f32>().unwrap());
        golden.assert_close(name, &case["outputs"]["dx"], &got, 2e-5);
    }
    golden.passed_on(device, cases.len());
}

/// A row of tests/cases/resize.toml.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    input: [usize; 5],
    output: [usize; 3],
    #[serde(default)]
    gap: usize,
    #[serde(default)]
    bench: bool,
}

#[derive(serde::Deserialize)]
struct Cases {
    case: Vec<Case>,
}

fn cases() -> Vec<Case> {
    let all = toml::from_str::<Cases>(&crate::executors::cases("resize")).expect("tests/cases/resize.toml").case;
    all.into_iter().filter(|case| !case.bench).collect()
}

impl Case {
    fn shapes(&self) -> [ActivationShape; 2] {
        let ([n, t, h, w, c], [to, ho, wo]) = (self.input, self.output);
        [ActivationShape::new(n, t, h, w, c), ActivationShape::new(n, to, ho, wo, c)]
    }

    /// A tensor with `gap` channels of another tensor behind its own; the values are rounded to `T`.
    fn tensor<T: Element>(
        &self,
        device: &Device,
        shape: ActivationShape,
        values: &[f64],
        round: fn(f64) -> T,
    ) -> Tensor {
        let wide = shape.with_channels(shape.c + self.gap);
        let mut all = vec![round(9.0); wide.num_elements()];
        for (row, values) in all.chunks_mut(wide.c).zip(values.chunks(shape.c)) {
            row.iter_mut().zip(values).for_each(|(to, from)| *to = round(*from));
        }
        Tensor::from_host(device, wide, &all).unwrap().channels(0, shape.c).unwrap()
    }
}

/// Both directions: no further from f64 than twice what plain f32 is, and one rounding to the stored type.
fn check<T: Element + Into<f64>>(
    device: &Device,
    case: &Case,
    align_corners: bool,
    round: fn(f64) -> T,
    rounding: f64,
) {
    let shapes = case.shapes();
    let [input, output] = shapes;
    let stored = |name: &str, n: usize| -> Vec<f64> {
        fill::f32(name, n, 1.0, 0.0).into_iter().map(|v| round(f64::from(v)).into()).collect()
    };
    let (x, dy) = (stored("resize/x", input.num_elements()), stored("resize/dy", output.num_elements()));
    let to_f32 = |v: f64| f64::from(v as f32);
    let y = [|v| v, to_f32].map(|r| reference::forward(shapes, align_corners, &x, r));
    let dx = [|v| v, to_f32].map(|r| reference::grad_input(shapes, align_corners, &dy, r));
    crate::executors::in_all_modes(device, |mode| {
        let stream = device.stream().unwrap();
        let run = || {
            let (tx, tdy) = (case.tensor(device, input, &x, round), case.tensor(device, output, &dy, round));
            let ty = case.tensor(device, output, &vec![5.0; output.num_elements()], round);
            let tdx = case.tensor(device, input, &vec![5.0; input.num_elements()], round);
            resize::forward(&stream, align_corners, &tx, &ty).unwrap();
            resize::grad_input(&stream, align_corners, &tdy, &tdx).unwrap();
            [ty, tdx].map(|t| t.read::<T>().unwrap().into_iter().map(Into::into).collect::<Vec<f64>>())
        };
        let got = run();
        for (direction, got, [want, plain]) in [("forward", &got[0], &y), ("grad_input", &got[1], &dx)] {
            let worst = want.iter().zip(plain).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                assert!(
                    (got - want).abs() <= 2.0 * worst + want.abs() * rounding,
                    "{} {direction} align {align_corners} {:?} on {mode}: element {i}: got {got}, want {want}",
                    case.name,
                    T::DTYPE,
                );
            }
        }
        assert_eq!(got, run(), "{} on {mode}: two runs differ", case.name);
    });
}

#[test]
fn cases_agree_with_the_reference_on_every_executor() {
    for device in crate::executors::all() {
        for case in cases() {
            for align_corners in [false, true] {
                check::<f32>(&device, &case, align_corners, |v| v as f32, 2f64.powi(-24));
                check::<half::bf16>(&device, &case, align_corners, half::bf16::from_f64, 2f64.powi(-8));
                check::<half::f16>(&device, &case, align_corners, half::f16::from_f64, 2f64.powi(-11));
            }
        }
    }
}

/// Halving with whole weights: sums of small integers are exact, so every executor gives equal bits.
#[test]
fn small_integers_are_exact() {
    let [input, output] = [ActivationShape::new(1, 2, 4, 6, 4), ActivationShape::new(1, 1, 2, 3, 4)];
    let x: Vec<f32> = fill::int("resize/int", input.num_elements(), 17).into_iter().map(|v| v as f32).collect();
    let x64: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let want = reference::forward([input, output], false, &x64, |v| v);
    for device in crate::executors::all() {
        let from = Tensor::from_host(&device, input, &x).unwrap();
        let to = Tensor::zeroed(&device, from.dtype(), output).unwrap();
        resize::forward(&device.stream().unwrap(), false, &from, &to).unwrap();
        let got: Vec<f64> = to.read::<f32>().unwrap().into_iter().map(f64::from).collect();
        assert_eq!(got, want, "{device}");
    }
}

#[test]
fn refuses_other_channels() {
    let device = Device::Cpu;
    let tensor = |c| Tensor::zeroed(&device, vcycle::device::DType::F32, ActivationShape::new(1, 2, 2, 2, c)).unwrap();
    let error = resize::forward(&device.stream().unwrap(), true, &tensor(3), &tensor(4)).unwrap_err();
    assert!(error.to_string().contains("channels"), "{error}");
}
