//! conv3d: exact, random, gradient and repeat tests over tests/cases/conv3d.toml; golden cases; refusals. This file has the
//! native form and the reference, `kernels` the plain kernels, `fused` and `fused_grad` prologues and epilogues,
//! `grad_filter` and `grad_filter_pool` the filter's gradient, `wgmma` the kernels of compute capability 9.0.

mod backward;
mod backward_refused;
mod fused;
mod fused_grad;
mod grad_filter;
mod grad_filter_pool;
mod kernels;
mod mapping;
mod of_splits;
mod split_order;
mod tiles;
mod typed;
mod wgmma;

use serde::Deserialize;
use vcycle::device::{Buffer, DType, Device, Slice, Stream, Tensor};
use vcycle::ops::conv3d::{self, Conv3d, Direction, reference};
use vcycle::shape::ActivationShape;

use crate::golden::{self, fill};

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    input: [usize; 5],
    c_out: usize,
    filter: [usize; 3],
    #[serde(default = "one")]
    stride: [usize; 3],
    #[serde(default)]
    padding: [usize; 3],
    #[serde(default = "one")]
    dilation: [usize; 3],
    groups: Option<usize>,
    #[serde(default)]
    bias: bool,
    #[serde(default)]
    input_pitch: usize,
    #[serde(default)]
    output_pitch: usize,
    #[serde(default)]
    all_modes: bool,
}

fn one() -> [usize; 3] {
    [1; 3]
}

impl Case {
    fn op(&self) -> Conv3d {
        let [n, t, h, w, c] = self.input;
        Conv3d {
            input: ActivationShape::new(n, t, h, w, c),
            c_out: self.c_out,
            filter: self.filter,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            groups: self.groups.unwrap_or(1),
            part: None,
        }
    }
}

fn cases() -> Vec<Case> {
    toml::from_str::<Cases>(&crate::executors::cases("conv3d")).expect("tests/cases/conv3d.toml").case
}

/// The operands of all three directions, dense.
struct Operands {
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
    dy: Vec<f32>,
    dx_before: Vec<f32>,
}

impl Operands {
    fn new(case: &Case, value: impl Fn(&str, usize) -> Vec<f32>) -> Operands {
        let op = case.op();
        Operands {
            x: value("x", op.input.num_elements()),
            w: value("w", op.filter_len()),
            bias: case.bias.then(|| value("bias", op.c_out)),
            dy: value("dy", op.output().num_elements()),
            dx_before: value("dx", op.input.num_elements()),
        }
    }

    /// Integers in -4..=4: every sum below 2^24 is exact in f32, in any order.
    fn integers(case: &Case) -> Operands {
        Operands::new(case, |what, n| {
            fill::int(&format!("{}/{what}", case.name), n, 9).into_iter().map(|v| v as f32 - 4.0).collect()
        })
    }

    fn random(case: &Case) -> Operands {
        Operands::new(case, |what, n| fill::f32(&format!("{}/{what}", case.name), n, 1.0, 0.0))
    }
}

/// What the op under test gives: y, dx, dx added to `dx_before`, dw, db; dense.
#[derive(PartialEq)]
struct Results {
    y: Vec<f32>,
    dx: Vec<f32>,
    dx_added: Vec<f32>,
    dw: Vec<f32>,
    db: Vec<f32>,
}

/// A value that no gap between channels may lose.
const GAP: f32 = 77.0;

/// A tensor with `extra` channels of [`GAP`] after those of each position, and the buffer that holds it.
fn pitched(shape: ActivationShape, values: &[f32], extra: usize) -> (Tensor, Slice) {
    let mut wide = vec![GAP; shape.num_positions() * (shape.c + extra)];
    for (to, from) in wide.chunks_mut(shape.c + extra).zip(values.chunks(shape.c)) {
        to[..shape.c].copy_from_slice(from);
    }
    let memory = Buffer::from_host(&Device::Cpu, &wide).expect("buffer");
    (Tensor::new(memory.clone(), shape, shape.c + extra).expect("tensor"), memory)
}

fn assert_gaps_kept(case: &str, shape: ActivationShape, memory: &Slice) {
    let all = memory.read::<f32>().expect("read");
    let pitch = all.len() / shape.num_positions();
    assert!(all.chunks(pitch).all(|p| p[shape.c..].iter().all(|&v| v == GAP)), "{case}: a gap was written");
}

/// Scratch memory filled with garbage: an op must not expect zeros.
fn workspace(stream: &Stream, op: &Conv3d, direction: Direction) -> Slice {
    let bytes = conv3d::workspace_bytes(stream, op, direction);
    Buffer::from_host(&Device::Cpu, &vec![0xabu8; bytes]).expect("workspace")
}

fn run(name: &str, op: &Conv3d, input_gap: usize, output_gap: usize, o: &Operands) -> Results {
    let stream = Device::Cpu.stream().expect("stream");
    let device = Device::Cpu;
    let w = Buffer::from_host(&device, &o.w).expect("w");
    let bias = o.bias.as_ref().map(|b| Buffer::from_host(&device, b).expect("bias"));
    let (x, _) = pitched(op.input, &o.x, input_gap);
    let (dy, _) = pitched(op.output(), &o.dy, output_gap);

    let (y, y_memory) = pitched(op.output(), &vec![5.0; op.output().num_elements()], output_gap);
    conv3d::forward(&stream, op, &x, &w, bias.as_ref(), &y, &workspace(&stream, op, Direction::Forward))
        .expect("forward");
    assert_gaps_kept(name, op.output(), &y_memory);

    let mut dx = vec![];
    for accumulate in [false, true] {
        let (to, memory) = pitched(op.input, &o.dx_before, input_gap);
        let scratch = workspace(&stream, op, Direction::GradInput);
        conv3d::grad_input(&stream, op, &dy, &w, &to, accumulate, &scratch).expect("grad_input");
        assert_gaps_kept(name, op.input, &memory);
        dx.push(to.read::<f32>().expect("dx"));
    }

    let dw = Buffer::from_host(&device, &vec![3.0f32; op.filter_len()]).expect("dw");
    let db = o.bias.as_ref().map(|b| Buffer::from_host(&device, b).expect("db"));
    let scratch = workspace(&stream, op, Direction::GradFilter);
    conv3d::grad_filter(&stream, op, &x, &dy, &dw, db.as_ref(), &scratch).expect("grad_filter");
    let (dx_added, dx) = (dx.pop().expect("two"), dx.pop().expect("two"));
    Results {
        y: y.read().expect("y"),
        dx,
        dx_added,
        dw: dw.read().expect("dw"),
        db: db.map_or(vec![], |db| db.read().expect("db")),
    }
}

fn run_case(case: &Case, o: &Operands) -> Results {
    run(&case.name, &case.op(), case.input_pitch, case.output_pitch, o)
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// The same from the reference.
fn expected(op: &Conv3d, o: &Operands) -> [(&'static str, Vec<f64>); 5] {
    let (x, w, dy, bias) = (f64s(&o.x), f64s(&o.w), f64s(&o.dy), o.bias.as_deref().map(f64s));
    let dx = reference::grad_input(op, &dy, &w);
    let dx_added = dx.iter().zip(&o.dx_before).map(|(a, &b)| a + f64::from(b)).collect();
    let db = bias.as_ref().map_or(vec![], |_| reference::grad_bias(op, &dy));
    [
        ("y", reference::forward(op, &x, &w, bias.as_deref())),
        ("dx", dx),
        ("dx_added", dx_added),
        ("dw", reference::grad_filter(op, &x, &dy)),
        ("db", db),
    ]
}

impl Results {
    fn all(&self) -> [&[f32]; 5] {
        [&self.y, &self.dx, &self.dx_added, &self.dw, &self.db]
    }
}

#[test]
fn small_integers_are_exact() {
    for case in cases() {
        let operands = Operands::integers(&case);
        let got = run_case(&case, &operands);
        for ((what, want), got) in expected(&case.op(), &operands).iter().zip(got.all()) {
            assert_eq!(want.len(), got.len(), "{}: {what}", case.name);
            let wrong = want.iter().zip(got).position(|(&w, &g)| w != f64::from(g));
            if let Some(i) = wrong {
                panic!("{}: {what}[{i}]: expected {}, got {} ({:?})", case.name, want[i], got[i], case.op());
            }
        }
    }
}

/// One f32 sum after another, as the plainest f32 program would do it.
fn plain_f32(op: &Conv3d, o: &Operands) -> [Vec<f32>; 5] {
    let (x, w, dy) = (&o.x, &o.w, &o.dy);
    let mut y = vec![0f32; op.output().num_elements()];
    let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0f32; w.len()]);
    reference::for_each_term(op, |t| {
        y[t.y] += x[t.x] * w[t.w];
        dx[t.x] += dy[t.y] * w[t.w];
        dw[t.w] += dy[t.y] * x[t.x];
    });
    let mut db = o.bias.as_ref().map_or(vec![], |b| vec![0f32; b.len()]);
    for (y, dy) in y.chunks_mut(op.c_out).zip(dy.chunks(op.c_out)) {
        o.bias.iter().flatten().zip(y).for_each(|(b, y)| *y += b);
        db.iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
    }
    let dx_added = dx.iter().zip(&o.dx_before).map(|(a, b)| a + b).collect();
    [y, dx, dx_added, dw, db]
}

#[test]
fn random_values_are_as_near_as_plain_f32() {
    for case in cases() {
        let operands = Operands::random(&case);
        let (got, plain) = (run_case(&case, &operands), plain_f32(&case.op(), &operands));
        for (((what, want), got), plain) in expected(&case.op(), &operands).iter().zip(got.all()).zip(&plain) {
            let error =
                |have: &[f32]| want.iter().zip(have).map(|(w, &h)| (w - f64::from(h)).abs()).fold(0.0, f64::max);
            let rounding = want.iter().fold(0.0, |m: f64, v| m.max(v.abs())) * f64::from(f32::EPSILON) / 2.0;
            let (ours, allowed) = (error(got), 2.0 * error(plain) + rounding);
            assert!(ours <= allowed, "{}: {what}: error {ours:.3e} > {allowed:.3e} ({:?})", case.name, case.op());
        }
    }
}

#[test]
fn reference_gradients_are_the_slopes_of_its_forward() {
    for case in cases() {
        let op = case.op();
        let o = Operands::random(&case);
        let (x, w, dy, bias) = (f64s(&o.x), f64s(&o.w), f64s(&o.dy), o.bias.as_deref().map(f64s));
        let loss = |x: &[f64], w: &[f64], bias: Option<&[f64]>| -> f64 {
            reference::forward(&op, x, w, bias).iter().zip(&dy).map(|(a, b)| a * b).sum()
        };
        // The forward is linear in each operand: a wide central difference has only the rounding of f64 sums as its error.
        let slope = |at: &[f64], i: usize, loss: &dyn Fn(&[f64]) -> f64| {
            let mut moved = at.to_vec();
            moved[i] += 1.0;
            let up = loss(&moved);
            moved[i] -= 2.0;
            (up - loss(&moved)) / 2.0
        };
        let check = |what: &str, at: &[f64], gradient: &[f64], loss: &dyn Fn(&[f64]) -> f64| {
            for k in 0..4 {
                let i = fill::hash(&format!("{}/{what}", case.name), k) as usize % at.len();
                let slope = slope(at, i, loss);
                assert!((slope - gradient[i]).abs() < 1e-9, "{}: {what}[{i}]: {slope} {}", case.name, gradient[i]);
            }
        };
        check("dx", &x, &reference::grad_input(&op, &dy, &w), &|x| loss(x, &w, bias.as_deref()));
        check("dw", &w, &reference::grad_filter(&op, &x, &dy), &|w| loss(&x, w, bias.as_deref()));
        if let Some(bias) = &bias {
            check("db", bias, &reference::grad_bias(&op, &dy), &|b| loss(&x, &w, Some(b)));
        }
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("pool");
    let (one, three) = (pool(1), pool(3));
    for case in cases() {
        let operands = Operands::random(&case);
        let first = one.install(|| run_case(&case, &operands));
        for again in [one.install(|| run_case(&case, &operands)), three.install(|| run_case(&case, &operands))] {
            assert!(first == again, "{}: results differ between runs", case.name);
        }
    }
}

/// A golden case: what is convolved, with the operands, and the shape of y in PyTorch's order.
fn golden_case(case: &serde_json::Value) -> (Case, Operands, [Vec<usize>; 3]) {
    let name = case["case"].as_str().expect("case");
    let get = |what: &str| golden::input(&case["inputs"][what]);
    let ((x_shape, x), (w_shape, w), (_, dy)) = (get("x"), get("w"), get("dy"));
    let bias = case["inputs"]["b"].is_object().then(|| get("b").1);
    let three = |key: &str| {
        <[usize; 3]>::try_from(golden::dims(&case["params"][key])).unwrap_or_else(|_| panic!("{name}: {key}"))
    };
    let y_shape = golden::dims(&case["outputs"]["y"]["shape"]);
    let operands = Operands {
        dx_before: vec![0.0; x.len()],
        x: golden::channels_last(&x_shape, &x),
        w: golden::channels_last(&w_shape, &w),
        dy: golden::channels_last(&y_shape, &dy),
        bias,
    };
    let described = Case {
        name: name.to_string(),
        input: [x_shape[0], x_shape[2], x_shape[3], x_shape[4], x_shape[1]],
        c_out: w_shape[0],
        filter: [w_shape[2], w_shape[3], w_shape[4]],
        stride: three("stride"),
        padding: three("padding"),
        dilation: three("dilation"),
        groups: Some(x_shape[1] / w_shape[1]),
        bias: operands.bias.is_some(),
        input_pitch: 0,
        output_pitch: 0,
        all_modes: false,
    };
    (described, operands, [x_shape, w_shape, y_shape])
}

#[test]
fn golden_conv3d() {
    let Some(golden) = golden::open("ops/conv3d.json") else { return };
    let list = golden.json.as_array().expect("a list of cases");
    for case in list {
        let (described, operands, [x_shape, w_shape, y_shape]) = golden_case(case);
        let got = run_case(&described, &operands);
        let close = |what: &str, got: &[f64]| golden.assert_close(&described.name, &case["outputs"][what], got, 1e-5);
        close("y", &golden::channels_first(&y_shape, &got.y));
        close("dx", &golden::channels_first(&x_shape, &got.dx));
        close("dw", &golden::channels_first(&w_shape, &got.dw));
        if operands.bias.is_some() {
            close("db", &f64s(&got.db));
        }
    }
    golden.passed(list.len());
}

#[test]
fn sizes_that_do_not_fit_are_refused_by_name() {
    let good = Conv3d {
        input: ActivationShape::new(1, 2, 4, 4, 6),
        c_out: 4,
        filter: [1, 3, 3],
        stride: [1; 3],
        padding: [0; 3],
        dilation: [1; 3],
        groups: 1,
        part: None,
    };
    good.check().expect("good");
    let refused = |op: Conv3d, words: &str| {
        let message = op.check().expect_err(words).to_string();
        assert!(message.contains(words), "{message}");
    };
    refused(Conv3d { c_out: 0, ..good }, "must not be zero");
    refused(Conv3d { stride: [1, 0, 1], ..good }, "in h");
    refused(Conv3d { groups: 4, ..good }, "multiples of groups 4");
    refused(Conv3d { filter: [3, 3, 3], ..good }, "spans 3 in t, the input with its padding only 2");
    refused(Conv3d { dilation: [1, 2, 2], ..good }, "spans 5 in h");
    refused(Conv3d { padding: [usize::MAX, 0, 0], ..good }, "too large");
    refused(Conv3d { input: ActivationShape::new(1 << 44, 2, 4, 4, 6), ..good }, "more elements than memory");
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let case = cases().into_iter().find(|c| c.name == "pointwise_tails").expect("case");
    let (op, device) = (case.op(), Device::Cpu);
    let stream = device.stream().expect("stream");
    let tensor = |shape, dtype| Tensor::zeroed(&device, dtype, shape).expect("tensor");
    let floats = |n: usize| Buffer::from_host(&device, &vec![0f32; n]).expect("slice");
    let (x, y, w, b) =
        (tensor(op.input, DType::F32), tensor(op.output(), DType::F32), floats(op.filter_len()), floats(op.c_out));
    let scratch = floats(1 << 20);
    let forward = |x: &Tensor, w: &Slice, b: &Slice, y: &Tensor, scratch: &Slice| {
        conv3d::forward(&stream, &op, x, w, Some(b), y, scratch)
    };
    forward(&x, &w, &b, &y, &scratch).expect("good operands");
    let refused = |result: vcycle::Result<()>, words: &[&str]| {
        let message = result.expect_err(words[0]).to_string();
        words.iter().for_each(|word| assert!(message.contains(word), "{word}: {message}"));
    };
    refused(forward(&y, &w, &b, &y, &scratch), &["conv3d forward", "input must be [2,2,3,5,13]", "[2,2,3,5,19]"]);
    refused(forward(&x, &b, &b, &y, &scratch), &["filter must have 247 elements, got 19"]);
    refused(forward(&x, &w, &w, &y, &scratch), &["bias must have 19 elements, got 247"]);
    refused(forward(&x, &w, &b, &x, &scratch), &["output must be [2,2,3,5,19]"]);
    refused(forward(&x, &w, &b, &tensor(op.output(), DType::Bf16), &scratch), &["output must be F32, got Bf16"]);
    refused(forward(&x, &w, &b, &y, &floats(1)), &["workspace must have", "got 4"]);
    let odd = Buffer::zeroed(&device, 1 << 20).expect("bytes").slice::<u8>(1, 1 << 19).expect("odd");
    refused(forward(&x, &w, &b, &y, &odd), &["multiple of 4, got 1"]);
    let dx = tensor(op.input, DType::F32);
    refused(conv3d::grad_input(&stream, &op, &x, &w, &dx, false, &scratch), &["conv3d grad_input", "grad_output"]);
    refused(conv3d::grad_filter(&stream, &op, &x, &y, &w, Some(&w), &scratch), &["conv3d grad_filter", "grad_bias"]);
}
