//! Max and average pooling: golden file, exact and random values, gradients, gaps, threads, refusals.

mod kernels;

use proptest::prelude::*;
use serde::Deserialize;
use vcycle::device::{DType, Device, Tensor};
use vcycle::ops::pool3d::{self, Pool3d, PoolKind, reference};
use vcycle::shape::ActivationShape;

use crate::compare::{
    Place, as_f64, assert_equal, assert_gradient, assert_same_bits, assert_twice_plain, exact, integers, read, slice,
    to_f32, with_threads,
};
use crate::golden::{self, fill};

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    kind: String,
    input: [usize; 5],
    kernel: [usize; 3],
    #[serde(default = "one")]
    stride: [usize; 3],
    #[serde(default)]
    padding: [usize; 3],
    #[serde(default)]
    bench: bool,
}

fn one() -> [usize; 3] {
    [1; 3]
}

fn kind(name: &str) -> PoolKind {
    match name {
        "max" => PoolKind::Max,
        "average" | "avg" => PoolKind::Average,
        other => panic!("pooling {other:?}"),
    }
}

/// Name and op of each case that is not there for its speed.
fn cases() -> Vec<(String, Pool3d)> {
    let text = crate::executors::cases("pool3d");
    let cases = toml::from_str::<Cases>(&text).expect("tests/cases/pool3d.toml").case;
    let op = |case: Case| {
        let [n, t, h, w, c] = case.input;
        let input = ActivationShape::new(n, t, h, w, c);
        let Case { kernel, stride, padding, .. } = case;
        (case.name, Pool3d { kind: kind(&case.kind), input, kernel, stride, padding })
    };
    cases.into_iter().filter(|c| !c.bench).map(op).collect()
}

struct Results {
    y: Vec<f32>,
    indices: Vec<u32>,
    dx: Vec<f32>,
}

/// Forward and gradient; the gradient is added to `before` where that is given. `places`: of x and dx, of y and dy.
fn run(op: &Pool3d, x: &[f32], dy: &[f32], before: Option<&[f32]>, places: [Place; 2]) -> Results {
    let stream = Device::Cpu.stream().unwrap();
    let [input, output] = places;
    let x = input.tensor(op.input, x);
    let y = output.garbage(op.output());
    let indices = slice(&vec![u32::MAX; op.output().num_elements()]);
    pool3d::forward(&stream, op, &x, &y, Some(&indices)).unwrap();
    let y = read(&y, output);
    if op.kind == PoolKind::Max {
        let without = output.garbage(op.output());
        pool3d::forward(&stream, op, &x, &without, None).unwrap();
        assert_same_bits("without indices", &read(&without, output), &y);
    }
    let dy = output.tensor(op.output(), dy);
    let dx = before.map_or_else(|| input.garbage(op.input), |before| input.tensor(op.input, before));
    pool3d::grad_input(&stream, op, &dy, Some(&indices), &dx, before.is_some()).unwrap();
    Results { y, indices: indices.read().unwrap(), dx: read(&dx, input) }
}

fn zeros(op: &Pool3d) -> Vec<f64> {
    vec![0.0; op.input.num_elements()]
}

const DENSE: [Place; 2] = [Place::DENSE; 2];

#[test]
fn max_of_integers_is_exact_and_the_first_of_equals_wins() {
    for (name, op) in cases().into_iter().filter(|(_, op)| op.kind == PoolKind::Max) {
        let x = integers(&format!("{name}/x"), op.input.num_elements(), 2);
        let dy = integers(&format!("{name}/dy"), op.output().num_elements(), 4);
        let before = integers(&format!("{name}/dx"), op.input.num_elements(), 4);
        let (y, winner) = reference::forward(&op, exact, &as_f64(&x));
        let dx = reference::grad_input(&op, exact, &as_f64(&dy), &winner, zeros(&op));
        let added = reference::grad_input(&op, exact, &as_f64(&dy), &winner, as_f64(&before));
        let got = run(&op, &x, &dy, None, DENSE);
        assert_equal(&format!("{name}: y"), &got.y, &y);
        assert_eq!(got.indices, winner, "{name}: indices");
        assert_equal(&format!("{name}: dx"), &got.dx, &dx);
        assert_equal(&format!("{name}: dx added to"), &run(&op, &x, &dy, Some(&before), DENSE).dx, &added);
    }
}

#[test]
fn random_averages_are_as_good_as_plain_f32() {
    for (name, op) in cases().into_iter().filter(|(_, op)| op.kind == PoolKind::Average) {
        let x = fill::f32(&format!("{name}/x"), op.input.num_elements(), 1.0, 0.5);
        let dy = fill::f32(&format!("{name}/dy"), op.output().num_elements(), 1.0, 0.0);
        let got = run(&op, &x, &dy, None, DENSE);
        let y = |round| reference::forward(&op, round, &as_f64(&x)).0;
        let dx = |round, before| reference::grad_input(&op, round, &as_f64(&dy), &[], before);
        assert_twice_plain(&format!("{name}: y"), &got.y, &y(to_f32), &y(exact));
        assert_twice_plain(&format!("{name}: dx"), &got.dx, &dx(to_f32, zeros(&op)), &dx(exact, zeros(&op)));
        let before = fill::f32(&format!("{name}/dx"), op.input.num_elements(), 1.0, 0.0);
        let added = |round| dx(round, as_f64(&before));
        let got = run(&op, &x, &dy, Some(&before), DENSE);
        assert_twice_plain(&format!("{name}: dx added to"), &got.dx, &added(to_f32), &added(exact));
    }
}

#[test]
fn averages_of_powers_of_two_are_exact() {
    let op = Pool3d::global_average(ActivationShape::new(3, 4, 8, 8, 5));
    let x = integers("average/x", op.input.num_elements(), 8);
    let dy: Vec<f32> = integers("average/dy", 15, 8);
    let got = run(&op, &x, &dy, None, DENSE);
    assert_equal("y", &got.y, &reference::forward(&op, exact, &as_f64(&x)).0);
    assert_equal("dx", &got.dx, &reference::grad_input(&op, exact, &as_f64(&dy), &[], zeros(&op)));
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    for (name, op) in cases().into_iter().filter(|(_, op)| op.input.num_elements() < 20_000) {
        // Values differ, by more than the step of the difference quotient: no window changes its winner.
        let x: Vec<f64> = fill::f32(&format!("{name}/x"), op.input.num_elements(), 1.0, 0.0)
            .iter()
            .enumerate()
            .map(|(i, x)| f64::from(*x) + i as f64 * 1e-3)
            .collect();
        let dy = as_f64(&fill::f32(&format!("{name}/dy"), op.output().num_elements(), 1.0, 0.0));
        let winner = reference::forward(&op, exact, &x).1;
        let dx = reference::grad_input(&op, exact, &dy, &winner, zeros(&op));
        assert_gradient(&name, &x, &dx, |x| {
            reference::forward(&op, exact, x).0.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        });
    }
}

#[test]
fn a_nan_and_a_window_of_infinities() {
    let op = Pool3d {
        kind: PoolKind::Max,
        input: ActivationShape::new(1, 1, 1, 6, 1),
        kernel: [1, 1, 3],
        stride: [1, 1, 3],
        padding: [0; 3],
    };
    let low = f32::NEG_INFINITY;
    let got = run(&op, &[1.0, f32::NAN, 2.0, low, low, low], &[1.0, 5.0], None, DENSE);
    assert!(got.y[0].is_nan() && got.y[1] == low, "{:?}", got.y);
    assert_eq!(got.indices, [1, 0]);
    assert_eq!(got.dx, [0.0, 1.0, 0.0, 5.0, 0.0, 0.0]);
}

#[test]
fn runs_and_threads_do_not_matter() {
    for (name, op) in cases() {
        let x = fill::f32(&format!("{name}/x"), op.input.num_elements(), 1.0, 0.0);
        let dy = fill::f32(&format!("{name}/dy"), op.output().num_elements(), 1.0, 0.0);
        let first = run(&op, &x, &dy, None, DENSE);
        for threads in [1, 2, 5] {
            let got = with_threads(threads, || run(&op, &x, &dy, None, DENSE));
            assert_same_bits(&format!("{name}: y, {threads} threads"), &got.y, &first.y);
            assert_same_bits(&format!("{name}: dx, {threads} threads"), &got.dx, &first.dx);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gaps_do_not_matter(
        sizes in prop::array::uniform3(1usize..7), n in 1usize..3, c in 1usize..20,
        kernel in prop::array::uniform3(1usize..4), stride in prop::array::uniform3(1usize..4),
        padding in prop::array::uniform3(0usize..2), is_max: bool, gaps in prop::array::uniform4(0usize..4),
    ) {
        let kind = if is_max { PoolKind::Max } else { PoolKind::Average };
        let padding = if is_max { padding } else { [0; 3] };
        let op = Pool3d { kind, input: ActivationShape::new(n, sizes[0], sizes[1], sizes[2], c), kernel, stride, padding };
        prop_assume!(op.check().is_ok());
        let x = fill::f32("gaps/x", op.input.num_elements(), 1.0, 0.0);
        let dy = fill::f32("gaps/dy", op.output().num_elements(), 1.0, 0.0);
        let places = [0, 2].map(|i| Place { before: gaps[i], after: gaps[i + 1] });
        let (got, want) = (run(&op, &x, &dy, None, places), run(&op, &x, &dy, None, DENSE));
        assert_same_bits("y", &got.y, &want.y);
        assert_same_bits("dx", &got.dx, &want.dx);
        if is_max {
            prop_assert_eq!(got.indices, want.indices);
            assert_equal("y", &got.y, &reference::forward(&op, exact, &as_f64(&x)).0);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = Pool3d {
        kind: PoolKind::Max,
        input: ActivationShape::new(1, 4, 6, 6, 2),
        kernel: [1, 3, 3],
        stride: [1, 2, 2],
        padding: [0, 1, 1],
    };
    let message = |op: Pool3d| op.check().unwrap_err().to_string();
    assert!(good.check().is_ok());
    assert_eq!(
        message(Pool3d { kernel: [1, 9, 3], ..good }),
        "pool3d: the kernel must fit the padded input, got kernel 9, stride 2, padding 1 along h (input [1,4,6,6,2])"
    );
    assert!(message(Pool3d { stride: [0, 2, 2], ..good }).contains("at least 1"));
    assert!(message(Pool3d { kernel: [0, 3, 3], ..good }).contains("at least 1"));
    assert!(message(Pool3d { padding: [0, 1, 2], ..good }).contains("at most half the kernel"));
    assert!(message(Pool3d { kind: PoolKind::Average, ..good }).contains("takes no padding"));

    let stream = Device::Cpu.stream().unwrap();
    let x = Place::DENSE.garbage(good.input);
    let y = |shape: ActivationShape| -> Tensor { Place::DENSE.garbage(shape) };
    let refused = |result: vcycle::Result<()>| result.unwrap_err().to_string();
    let wrong = ActivationShape { h: 2, ..good.output() };
    assert_eq!(
        refused(pool3d::forward(&stream, &good, &x, &y(wrong), None)),
        "pool3d forward: output must be [1,4,3,3,2], got [1,4,2,3,2]"
    );
    let indices = slice(&[0u32; 5]);
    assert_eq!(
        refused(pool3d::forward(&stream, &good, &x, &y(good.output()), Some(&indices))),
        "pool3d forward: indices must have 72 elements, got 5"
    );
    assert_eq!(
        refused(pool3d::grad_input(&stream, &good, &y(good.output()), None, &x, false)),
        "pool3d grad_input: max pooling needs the indices that forward wrote"
    );
}

#[test]
fn golden_pool() {
    let Some(golden) = golden::open("ops/pool.json") else { return };
    let devices = crate::executors::with_kernels();
    let cases = golden.json.as_array().expect("cases");
    for case in cases {
        let (name, params) = (case["case"].as_str().expect("case"), &case["params"]);
        let (dims, mut values) = golden::input(&case["inputs"]["x"]);
        if case["inputs"]["x"]["then_relu"] == true {
            values.iter_mut().for_each(|v| *v = v.max(0.0));
        }
        let input = ActivationShape::new(dims[0], dims[2], dims[3], dims[4], dims[1]);
        let triple = |key: &str| golden::dims(&params[key]).try_into().expect("three sizes");
        let op = match params["kind"].as_str().expect("kind") {
            "adaptive_avg_1x1x1" => Pool3d::global_average(input),
            name => {
                let (kernel, stride, padding) = (triple("kernel"), triple("stride"), triple("padding"));
                Pool3d { kind: kind(name), input, kernel, stride, padding }
            }
        };
        let (dy_dims, dy) = golden::input(&case["inputs"]["dy"]);
        let (x, dy) = (golden::channels_last(&dims, &values), golden::channels_last(&dy_dims, &dy));
        let check = |y: &[f32], dx: &[f32]| {
            for (key, dims, values) in [("y", &dy_dims, y), ("dx", &dims, dx)] {
                golden.assert_close(name, &case["outputs"][key], &golden::channels_first(dims, values), 1e-5);
            }
        };
        let got = run(&op, &x, &dy, None, DENSE);
        check(&got.y, &got.dx);
        for device in &devices {
            let on_kernels = kernels::Run { device, dtype: DType::F32, index: DType::U32, gaps: [[0, 0]; 2] };
            let (y, _, dx) = on_kernels.run(&op, &x, &dy, None);
            check(&y, &dx);
        }
    }
    golden.passed(cases.len());
    devices.iter().for_each(|device| golden.passed_on(device, cases.len()));
}
