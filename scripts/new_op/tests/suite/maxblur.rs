//! `ops::maxblur` against its f64 reference.

use half::bf16;
use vcycle::device::{DType, Device, Element, Tensor};
use vcycle::ops::maxblur::{self, output_shape, reference};
use vcycle::shape::ActivationShape;

use crate::golden::fill;

/// A row of tests/cases/maxblur.toml.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    input: [usize; 5],
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
    let all = toml::from_str::<Cases>(&crate::executors::cases("maxblur")).expect("tests/cases/maxblur.toml").case;
    all.into_iter().filter(|case| !case.bench).collect()
}

impl Case {
    fn shape(&self) -> ActivationShape {
        let [n, t, h, w, c] = self.input;
        ActivationShape::new(n, t, h, w, c)
    }

    /// The op's output for these values, and the bits between the channels of its positions, which must stay 9.
    fn run<T: Element + Into<f64>>(&self, device: &Device, values: &[f64], round: fn(f64) -> T) -> Vec<f64> {
        let (from, to) = (self.shape(), output_shape(self.shape()));
        let tensor = |shape: ActivationShape, values: &[f64]| {
            let wide = shape.with_channels(shape.c + self.gap);
            let mut all = vec![round(9.0); wide.num_elements()];
            for (row, values) in all.chunks_mut(wide.c).zip(values.chunks(shape.c)) {
                row.iter_mut().zip(values).for_each(|(to, from)| *to = round(*from));
            }
            Tensor::from_host(device, wide, &all).unwrap()
        };
        let (input, output) = (tensor(from, values), tensor(to, &vec![5.0; to.num_elements()]));
        let stream = device.stream().unwrap();
        maxblur::forward(&stream, &input.channels(0, from.c).unwrap(), &output.channels(0, to.c).unwrap()).unwrap();
        let all: Vec<f64> = output.read::<T>().unwrap().into_iter().map(Into::into).collect();
        let gaps = all.chunks(to.c + self.gap).flat_map(|position| &position[to.c..]);
        assert!(gaps.into_iter().all(|v| *v == 9.0), "{} on {device}: wrote between channels", self.name);
        all.chunks(to.c + self.gap).flat_map(|position| &position[..to.c]).copied().collect()
    }
}

/// Sums of sixteenths of small whole numbers are exact.
#[test]
fn whole_numbers_are_exact() {
    for device in crate::executors::all() {
        for case in cases() {
            let values = fill::int("maxblur/int", case.shape().num_elements(), 7).into_iter();
            let values: Vec<f64> = values.map(|v| v as f64).collect();
            let want = reference::forward(case.shape(), &values, |v| v);
            crate::executors::in_all_modes(&device, |mode| {
                assert_eq!(case.run(&device, &values, |v| v as f32), want, "{} f32 on {mode}", case.name);
                assert_eq!(case.run(&device, &values, bf16::from_f64), want, "{} bf16 on {mode}", case.name);
            });
        }
    }
}

/// No further from f64 than twice what plain f32 is, and one rounding to the stored type.
fn check<T: Element + Into<f64>>(device: &Device, case: &Case, round: fn(f64) -> T, rounding: f64) {
    let values = fill::f32("maxblur/x", case.shape().num_elements(), 1.0, 0.0).into_iter();
    let values: Vec<f64> = values.map(|v| round(f64::from(v)).into()).collect();
    let [want, plain] = [|v| v, |v| f64::from(v as f32)].map(|r| reference::forward(case.shape(), &values, r));
    let worst = want.iter().zip(&plain).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
    for (i, (got, want)) in case.run(device, &values, round).iter().zip(&want).enumerate() {
        assert!(
            (got - want).abs() <= 2.0 * worst + want.abs() * rounding,
            "{} {:?} on {device}: element {i}: got {got}, want {want}",
            case.name,
            T::DTYPE,
        );
    }
}

#[test]
fn random_values_agree_with_the_reference() {
    for device in crate::executors::all() {
        for case in cases() {
            check::<f32>(&device, &case, |v| v as f32, 2f64.powi(-24));
            check::<bf16>(&device, &case, bf16::from_f64, 2f64.powi(-8));
        }
    }
}

#[test]
fn two_runs_give_the_same_bits_and_a_nan_stays() {
    for device in crate::executors::all() {
        for case in cases() {
            let mut values: Vec<f64> =
                fill::f32("maxblur/twice", case.shape().num_elements(), 1.0, 0.0).into_iter().map(f64::from).collect();
            values[0] = f64::NAN;
            let run = || case.run(&device, &values, bf16::from_f64).into_iter().map(f64::to_bits).collect::<Vec<_>>();
            let first = run();
            assert!(f64::from_bits(first[0]).is_nan(), "{} on {device}: the NaN is lost", case.name);
            assert_eq!(first, run(), "{} on {device}: two runs differ", case.name);
        }
    }
}

#[test]
fn wrong_input_is_named() {
    let device = Device::Cpu;
    let stream = device.stream().unwrap();
    let tensor = |dtype, h| Tensor::zeroed(&device, dtype, ActivationShape::new(1, 2, h, 4, 4)).unwrap();
    let output = Tensor::zeroed(&device, DType::F32, ActivationShape::new(1, 2, 2, 2, 4)).unwrap();
    let error = maxblur::forward(&stream, &tensor(DType::F32, 6), &output).unwrap_err().to_string();
    assert!(error.contains("maxblur forward: output must be"), "{error}");
    let error = maxblur::forward(&stream, &tensor(DType::Bf16, 4), &output).unwrap_err().to_string();
    assert!(error.contains("got Bf16 and F32"), "{error}");
}
