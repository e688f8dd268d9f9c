//! Comparison with PyTorch's batch norm and PySlowFast's sub-batch norm.

use serde_json::Value;
use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::batch_norm::{self, BatchNorm, fold_split_statistics};
use vcycle::shape::ActivationShape;

use crate::executors;
use crate::golden::{self, Golden};

struct Case<'a> {
    name: &'a str,
    json: &'a Value,
    /// `[n][c][t][h][w]`.
    dims: Vec<usize>,
    device: &'a Device,
    op: BatchNorm,
}

impl<'a> Case<'a> {
    fn new(device: &'a Device, json: &'a Value, splits: usize) -> Self {
        let name = json["case"].as_str().expect("case");
        let dims = golden::dims(&json["inputs"]["x"]["shape"]);
        let shape = ActivationShape::new(dims[0], dims[2], dims[3], dims[4], dims[1]);
        let eps = json["params"]["eps"].as_f64().expect("eps") as f32;
        Case { name, json, dims, device, op: BatchNorm { shape, splits, eps, relu: false, part: None } }
    }

    /// An input tensor, channels last, clips in the order `order`.
    fn tensor(&self, name: &str, order: &[usize]) -> Tensor {
        let (dims, values) = golden::input(&self.json["inputs"][name]);
        let values = permuted(&golden::channels_last(&dims, &values), order);
        Tensor::from_host(self.device, self.op.shape, &values).unwrap()
    }

    fn slice(&self, name: &str) -> Slice {
        Buffer::from_host(self.device, &golden::input(&self.json["inputs"][name]).1).unwrap()
    }

    fn check(&self, golden: &Golden, output: &str, got: &[f64]) {
        golden.assert_close(self.name, &self.json["outputs"][output], got, 1e-5);
    }

    /// Compares a tensor whose clips are in the order `order`.
    fn check_tensor(&self, golden: &Golden, output: &str, got: &Tensor, order: &[usize]) {
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
        let values = permuted(&got.read::<f32>().unwrap(), &back);
        self.check(golden, output, &golden::channels_first(&self.dims, &values));
    }

    fn check_slice(&self, golden: &Golden, output: &str, got: &Slice) {
        self.check(golden, output, &as_f64(&got.read::<f32>().unwrap()));
    }

    /// Forward and backward of a training step; returns y, dx, dgamma, dbeta, stats.
    fn train(&self, order: &[usize]) -> (Tensor, Tensor, Slice, Slice, Slice) {
        let stream = self.device.stream().unwrap();
        let op = &self.op;
        let (x, dy) = (self.tensor("x", order), self.tensor("dy", order));
        let (gamma, beta) = (self.slice("gamma"), self.slice("beta"));
        let (y, dx) = (self.zeroed_like(&x), self.zeroed_like(&x));
        let (stats, dgamma, dbeta) = (self.zeros(op.stats_len()), self.zeros(op.shape.c), self.zeros(op.shape.c));
        let workspace = self.zeros(batch_norm::workspace_bytes(&stream, op) / 4);
        batch_norm::forward_train(&stream, op, &x, &gamma, &beta, None, &y, &stats, &workspace).unwrap();
        batch_norm::backward(&stream, op, &x, &y, &dy, &gamma, &stats, &dx, None, &dgamma, &dbeta, &workspace).unwrap();
        (y, dx, dgamma, dbeta, stats)
    }

    fn eval(&self, running_mean: &Slice, running_var: &Slice, order: &[usize]) -> Tensor {
        let stream = self.device.stream().unwrap();
        let x = self.tensor("x", order);
        let y = self.zeroed_like(&x);
        let (gamma, beta) = (self.slice("gamma"), self.slice("beta"));
        batch_norm::forward_eval(&stream, &self.op, &x, &gamma, &beta, running_mean, running_var, None, &y).unwrap();
        y
    }
}

impl Case<'_> {
    fn zeroed_like(&self, tensor: &Tensor) -> Tensor {
        Tensor::zeroed(self.device, DType::F32, tensor.shape()).unwrap()
    }

    fn zeros(&self, len: usize) -> Slice {
        Buffer::zeroed(self.device, len * 4).unwrap().slice::<f32>(0, len).unwrap()
    }

    /// Gradients with fixed statistics: dx, dgamma, dbeta.
    fn eval_backward(&self, y: &Tensor, running: [&Slice; 2], order: &[usize]) -> (Tensor, Slice, Slice) {
        let stream = self.device.stream().unwrap();
        let (x, dy, gamma) = (self.tensor("x", order), self.tensor("dy", order), self.slice("gamma"));
        let (dx, dgamma, dbeta) = (self.zeroed_like(&x), self.zeros(self.op.shape.c), self.zeros(self.op.shape.c));
        let workspace = self.zeros(batch_norm::workspace_bytes(&stream, &self.op) / 4);
        let grads = [&dgamma, &dbeta];
        batch_norm::backward_eval(&stream, &self.op, &x, y, &dy, &gamma, running, &dx, None, grads, &workspace)
            .unwrap();
        (dx, dgamma, dbeta)
    }
}

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Clip `order[i]` as clip `i`.
fn permuted(values: &[f32], order: &[usize]) -> Vec<f32> {
    let clip = values.len() / order.len();
    order.iter().flat_map(|&i| values[i * clip..][..clip].iter().copied()).collect()
}

#[test]
fn golden_batchnorm() {
    let Some(golden) = golden::open("ops/batchnorm.json") else { return };
    executors::all().iter().for_each(|device| compare_batchnorm(&golden, device));
}

fn compare_batchnorm(golden: &Golden, device: &Device) {
    let cases = golden.json.as_array().expect("cases");
    for json in cases {
        let case = Case::new(device, json, 1);
        let order: Vec<usize> = (0..case.op.shape.n).collect();
        let (mean, var) = (case.slice("running_mean"), case.slice("running_var"));
        if json["params"]["training"] == Value::Bool(true) {
            let (y, dx, dgamma, dbeta, stats) = case.train(&order);
            case.check_tensor(golden, "y", &y, &order);
            case.check_tensor(golden, "dx", &dx, &order);
            case.check_slice(golden, "dgamma", &dgamma);
            case.check_slice(golden, "dbeta", &dbeta);
            let momentum = json["params"]["momentum"].as_f64().expect("momentum") as f32;
            let stream = device.stream().unwrap();
            batch_norm::update_running(&stream, &case.op, &stats, momentum, &mean, &var).unwrap();
        } else {
            let y = case.eval(&mean, &var, &order);
            case.check_tensor(golden, "y", &y, &order);
            if *device != Device::Cpu {
                continue; // no kernel
            }
            let (dx, dgamma, dbeta) = case.eval_backward(&y, [&mean, &var], &order);
            case.check_tensor(golden, "dx", &dx, &order);
            case.check_slice(golden, "dgamma", &dgamma);
            case.check_slice(golden, "dbeta", &dbeta);
        }
        case.check_slice(golden, "running_mean", &mean);
        case.check_slice(golden, "running_var", &var);
    }
    golden.passed_on(device, cases.len());
}

#[test]
fn golden_sub_batchnorm() {
    let Some(golden) = golden::open("ops/sub_batchnorm.json") else { return };
    executors::all().iter().for_each(|device| compare_sub_batchnorm(&golden, device));
}

fn compare_sub_batchnorm(golden: &Golden, device: &Device) {
    let cases = golden.json.as_array().expect("cases");
    for json in cases {
        let splits = json["params"]["num_splits"].as_u64().expect("num_splits") as usize;
        let case = Case::new(device, json, splits);
        let (n, c) = (case.op.shape.n, case.op.shape.c);
        // There clip i is in split i mod splits; here a split is a block of clips.
        let order: Vec<usize> = (0..splits).flat_map(|s| (s..n).step_by(splits)).collect();
        let (y, dx, dgamma, dbeta, stats) = case.train(&order);
        case.check_tensor(golden, "y_train", &y, &order);
        case.check_tensor(golden, "dx", &dx, &order);
        case.check_slice(golden, "dgamma", &dgamma);
        case.check_slice(golden, "dbeta", &dbeta);

        let stats = stats.read::<f32>().unwrap();
        let moved = |old: &str, row: usize| -> Vec<f32> {
            let old = golden::input(&json["inputs"][old]).1;
            let at = |i: usize| stats[(i / c * 3 + row) * c + i % c];
            old.iter().enumerate().map(|(i, old)| 0.9 * old + 0.1 * at(i)).collect()
        };
        let (means, vars) = (moved("split_running_mean", 0), moved("split_running_var", 2));
        case.check(golden, "split_running_mean", &as_f64(&means));
        case.check(golden, "split_running_var", &as_f64(&vars));

        let (mean, var) = fold_split_statistics(splits, &means, &vars).unwrap();
        case.check(golden, "agg_running_mean", &as_f64(&mean));
        case.check(golden, "agg_running_var", &as_f64(&var));
        let on_device = |values: &[f32]| Buffer::from_host(device, values).unwrap();
        let y = case.eval(&on_device(&mean), &on_device(&var), &order);
        case.check_tensor(golden, "y_eval_after_aggregate", &y, &order);
    }
    golden.passed_on(device, cases.len());
}
