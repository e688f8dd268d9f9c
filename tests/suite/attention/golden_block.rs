//! PySlowFast's non-local block around the op: 1x1x1 convolutions, pooled keys, batch norm and shortcut as plain f64 loops here.

use serde_json::Value;
use vcycle::device::{DType, Device};
use vcycle::ops::attention::Instantiation;

use super::reference::Rounding;
use super::{Case, Left, expected, run};
use crate::compare::{as_f64, to_f32};
use crate::executors;
use crate::golden::{self, Golden};
use crate::stored::{self, SHORT};

/// Rows of `c` channels.
#[derive(Clone)]
struct Rows {
    c: usize,
    values: Vec<f64>,
}

impl Rows {
    fn rows(&self) -> std::slice::Chunks<'_, f64> {
        self.values.chunks(self.c)
    }

    /// `self W' + b`, W [out][in].
    fn linear(&self, w: &[f64], b: &[f64]) -> Rows {
        let of_row = |row: &[f64]| -> Vec<f64> {
            w.chunks(self.c).zip(b).map(|(w, b)| b + w.iter().zip(row).map(|(w, x)| w * x).sum::<f64>()).collect()
        };
        Rows { c: b.len(), values: self.rows().flat_map(of_row).collect() }
    }

    /// `self W`: the gradient of the input of `linear`.
    fn linear_back(&self, w: &[f64]) -> Rows {
        let c = w.len() / self.c;
        let of_row = |row: &[f64]| -> Vec<f64> {
            (0..c).map(|i| row.iter().enumerate().map(|(o, g)| g * w[o * c + i]).sum()).collect()
        };
        Rows { c, values: self.rows().flat_map(of_row).collect() }
    }

    /// Gradients of W and b of `linear`.
    fn grad_weight(&self, input: &Rows) -> [Vec<f64>; 2] {
        let (mut dw, mut db) = (vec![0.0; self.c * input.c], vec![0.0; self.c]);
        for (g, x) in self.rows().zip(input.rows()) {
            for o in 0..self.c {
                db[o] += g[o];
                (0..input.c).for_each(|i| dw[o * input.c + i] += g[o] * x[i]);
            }
        }
        [dw, db]
    }

    fn rounded(&self, dtype: DType) -> Vec<f32> {
        self.values.iter().map(|v| stored::round(dtype, *v) as f32).collect()
    }
}

/// For each row of the pooled map and channel, the row that holds the largest value.
fn max_pool(x: &Rows, [n, t, h, w]: [usize; 4], pool: [usize; 3]) -> (Rows, Vec<usize>, [usize; 3]) {
    let to = [t / pool[0], h / pool[1], w / pool[2]];
    let (mut values, mut from) = (vec![], vec![]);
    for i in 0..n * to[0] * to[1] * to[2] {
        let (pw, ph, pt, clip) = (i % to[2], i / to[2] % to[1], i / to[2] / to[1] % to[0], i / to[2] / to[1] / to[0]);
        for c in 0..x.c {
            let mut best: Option<usize> = None;
            for k in 0..pool.iter().product() {
                let (dw, dh, dt) = (k % pool[2], k / pool[2] % pool[1], k / pool[2] / pool[1]);
                let row = ((clip * t + pt * pool[0] + dt) * h + ph * pool[1] + dh) * w + pw * pool[2] + dw;
                let at = |row: usize| x.values[row * x.c + c];
                best = Some(best.filter(|&best| at(row) <= at(best)).unwrap_or(row));
            }
            let row = best.expect("a window");
            values.push(x.values[row * x.c + c]);
            from.push(row);
        }
    }
    (Rows { c: x.c, values }, from, to)
}

/// Batch norm of rows: output, and of the output's gradient those of input, gamma and beta.
struct Norm {
    mean: Vec<f64>,
    inverse: Vec<f64>,
    variance: Vec<f64>,
    is_training: bool,
}

impl Norm {
    fn new(x: &Rows, running: [&[f64]; 2], is_training: bool) -> Norm {
        let n = x.rows().len() as f64;
        let column_sum = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
            (0..x.c).map(|c| x.rows().map(|row| f(c, row[c])).sum::<f64>()).collect()
        };
        let [mut mean, mut variance] = running.map(<[f64]>::to_vec);
        if is_training {
            mean = column_sum(&|_, v| v).into_iter().map(|v| v / n).collect();
            variance = column_sum(&|c, v| (v - mean[c]) * (v - mean[c])).into_iter().map(|v| v / n).collect();
        }
        let inverse = variance.iter().map(|v| 1.0 / (v + 1e-5).sqrt()).collect();
        Norm { mean, inverse, variance, is_training }
    }

    fn hat(&self, x: &Rows) -> Rows {
        let of = |(i, v): (usize, &f64)| (v - self.mean[i % x.c]) * self.inverse[i % x.c];
        Rows { c: x.c, values: x.values.iter().enumerate().map(of).collect() }
    }

    fn backward(&self, hat: &Rows, gamma: &[f64], dy: &Rows) -> (Rows, Vec<f64>, Vec<f64>) {
        let (c, n) = (hat.c, hat.rows().len() as f64);
        let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
        for (g, h) in dy.rows().zip(hat.rows()) {
            (0..c).for_each(|i| {
                dgamma[i] += g[i] * h[i];
                dbeta[i] += g[i];
            });
        }
        let of = |(i, g): (usize, &f64)| {
            let at = i % c;
            let mean = if self.is_training { (dbeta[at] + hat.values[i] * dgamma[at]) / n } else { 0.0 };
            gamma[at] * self.inverse[at] * (g - mean)
        };
        (Rows { c, values: dy.values.iter().enumerate().map(of).collect() }, dgamma, dbeta)
    }
}

/// The values of an input, in f64; activations channels last.
fn input(case: &Value, name: &str) -> (Vec<usize>, Vec<f64>) {
    let (dims, values) = golden::input(&case["inputs"][name]);
    let is_map = name == "x" || name == "dy";
    let values = if is_map { golden::channels_last(&dims, &values) } else { values };
    (dims, as_f64(&values))
}

/// The op in the middle: of its operands' gradients and output.
type Attend<'a> = &'a dyn Fn(&Case, Instantiation, &[Vec<f32>; 4]) -> Left;

/// What a block computes, by the names of the golden file.
#[derive(Default)]
struct Block {
    results: Vec<(String, Vec<f64>)>,
    /// Zero by symmetry: the same shift of all keys under a softmax, a shift before batch norm, which weights that add up to 1 pass on
    /// from the values.
    zeros: Vec<(String, Vec<f64>)>,
}

/// The block around an op whose operands are stored as `dtype`.
fn block(case: &Value, dtype: DType, attend: Attend) -> Block {
    let (name, params) = (case["case"].as_str().expect("case"), &case["params"]);
    let (dims, x) = input(case, "x");
    let [n, c, t, h, w] = <[usize; 5]>::try_from(dims.clone()).expect("five sizes");
    let (x, dy) = (Rows { c, values: x }, Rows { c, values: input(case, "dy").1 });
    let weights = |name: &str| [input(case, &format!("{name}.weight")).1, input(case, &format!("{name}.bias")).1];
    let [theta, phi, g, out, bn] = ["conv_theta", "conv_phi", "conv_g", "conv_out", "bn"].map(weights);
    let kind = match params["instantiation"].as_str().expect("instantiation") {
        "softmax" => Instantiation::Softmax,
        _ => Instantiation::DotProduct,
    };
    let pool =
        params["pool"].as_array().map_or([1; 3], |pool| [0, 1, 2].map(|i| pool[i].as_u64().expect("a size") as usize));
    let (pooled, from, keys) = max_pool(&x, [n, t, h, w], pool);

    // The block once without its gradient, to have the gradient of the op's output; then the op with both.
    let operand = |rows: &Rows, [w, b]: &[Vec<f64>; 2]| rows.linear(w, b).rounded(dtype);
    let of_op = Case { name: name.into(), clips: n, queries: [t, h, w], keys, depth: theta[1].len(), gaps: [0, 0] };
    let mut operands = [operand(&x, &theta), operand(&pooled, &phi), operand(&pooled, &g), vec![]];
    operands[3] = vec![0.0; operands[0].len()];
    let left = attend(&of_op, kind, &operands);
    let attended = Rows { c: of_op.depth, values: as_f64(&left.output) };
    let projected = attended.linear(&out[0], &out[1]);
    let running = ["bn.running_mean", "bn.running_var"].map(|name| input(case, name).1);
    let norm = Norm::new(&projected, [&running[0], &running[1]], params["training"] == true);
    let hat = norm.hat(&projected);
    let y: Vec<f64> =
        hat.values.iter().zip(&x.values).enumerate().map(|(i, (h, x))| h * bn[0][i % c] + bn[1][i % c] + x).collect();
    let (d_projected, dgamma, dbeta) = norm.backward(&hat, &bn[0], &dy);
    operands[3] = d_projected.linear_back(&out[0]).rounded(dtype);
    let Left { grads, .. } = attend(&of_op, kind, &operands);
    let [d_theta, d_phi, d_g] = grads.map(|grad| Rows { c: of_op.depth, values: as_f64(&grad) });

    let mut dx = dy.values.clone();
    dx.iter_mut().zip(d_theta.linear_back(&theta[0]).values).for_each(|(dx, d)| *dx += d);
    for d in [d_phi.linear_back(&phi[0]), d_g.linear_back(&g[0])] {
        for (i, d) in d.values.iter().enumerate() {
            dx[from[i] * c + i % c] += d;
        }
    }
    let channels_first = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        golden::channels_first(&dims, &values)
    };
    let mut block = Block::default();
    let mut keep = |what: &str, got: Vec<f64>| block.results.push((what.into(), got));
    keep("y", channels_first(&y));
    keep("dx", channels_first(&dx));
    keep("d_bn.weight", dgamma);
    keep("d_bn.bias", dbeta);
    for (what, d, input) in [
        ("conv_theta", &d_theta, &x),
        ("conv_phi", &d_phi, &pooled),
        ("conv_g", &d_g, &pooled),
        ("conv_out", &d_projected, &attended),
    ] {
        let [dw, db] = d.grad_weight(input);
        block.results.push((format!("d_{what}.weight"), dw));
        let is_softmax = kind == Instantiation::Softmax;
        let is_zero = match what {
            "conv_phi" => is_softmax,
            "conv_g" => is_softmax && norm.is_training,
            "conv_out" => norm.is_training,
            _ => false,
        };
        let list = if is_zero { &mut block.zeros } else { &mut block.results };
        list.push((format!("d_{what}.bias"), db));
    }
    if norm.is_training {
        let n = projected.rows().len() as f64;
        let blend =
            |old: &[f64], new: &[f64]| -> Vec<f64> { old.iter().zip(new).map(|(o, n)| 0.9 * o + 0.1 * n).collect() };
        block.results.push(("running_mean".into(), blend(&running[0], &norm.mean)));
        let unbiased: Vec<f64> = norm.variance.iter().map(|v| v * n / (n - 1.0)).collect();
        block.results.push(("running_var".into(), blend(&running[1], &unbiased)));
    }
    block
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

fn compare(golden: &Golden, case: &Value) {
    let name = case["case"].as_str().expect("case");
    let block = block(case, DType::F32, &|op, kind, operands| run(&Device::Cpu, op, kind, DType::F32, operands));
    for (what, got) in &block.results {
        golden.assert_close(name, &case["outputs"][what], got, 1e-4);
    }
    for (what, got) in &block.zeros {
        assert!(largest(got) < 1e-3, "{name}: {what} is not zero: {got:?}");
    }
}

/// With the op on kernels: no further from PyTorch than twice what plain code at that type is, plus one rounding.
fn compare_on(device: &Device, dtype: DType, golden: &Golden, case: &Value) {
    let ours = block(case, dtype, &|op, kind, operands| run(device, op, kind, dtype, operands));
    let plain = block(case, dtype, &|op, kind, operands| {
        let rounding = Rounding { sum: to_f32, store: stored::rounding(dtype) };
        let [output, log2_sum, query, key, value] =
            expected(rounding, op, kind, operands).map(|all| all.iter().map(|v| *v as f32).collect::<Vec<_>>());
        Left { output, log2_sum, grads: [query, key, value] }
    });
    // A gradient that is zero by symmetry is nothing but roundings: weight and bias count as one.
    let error = |block: &Block, i: usize| {
        let (what, values) = &block.results[i];
        let output = &case["outputs"][what];
        let zero = block.zeros.iter().find(|(zero, _)| what.strip_suffix("weight") == zero.strip_suffix("bias"));
        let of_zero = zero.map_or(0.0, |(_, bias)| bias.iter().map(|v| v * v).sum::<f64>().sqrt());
        golden.compare(output, values).rel_l2.hypot(of_zero / output["l2"].as_f64().expect("l2"))
    };
    for (i, (what, _)) in ours.results.iter().enumerate() {
        let (error, bound) = (error(&ours, i), 2.0 * error(&plain, i) + stored::unit_roundoff(dtype));
        assert!(error <= bound, "{device} {dtype:?} {}: {what}: {error:e} > {bound:e}", case["case"]);
    }
}

#[test]
fn golden_nonlocal() {
    let Some(golden) = golden::open("ops/nonlocal.json") else { return };
    let cases = golden.json.as_array().expect("cases");
    for case in cases {
        compare(&golden, case);
    }
    golden.passed(cases.len());
    for device in &executors::with_kernels() {
        for case in cases {
            SHORT.iter().for_each(|dtype| compare_on(device, *dtype, &golden, case));
        }
        golden.passed_on(device, cases.len());
    }
}
