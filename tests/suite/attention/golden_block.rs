//! PySlowFast's non-local block around the op: 1x1x1 convolutions, pooled keys, batch norm and shortcut as plain f64 loops here.

use serde_json::Value;
use vcycle::device::{DType, Device};
use vcycle::ops::attention::Instantiation;

use super::{Case, Left, run};
use crate::compare::as_f64;
use crate::golden::{self, Golden};

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

    fn f32s(&self) -> Vec<f32> {
        self.values.iter().map(|v| *v as f32).collect()
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

fn compare(golden: &Golden, case: &Value) {
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
    let operand = |rows: &Rows, [w, b]: &[Vec<f64>; 2]| rows.linear(w, b).f32s();
    let of_op = Case { name: name.into(), clips: n, queries: [t, h, w], keys, depth: theta[1].len(), gaps: [0, 0] };
    let mut operands = [operand(&x, &theta), operand(&pooled, &phi), operand(&pooled, &g), vec![]];
    operands[3] = vec![0.0; operands[0].len()];
    let left = run(&Device::Cpu, &of_op, kind, DType::F32, &operands);
    let attended = Rows { c: of_op.depth, values: as_f64(&left.output) };
    let projected = attended.linear(&out[0], &out[1]);
    let running = ["bn.running_mean", "bn.running_var"].map(|name| input(case, name).1);
    let norm = Norm::new(&projected, [&running[0], &running[1]], params["training"] == true);
    let hat = norm.hat(&projected);
    let y: Vec<f64> =
        hat.values.iter().zip(&x.values).enumerate().map(|(i, (h, x))| h * bn[0][i % c] + bn[1][i % c] + x).collect();
    let (d_projected, dgamma, dbeta) = norm.backward(&hat, &bn[0], &dy);
    operands[3] = d_projected.linear_back(&out[0]).f32s();
    let Left { grads, .. } = run(&Device::Cpu, &of_op, kind, DType::F32, &operands);
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
    let outputs = &case["outputs"];
    let close = |what: &str, got: &[f64]| golden.assert_close(name, &outputs[what], got, 1e-4);
    close("y", &channels_first(&y));
    close("dx", &channels_first(&dx));
    close("d_bn.weight", &dgamma);
    close("d_bn.bias", &dbeta);
    for (what, d, input) in [
        ("conv_theta", &d_theta, &x),
        ("conv_phi", &d_phi, &pooled),
        ("conv_g", &d_g, &pooled),
        ("conv_out", &d_projected, &attended),
    ] {
        let [dw, db] = d.grad_weight(input);
        close(&format!("d_{what}.weight"), &dw);
        // Zero by symmetry: the same shift of all keys under a softmax, a shift before batch norm, which weights that add
        // up to 1 pass on from the values.
        let is_softmax = kind == Instantiation::Softmax;
        let is_zero = match what {
            "conv_phi" => is_softmax,
            "conv_g" => is_softmax && norm.is_training,
            "conv_out" => norm.is_training,
            _ => false,
        };
        if is_zero {
            assert!(db.iter().all(|v| v.abs() < 1e-3), "{name}: d_{what}.bias is not zero: {db:?}");
        } else {
            close(&format!("d_{what}.bias"), &db);
        }
    }
    if norm.is_training {
        let n = projected.rows().len() as f64;
        let blend =
            |old: &[f64], new: &[f64]| -> Vec<f64> { old.iter().zip(new).map(|(o, n)| 0.9 * o + 0.1 * n).collect() };
        close("running_mean", &blend(&running[0], &norm.mean));
        let unbiased: Vec<f64> = norm.variance.iter().map(|v| v * n / (n - 1.0)).collect();
        close("running_var", &blend(&running[1], &unbiased));
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
}
