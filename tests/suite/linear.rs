//! linear: exact, random and repeat tests over tests/cases/linear.toml; gradient check of the reference; refusals. Here on
//! the CPU; `everywhere`: the kernels.

mod everywhere;

use serde::Deserialize;
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::linear::{self, reference};
use vcycle::shape::ActivationShape;

use crate::golden::fill;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    positions: usize,
    c_in: usize,
    c_out: usize,
    #[serde(default)]
    bias: bool,
    /// For the benches.
    #[serde(default, rename = "bench")]
    is_bench: bool,
    #[serde(default)]
    input_pitch: usize,
    #[serde(default)]
    output_pitch: usize,
}

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
    layer: Vec<Case>,
}

fn cases() -> Vec<Case> {
    let text = crate::executors::cases("linear");
    let Cases { mut case, layer } = toml::from_str(&text).expect("tests/cases/linear.toml");
    case.extend(layer);
    case
}

struct Operands {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    dy: Vec<f32>,
}

impl Operands {
    fn new(case: &Case, value: impl Fn(&str, usize) -> Vec<f32>) -> Operands {
        Operands {
            x: value("x", case.positions * case.c_in),
            w: value("w", case.c_out * case.c_in),
            bias: case.bias.then(|| value("bias", case.c_out)),
            dy: value("dy", case.positions * case.c_out),
        }
    }

    fn random(case: &Case) -> Operands {
        Operands::new(case, |what, n| fill::f32(&format!("{}/{what}", case.name), n, 1.0, 0.0))
    }
}

/// y, dx, dw, db; dense.
type Results<T> = [Vec<T>; 4];

fn pitched(positions: usize, c: usize, values: &[f32], extra: usize) -> Tensor {
    let mut wide = vec![77.0; positions * (c + extra)];
    for (to, from) in wide.chunks_mut(c + extra).zip(values.chunks(c)) {
        to[..c].copy_from_slice(from);
    }
    let memory = Buffer::from_host(&Device::Cpu, &wide).expect("buffer");
    Tensor::new(memory, ActivationShape::new(positions, 1, 1, 1, c), c + extra).expect("tensor")
}

fn assert_gaps_kept(tensor: &Tensor) {
    let all = tensor.memory().read::<f32>().expect("read");
    let c = tensor.shape().c;
    assert!(all.chunks(tensor.pitch_c()).all(|p| p[c..].iter().all(|&v| v == 77.0)), "a gap was written");
}

fn run(case: &Case, o: &Operands) -> Results<f32> {
    let device = Device::Cpu;
    let stream = device.stream().expect("stream");
    let w = Buffer::from_host(&device, &o.w).expect("w");
    let bias = o.bias.as_ref().map(|b| Buffer::from_host(&device, b).expect("bias"));
    let x = pitched(case.positions, case.c_in, &o.x, case.input_pitch);
    let y = pitched(case.positions, case.c_out, &vec![5.0; o.dy.len()], case.output_pitch);
    linear::forward(&stream, &x, &w, bias.as_ref(), &y).expect("forward");

    let dy = pitched(case.positions, case.c_out, &o.dy, case.output_pitch);
    let dx = pitched(case.positions, case.c_in, &vec![5.0; o.x.len()], case.input_pitch);
    let dw = Buffer::from_host(&device, &vec![5.0f32; o.w.len()]).expect("dw");
    let db = o.bias.as_ref().map(|b| Buffer::from_host(&device, b).expect("db"));
    linear::backward(&stream, &x, &w, &dy, &dx, &dw, db.as_ref()).expect("backward");
    [&y, &dx].into_iter().for_each(assert_gaps_kept);
    let read = |t: &Tensor| t.read::<f32>().expect("read");
    [read(&y), read(&dx), dw.read().expect("dw"), db.map_or(vec![], |db| db.read().expect("db"))]
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn expected(case: &Case, o: &Operands) -> Results<f64> {
    let (x, w, dy, bias) = (f64s(&o.x), f64s(&o.w), f64s(&o.dy), o.bias.as_deref().map(f64s));
    let (dx, dw, db) = reference::backward(case.c_in, &x, &w, &dy);
    let y = reference::forward(case.c_in, &x, &w, bias.as_deref());
    [y, dx, dw, if bias.is_some() { db } else { vec![] }]
}

#[test]
fn small_integers_are_exact() {
    for case in cases() {
        let operands = Operands::new(&case, |what, n| {
            fill::int(&format!("{}/{what}", case.name), n, 9).into_iter().map(|v| v as f32 - 4.0).collect()
        });
        let want = expected(&case, &operands).map(|v| v.iter().map(|&v| v as f32).collect::<Vec<_>>());
        for (i, (want, got)) in want.iter().zip(&run(&case, &operands)).enumerate() {
            assert_eq!(want, got, "{}: result {i} of y, dx, dw, db", case.name);
        }
    }
}

/// One f32 sum after another, as the plainest f32 program would do it.
fn plain_f32(case: &Case, o: &Operands) -> Results<f32> {
    let (mut y, mut dx, mut dw) = (vec![0f32; o.dy.len()], vec![0f32; o.x.len()], vec![0f32; o.w.len()]);
    let mut db = vec![0f32; o.bias.as_ref().map_or(0, Vec::len)];
    for p in 0..case.positions {
        for co in 0..case.c_out {
            let (i, g) = (p * case.c_out + co, o.dy[p * case.c_out + co]);
            for ci in 0..case.c_in {
                let (j, k) = (p * case.c_in + ci, co * case.c_in + ci);
                y[i] += o.x[j] * o.w[k];
                dx[j] += g * o.w[k];
                dw[k] += g * o.x[j];
            }
            if let Some(bias) = &o.bias {
                y[i] += bias[co];
                db[co] += g;
            }
        }
    }
    [y, dx, dw, db]
}

#[test]
fn random_values_are_as_near_as_plain_f32() {
    for case in cases() {
        let operands = Operands::random(&case);
        let (want, plain) = (expected(&case, &operands), plain_f32(&case, &operands));
        for (i, ((want, got), plain)) in want.iter().zip(&run(&case, &operands)).zip(&plain).enumerate() {
            let error =
                |have: &[f32]| want.iter().zip(have).map(|(w, &h)| (w - f64::from(h)).abs()).fold(0.0, f64::max);
            let rounding = want.iter().fold(0.0, |m: f64, v| m.max(v.abs())) * f64::from(f32::EPSILON) / 2.0;
            let (ours, allowed) = (error(got), 2.0 * error(plain) + rounding);
            assert!(ours <= allowed, "{}: result {i} of y, dx, dw, db: error {ours:.3e} > {allowed:.3e}", case.name);
        }
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("pool");
    let (one, three) = (pool(1), pool(3));
    for case in cases() {
        let operands = Operands::random(&case);
        let (first, second) = (one.install(|| run(&case, &operands)), three.install(|| run(&case, &operands)));
        assert!(first == second, "{}: results depend on the number of threads", case.name);
    }
}

#[test]
fn reference_gradients_are_the_slopes_of_its_forward() {
    let case = cases().into_iter().find(|c| c.name == "tails").expect("case");
    let o = Operands::random(&case);
    let (x, w, dy, bias) = (f64s(&o.x), f64s(&o.w), f64s(&o.dy), f64s(o.bias.as_ref().expect("bias")));
    let loss = |x: &[f64], w: &[f64], b: &[f64]| -> f64 {
        reference::forward(case.c_in, x, w, Some(b)).iter().zip(&dy).map(|(a, b)| a * b).sum()
    };
    let (dx, dw, db) = reference::backward(case.c_in, &x, &w, &dy);
    // Linear in each operand: a wide central difference has only the rounding of f64 sums as its error.
    let check = |at: &[f64], gradient: &[f64], loss: &dyn Fn(&[f64]) -> f64| {
        for i in 0..at.len() {
            let (mut up, mut down) = (at.to_vec(), at.to_vec());
            up[i] += 1.0;
            down[i] -= 1.0;
            let slope = (loss(&up) - loss(&down)) / 2.0;
            assert!((slope - gradient[i]).abs() < 1e-10, "{i}: {slope} {}", gradient[i]);
        }
    };
    check(&x, &dx, &|x| loss(x, &w, &bias));
    check(&w, &dw, &|w| loss(&x, w, &bias));
    check(&bias, &db, &|b| loss(&x, &w, b));
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let device = Device::Cpu;
    let stream = device.stream().expect("stream");
    let tensor = |n, c, dtype| Tensor::zeroed(&device, dtype, ActivationShape::new(n, 1, 1, 1, c)).expect("tensor");
    let floats = |n: usize| Buffer::from_host(&device, &vec![0f32; n]).expect("slice");
    let (x, w, b, y) = (tensor(3, 5, DType::F32), floats(20), floats(4), tensor(3, 4, DType::F32));
    linear::forward(&stream, &x, &w, Some(&b), &y).expect("good operands");
    let refused = |result: vcycle::Result<()>, words: &str| {
        let message = result.expect_err(words).to_string();
        assert!(message.contains(words), "{words}: {message}");
    };
    refused(linear::forward(&stream, &x, &b, None, &y), "weight must have 4 x 5 elements, got 4");
    refused(linear::forward(&stream, &x, &w, Some(&w), &y), "bias must have 4 elements, got 20");
    refused(linear::forward(&stream, &x, &w, None, &tensor(2, 4, DType::F32)), "must have the same positions");
    refused(
        linear::forward(&stream, &x, &w, None, &tensor(3, 4, DType::F16)),
        "output must hold F32 (with kernels also F32), got F16",
    );
    let dx = tensor(3, 5, DType::F32);
    refused(linear::backward(&stream, &x, &w, &y, &tensor(3, 6, DType::F32), &floats(24), None), "grad_input must be");
    refused(
        linear::backward(&stream, &x, &w, &y, &dx, &floats(20), Some(&floats(5))),
        "grad_bias must have 4 elements",
    );
}
