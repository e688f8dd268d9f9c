//! SGD: torch.optim.SGD's rule. Here: the plain step on the host; `everywhere`: what every executor does.

mod everywhere;

use vcycle::device::Device;
use vcycle::ops::sgd::{self, ParamRange, Sgd, reference};

use crate::compare::{as_f64, assert_equal, assert_same_bits, assert_twice_plain, exact, slice, to_f32, with_threads};
use crate::executors;
use crate::golden::{self, Golden, fill};

const PLAIN: Sgd = Sgd { lr: 0.1, momentum: 0.9, dampening: 0.0, nesterov: false, first_step: false };
const NESTEROV: Sgd = Sgd { nesterov: true, ..PLAIN };

fn range(start: usize, len: usize, weight_decay: f32) -> ParamRange {
    ParamRange { start, len, weight_decay }
}

fn run(op: &Sgd, ranges: &[ParamRange], p: &[f32], g: &[f32], m: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (p, m) = (slice(p), slice(m));
    sgd::step(&Device::Cpu.stream().unwrap(), op, ranges, &p, &slice(g), &m).unwrap();
    (p.read().unwrap(), m.read().unwrap())
}

fn operands(len: usize) -> [Vec<f32>; 3] {
    ["p", "g", "m"].map(|name| fill::f32(&format!("sgd/{name}"), len, 1.0, 0.0))
}

#[test]
fn random_values_are_as_good_as_plain_f32() {
    let ranges = [range(3, 40_000, 1e-4), range(40_003, 1, 0.5), range(40_100, 20_000, 0.0)];
    let [p, g, m] = operands(70_000);
    for op in [
        PLAIN,
        NESTEROV,
        Sgd { first_step: true, ..NESTEROV },
        Sgd { dampening: 0.3, ..PLAIN },
        Sgd { dampening: 0.3, first_step: true, ..PLAIN },
        Sgd { momentum: 0.0, ..PLAIN },
    ] {
        let got = run(&op, &ranges, &p, &g, &m);
        let of = |round| {
            let (mut p, mut m) = (as_f64(&p), as_f64(&m));
            reference::step(&op, round, &ranges, &mut p, &as_f64(&g), &mut m);
            (p, m)
        };
        let (plain, want) = (of(to_f32), of(exact));
        assert_twice_plain(&format!("{op:?}: params"), &got.0, &plain.0, &want.0);
        assert_twice_plain(&format!("{op:?}: momentum"), &got.1, &plain.1, &want.1);
        for outside in [0..3, 40_004..40_100, 60_100..70_000] {
            assert_same_bits("params in no range", &got.0[outside.clone()], &p[outside.clone()]);
            assert_same_bits("momentum in no range", &got.1[outside.clone()], &m[outside]);
        }
    }
}

#[test]
fn powers_of_two_are_exact() {
    let op = Sgd { lr: 0.5, momentum: 0.5, ..NESTEROV };
    let (p, m) = run(&op, &[range(0, 3, 0.25)], &[8.0, -4.0, 0.0], &[1.0, 2.0, 4.0], &[2.0, 4.0, -8.0]);
    // g + 0.25 p: 3, 1, 4. m: 1 + 3, 2 + 1, -4 + 4. direction: g + m / 2.
    assert_equal("momentum", &m, &[4.0, 3.0, 0.0]);
    assert_equal("params", &p, &[8.0 - 2.5, -4.0 - 1.25, -2.0]);
}

#[test]
fn the_first_step_ignores_what_the_momentum_held() {
    let (p, m) = run(&Sgd { first_step: true, ..PLAIN }, &[range(0, 1, 0.0)], &[1.0], &[2.0], &[f32::NAN]);
    assert_eq!((p, m), (vec![1.0 - 0.1 * 2.0], vec![2.0]));
}

#[test]
fn threads_do_not_matter() {
    let [p, g, m] = operands(100_003);
    let ranges = [range(0, 50_001, 1e-4), range(50_001, 50_002, 0.0)];
    let first = run(&NESTEROV, &ranges, &p, &g, &m);
    for threads in [1, 2, 5] {
        let got = with_threads(threads, || run(&NESTEROV, &ranges, &p, &g, &m));
        assert_same_bits("params", &got.0, &first.0);
        assert_same_bits("momentum", &got.1, &first.1);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |op: &Sgd, ranges: &[ParamRange], len: usize| {
        let [p, g, m] = operands(10);
        let (p, m) = (slice(&p), slice(&m));
        let stream = Device::Cpu.stream().unwrap();
        sgd::step(&stream, op, ranges, &p, &slice(&g[..len]), &m).unwrap_err().to_string()
    };
    assert_eq!(refused(&PLAIN, &[], 9), "sgd: grads must have 10 elements, got 9");
    let order = "must lie in";
    for ranges in [
        vec![range(0, 11, 0.0)],
        vec![range(5, 2, 0.0), range(0, 2, 0.0)],
        vec![range(0, 5, 0.0), range(4, 2, 0.0)],
        vec![range(9, usize::MAX, 0.0)],
    ] {
        let message = refused(&PLAIN, &ranges, 10);
        assert!(message.contains(order), "{ranges:?}: {message}");
    }
    assert_eq!(
        refused(&PLAIN, &[range(0, 5, 0.0), range(4, 2, 0.0)], 10),
        "sgd: range 1 is 4..6, must lie in 5..10 (in order, no overlap)"
    );
    for op in [Sgd { momentum: 0.0, ..NESTEROV }, Sgd { dampening: 0.5, ..NESTEROV }] {
        assert!(refused(&op, &[], 10).contains("nesterov needs momentum and no dampening"));
    }
}

#[test]
fn golden_sgd() {
    let Some(golden) = golden::open("ops/sgd.json") else { return };
    executors::all().iter().for_each(|device| compare(&golden, device));
}

fn compare(golden: &Golden, device: &Device) {
    let cases = golden.json.as_array().expect("cases");
    for case in cases {
        let (name, params) = (case["case"].as_str().expect("case"), &case["params"]);
        let number = |key: &str| params[key].as_f64().unwrap_or_else(|| panic!("{name}: {key}")) as f32;
        let (dims, mut p) = golden::input(&case["inputs"]["p0"]);
        let ranges = [range(0, dims[0], number("weight_decay"))];
        let mut momentum = vec![f32::NAN; dims[0]];
        let g_name = case["inputs"]["g_t"]["fill"].as_str().expect("fill");
        let (stem, _) = g_name.split_once("{t}").expect("a name for every step");
        for (t, lr) in params["lrs"].as_array().expect("lrs").iter().enumerate() {
            let g = fill::f32(&format!("{stem}{t}"), dims[0], 1.0, 0.0);
            let op = Sgd {
                lr: lr.as_f64().expect("lr") as f32,
                momentum: number("momentum"),
                dampening: number("dampening"),
                nesterov: params["nesterov"] == true,
                first_step: t == 0,
            };
            (p, momentum) = match device {
                Device::Cpu => run(&op, &ranges, &p, &g, &momentum),
                _ => everywhere::step_on(device, &op, &ranges, &[p, g, momentum]).into(),
            };
            let outputs = &case["outputs"];
            golden.assert_close(name, &outputs[format!("p{}", t + 1)], &as_f64(&p), 1e-5);
            golden.assert_close(name, &outputs[format!("buf{}", t + 1)], &as_f64(&momentum), 1e-5);
        }
    }
    golden.passed_on(device, cases.len());
}
