//! Attention on every executor: whole numbers, random values against the reference, gradients, same bits, NaN, refusals.

use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::attention::{self, Heads, Instantiation, reference};
use vcycle::shape::ActivationShape;

use crate::compare::{as_f64, assert_gradient, to_f32, with_threads};
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, SHORT};
use reference::Rounding;

mod golden_block;

#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    clips: usize,
    queries: [usize; 3],
    keys: [usize; 3],
    depth: usize,
    /// Channels of others before and after.
    #[serde(default)]
    gaps: [usize; 2],
}

#[derive(serde::Deserialize)]
struct Cases {
    case: Vec<Case>,
}

fn cases() -> Vec<Case> {
    toml::from_str::<Cases>(&executors::cases("attention")).expect("tests/cases/attention.toml").case
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).expect("case")
}

const KINDS: [Instantiation; 2] = [Instantiation::Softmax, Instantiation::DotProduct];

/// The types that activations may have.
fn dtypes(device: &Device) -> Vec<DType> {
    if *device == Device::Cpu { vec![DType::F32] } else { SHORT.to_vec() }
}

impl Case {
    fn of_queries(&self) -> ActivationShape {
        let [t, h, w] = self.queries;
        ActivationShape::new(self.clips, t, h, w, self.depth)
    }

    fn of_keys(&self) -> ActivationShape {
        let [t, h, w] = self.keys;
        ActivationShape::new(self.clips, t, h, w, self.depth)
    }

    /// Queries, keys, values and the gradient of the output, each with the shape of its tensor.
    fn operands(&self, value: impl Fn(&str, usize) -> Vec<f32>) -> [Vec<f32>; 4] {
        let (q, k) = (self.of_queries().num_elements(), self.of_keys().num_elements());
        [value("q", q), value("k", k), value("v", k), value("dy", q)]
    }

    /// Random operands as `dtype` stores them; queries are larger, so that weights differ.
    fn random(&self, dtype: DType) -> [Vec<f32>; 4] {
        self.operands(|what, n| {
            let scale = if what == "q" { 3.0 } else { 1.0 };
            let all = fill::f32(&format!("{}/{what}", self.name), n, scale, 0.0);
            all.into_iter().map(|v| stored::round(dtype, f64::from(v)) as f32).collect()
        })
    }
}

/// Output, logarithms, gradients of query, key and value.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    output: Vec<f32>,
    log2_sum: Vec<f32>,
    grads: [Vec<f32>; 3],
}

fn run(device: &Device, case: &Case, kind: Instantiation, dtype: DType, [q, k, v, dy]: &[Vec<f32>; 4]) -> Left {
    let stream = device.stream().unwrap();
    let (of_q, of_k, gaps) = (case.of_queries(), case.of_keys(), case.gaps);
    let tensor = |shape, values: &[f32]| stored::tensor(device, dtype, shape, values, gaps);
    let garbage = |shape: ActivationShape| tensor(shape, &vec![f32::NAN; shape.num_elements()]);
    let (query, key, value, grad_output) = (tensor(of_q, q), tensor(of_k, k), tensor(of_k, v), tensor(of_q, dy));
    let inputs = Heads { query: &query, key: &key, value: &value };
    let output = garbage(of_q);
    let log2_sum = stored::garbage(device, DType::F32, of_q.num_positions());
    attention::forward(&stream, kind, &inputs, &output, &log2_sum).unwrap();

    let [dq, dk, dv] = [of_q, of_k, of_k].map(garbage);
    let workspace = stored::garbage(device, DType::F32, attention::workspace_bytes(query.shape()) / 4);
    let grads = Heads { query: &dq, key: &dk, value: &dv };
    attention::backward(&stream, kind, &inputs, &output, &log2_sum, &grad_output, &grads, &workspace).unwrap();
    Left {
        output: stored::read_tensor(&output, gaps),
        log2_sum: stored::read(&log2_sum),
        grads: [&dq, &dk, &dv].map(|tensor| stored::read_tensor(tensor, gaps)),
    }
}

/// What the reference makes of all clips: output, logarithms, three gradients.
fn expected(r: Rounding, case: &Case, kind: Instantiation, operands: &[Vec<f32>; 4]) -> [Vec<f64>; 5] {
    let mut all: [Vec<f64>; 5] = Default::default();
    let [q, k, v, dy] = [0, 1, 2, 3].map(|i| {
        let all = as_f64(&operands[i]);
        all.chunks(all.len() / case.clips).map(<[f64]>::to_vec).collect::<Vec<_>>()
    });
    for clip in 0..case.clips {
        let (q, k, v, dy) = (&q[clip], &k[clip], &v[clip], &dy[clip]);
        let output = reference::forward(r, kind, case.depth, q, k, v);
        let grads = reference::backward(r, kind, case.depth, [q, k, v], &output, dy);
        all[0].extend(output);
        all[1].extend(reference::weights(r, kind, case.depth, q, k).1);
        for (all, grad) in all[2..].iter_mut().zip(grads) {
            all.extend(grad);
        }
    }
    all
}

#[test]
fn cases_agree_with_the_reference_on_every_executor() {
    for device in executors::all() {
        for (case, kind) in cases().iter().flat_map(|case| KINDS.map(|kind| (case, kind))) {
            for dtype in dtypes(&device) {
                let operands = case.random(dtype);
                let want = expected(Rounding::NONE, case, kind, &operands);
                let plain = expected(Rounding { sum: to_f32, store: stored::rounding(dtype) }, case, kind, &operands);
                let test = |mode: &str| {
                    let got = run(&device, case, kind, dtype, &operands);
                    let what = |result: &str| format!("{mode} {} {kind:?}: {result}", case.name);
                    stored::assert_twice_plain(&what("output"), dtype, &got.output, &plain[0], &want[0]);
                    if kind == Instantiation::Softmax {
                        stored::assert_twice_plain(&what("log2_sum"), DType::F32, &got.log2_sum, &plain[1], &want[1]);
                    }
                    for (i, of) in ["queries", "keys", "values"].into_iter().enumerate() {
                        stored::assert_twice_plain(&what(of), dtype, &got.grads[i], &plain[i + 2], &want[i + 2]);
                    }
                    let again = run(&device, case, kind, dtype, &operands);
                    assert!(again.output == got.output && again.grads == got.grads, "{}", what("two runs differ"));
                };
                let is_small = case.of_queries().num_elements() * case.of_keys().num_positions() < 50_000;
                if is_small { executors::in_all_modes(&device, test) } else { test(&device.to_string()) }
            }
        }
    }
}

/// Sixteen keys: weights are sixteenths of whole numbers, or all one sixteenth, and every sum is exact.
#[test]
fn whole_numbers_are_exact() {
    let case = Case { name: "exact".into(), clips: 2, queries: [2, 3, 7], keys: [1, 4, 4], depth: 24, gaps: [0, 0] };
    for device in executors::all() {
        for dtype in dtypes(&device) {
            let rounded =
                |values: &[f64]| -> Vec<f32> { values.iter().map(|v| stored::round(dtype, *v) as f32).collect() };
            let mut operands =
                case.operands(|what, n| fill::int(what, n, 3).into_iter().map(|v| v as f32 - 1.0).collect());
            let got = run(&device, &case, Instantiation::DotProduct, dtype, &operands);
            let want = expected(Rounding::NONE, &case, Instantiation::DotProduct, &operands);
            assert!(got.output == rounded(&want[0]), "{device} {dtype:?}: output");
            for (i, of) in ["queries", "keys", "values"].into_iter().enumerate() {
                assert!(got.grads[i] == rounded(&want[i + 2]), "{device} {dtype:?}: {of}");
            }
            // Equal keys have equal weights.
            let first: Vec<f32> = operands[1][..24].to_vec();
            operands[1].chunks_mut(24).for_each(|key| key.copy_from_slice(&first));
            let got = run(&device, &case, Instantiation::Softmax, dtype, &operands);
            let want = expected(Rounding::NONE, &case, Instantiation::DotProduct, &{
                // The dot product with scores of 1 has the same weights.
                let [q, k, v, dy] = operands.clone();
                let ones = |len: usize| -> Vec<f32> { (0..len).map(|i| if i % 24 == 0 { 1.0 } else { 0.0 }).collect() };
                [ones(q.len()), ones(k.len()), v, dy]
            });
            assert!(got.output == rounded(&want[0]), "{device} {dtype:?}: equal keys");
            assert!(got.grads[2] == rounded(&want[4]), "{device} {dtype:?}: equal keys, values");
        }
    }
}

#[test]
fn the_reference_gradients_are_the_derivatives() {
    for kind in KINDS {
        let case = Case { clips: 1, queries: [1, 1, 5], keys: [1, 2, 2], ..case("unaligned") };
        let [q, k, v, dy] = case.random(DType::F32).map(|values| as_f64(&values));
        let forward = |q: &[f64], k: &[f64], v: &[f64]| reference::forward(Rounding::NONE, kind, case.depth, q, k, v);
        let loss = |q: &[f64], k: &[f64], v: &[f64]| forward(q, k, v).iter().zip(&dy).map(|(a, b)| a * b).sum::<f64>();
        let [dq, dk, dv] =
            reference::backward(Rounding::NONE, kind, case.depth, [&q, &k, &v], &forward(&q, &k, &v), &dy);
        assert_gradient(&format!("{kind:?} queries"), &q, &dq, |q| loss(q, &k, &v));
        assert_gradient(&format!("{kind:?} keys"), &k, &dk, |k| loss(&q, k, &v));
        assert_gradient(&format!("{kind:?} values"), &v, &dv, |v| loss(&q, &k, v));
    }
}

#[test]
fn threads_do_not_matter() {
    let case = case("tails");
    let operands = case.random(DType::F32);
    let of =
        |threads| with_threads(threads, || run(&Device::Cpu, &case, Instantiation::Softmax, DType::F32, &operands));
    let first = of(1);
    assert!(of(2) == first && of(5) == first);
}

/// Scores of hundreds: the weights are 0 and 1, and nothing overflows.
#[test]
fn large_scores_are_safe() {
    let case = case("tails");
    for device in executors::all() {
        for dtype in dtypes(&device) {
            let mut operands = case.random(dtype);
            operands[0].iter_mut().for_each(|q| *q *= 256.0);
            let got = run(&device, &case, Instantiation::Softmax, dtype, &operands);
            let all = [&got.output, &got.log2_sum, &got.grads[0], &got.grads[1], &got.grads[2]];
            assert!(all.iter().all(|values| values.iter().all(|v| v.is_finite())), "{device} {dtype:?}");
            assert!(got.log2_sum.iter().any(|l| l.abs() > 500.0), "{device} {dtype:?}");
            let want = expected(Rounding::NONE, &case, Instantiation::Softmax, &operands);
            let plain = Rounding { sum: to_f32, store: stored::rounding(dtype) };
            let plain = expected(plain, &case, Instantiation::Softmax, &operands);
            stored::assert_twice_plain("large scores", dtype, &got.output, &plain[0], &want[0]);
        }
    }
}

#[test]
fn a_nan_stays_in_its_row_or_its_clip() {
    let case = case("tails");
    let (queries, depth) = (50, case.depth);
    for device in executors::all() {
        for (dtype, kind) in dtypes(&device).into_iter().flat_map(|dtype| KINDS.map(|kind| (dtype, kind))) {
            let mut operands = case.random(dtype);
            operands[0][7 * depth] = f32::NAN;
            let got = run(&device, &case, kind, dtype, &operands);
            for (q, row) in got.output.chunks(depth).enumerate() {
                assert!(row.iter().all(|v| v.is_nan() == (q == 7)), "{device} {dtype:?} {kind:?}: query {q}");
            }
            let mut operands = case.random(dtype);
            operands[1][3 * depth + 5] = f32::NAN;
            let got = run(&device, &case, kind, dtype, &operands);
            for (q, row) in got.output.chunks(depth).enumerate() {
                assert!(row.iter().all(|v| v.is_nan() == (q < queries)), "{device} {dtype:?} {kind:?}: query {q}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for device in executors::all() {
        let dtype = dtypes(&device)[0];
        let stream = device.stream().unwrap();
        let tensor = |dtype, n, positions, c| -> Tensor {
            let shape = ActivationShape::new(n, 1, 1, positions, c);
            stored::tensor(&device, dtype, shape, &vec![0.0; shape.num_elements()], [0, 0])
        };
        let rows = |n| -> Slice { Buffer::from_host(&device, &vec![0f32; n]).unwrap() };
        let (q, k) = (tensor(dtype, 2, 3, 8), tensor(dtype, 2, 5, 8));
        let refused = |q: &Tensor, k: &Tensor, v: &Tensor, y: &Tensor, log2_sum: &Slice, words: &str| {
            let inputs = Heads { query: q, key: k, value: v };
            let result = attention::forward(&stream, Instantiation::Softmax, &inputs, y, log2_sum);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{device}: {error}");
        };
        let wrong = if device == Device::Cpu { DType::F16 } else { DType::F32 };
        refused(&tensor(wrong, 2, 3, 8), &k, &k, &q, &rows(6), "attention forward: queries must hold");
        refused(&q, &k, &q, &q, &rows(6), "value must be [2,1,1,5,8], got [2,1,1,3,8]");
        refused(&q, &tensor(dtype, 1, 5, 8), &tensor(dtype, 1, 5, 8), &q, &rows(6), "clips and channels must agree");
        refused(&q, &k, &k, &k, &rows(6), "output must be [2,1,1,3,8]");
        refused(&q, &k, &k, &q, &rows(5), "log2_sum must have 6 elements, got 5");
        let wide = tensor(dtype, 1, 1, 513);
        refused(&wide, &wide, &wide, &wide, &rows(1), "at most 512 channels, got 513");
        let inputs = Heads { query: &q, key: &k, value: &k };
        let grads = [3, 5, 5].map(|positions| tensor(dtype, 2, positions, 8));
        let grads = Heads { query: &grads[0], key: &grads[1], value: &grads[2] };
        let y = tensor(dtype, 2, 3, 8);
        let result = attention::backward(&stream, Instantiation::Softmax, &inputs, &y, &rows(6), &y, &grads, &rows(5));
        assert!(result.unwrap_err().to_string().contains("workspace must have at least"));
    }
}
