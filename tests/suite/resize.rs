//! `ops::resize` against its f64 reference and PyTorch.

use vcycle::device::{Device, Tensor};
use vcycle::ops::resize::{self, reference};
use vcycle::shape::ActivationShape;

use crate::golden::{self, fill};

#[test]
fn golden_interpolate_trilinear() {
    let Some(golden) = golden::open("ops/interpolate_trilinear.json") else { return };
    let cases = golden.json.as_array().unwrap();
    let device = Device::Cpu;
    let stream = device.stream().unwrap();
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let align_corners = case["params"]["align_corners"].as_bool().unwrap();
        let (x_shape, x) = golden::input(&case["inputs"]["x"]);
        let (y_shape, dy) = golden::input(&case["inputs"]["dy"]);
        let shape = |s: &[usize]| ActivationShape::new(s[0], s[2], s[3], s[4], s[1]);
        let input = Tensor::from_host(&device, shape(&x_shape), &golden::channels_last(&x_shape, &x)).unwrap();
        let grad = Tensor::from_host(&device, shape(&y_shape), &golden::channels_last(&y_shape, &dy)).unwrap();
        let output = Tensor::zeroed(&device, vcycle::device::DType::F32, grad.shape()).unwrap();
        resize::forward(&stream, align_corners, &input, &output).unwrap();
        let got = golden::channels_first(&y_shape, &output.read::<f32>().unwrap());
        golden.assert_close(name, &case["outputs"]["y"], &got, 2e-5);
        let grad_input = Tensor::zeroed(&device, vcycle::device::DType::F32, input.shape()).unwrap();
        resize::grad_input(&stream, align_corners, &grad, &grad_input).unwrap();
        let got = golden::channels_first(&x_shape, &grad_input.read::<f32>().unwrap());
        golden.assert_close(name, &case["outputs"]["dx"], &got, 2e-5);
    }
    golden::passed("interpolate_trilinear", cases.len());
}

const CASES: [([usize; 3], [usize; 3]); 6] = [
    ([4, 6, 6], [2, 3, 3]),
    ([2, 3, 5], [4, 7, 9]),
    ([3, 4, 5], [3, 4, 5]),
    ([1, 1, 7], [1, 5, 1]),
    ([5, 2, 3], [1, 1, 1]),
    ([2, 9, 4], [7, 5, 8]),
];

#[test]
fn random_activations_agree_with_the_reference_both_ways() {
    for device in crate::executors::all() {
        let stream = device.stream().unwrap();
        for (from, to) in CASES {
            for (align_corners, c) in [(true, 1), (false, 5), (true, 8), (false, 16)] {
                let input = ActivationShape::new(2, from[0], from[1], from[2], c);
                let output = ActivationShape::new(2, to[0], to[1], to[2], c);
                let x = fill::f32("resize/x", input.num_elements(), 1.0, 0.0);
                let dy = fill::f32("resize/dy", output.num_elements(), 1.0, 0.0);
                let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let (tx, tdy) =
                    (Tensor::from_host(&device, input, &x).unwrap(), Tensor::from_host(&device, output, &dy).unwrap());
                let ty = Tensor::zeroed(&device, tx.dtype(), output).unwrap();
                let tdx = Tensor::zeroed(&device, tx.dtype(), input).unwrap();
                resize::forward(&stream, align_corners, &tx, &ty).unwrap();
                resize::grad_input(&stream, align_corners, &tdy, &tdx).unwrap();
                let case = format!("{device:?} {from:?} -> {to:?} align {align_corners} c {c}");
                let want = reference::forward(align_corners, input, output, &wide(&x));
                close(&case, &ty.read::<f32>().unwrap(), &want, 2e-6);
                // A gradient sums up to 35 terms.
                let want = reference::grad_input(align_corners, input, output, &wide(&dy));
                close(&case, &tdx.read::<f32>().unwrap(), &want, 2e-5);
            }
        }
    }
}

fn close(case: &str, got: &[f32], want: &[f64], allowed: f64) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= allowed, "{case}: element {i}: got {got}, want {want}");
    }
}

#[test]
fn refuses_other_channels() {
    let device = Device::Cpu;
    let tensor = |c| Tensor::zeroed(&device, vcycle::device::DType::F32, ActivationShape::new(1, 2, 2, 2, c)).unwrap();
    let error = resize::forward(&device.stream().unwrap(), true, &tensor(3), &tensor(4)).unwrap_err();
    assert!(error.to_string().contains("channels"), "{error}");
}
