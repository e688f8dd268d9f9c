//! The cases of tests/cases/batch_norm.toml and one step of the op on them.

use serde::Deserialize;
use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::TICKET_BYTES;
use vcycle::ops::batch_norm::{self, BatchNorm};
use vcycle::shape::ActivationShape;

use crate::compare::integers;
use crate::golden::fill;
use crate::stored;

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub name: String,
    input: [usize; 5],
    #[serde(default = "one")]
    splits: usize,
    #[serde(default)]
    relu: bool,
    #[serde(default)]
    pub residual: bool,
    #[serde(default)]
    x: [usize; 2],
    #[serde(default)]
    y: [usize; 2],
    #[serde(default)]
    r: [usize; 2],
    #[serde(default)]
    bench: bool,
}

fn one() -> usize {
    1
}

/// All cases but those that are there for their speed.
pub fn cases() -> Vec<Case> {
    let text = crate::executors::cases("batch_norm");
    let cases = toml::from_str::<Cases>(&text).expect("tests/cases/batch_norm.toml").case;
    cases.into_iter().filter(|c| !c.bench).collect()
}

impl Case {
    /// A case that is in no table; `gaps`: channels before and after those of x, y and the residual.
    pub fn new(name: &str, input: [usize; 5], splits: usize, relu: bool, residual: bool, gaps: [usize; 6]) -> Case {
        let [x, y, r] = [0, 2, 4].map(|i| [gaps[i], gaps[i + 1]]);
        Case { name: name.into(), input, splits, relu, residual, x, y, r, bench: false }
    }

    pub fn op(&self) -> BatchNorm {
        let [n, t, h, w, c] = self.input;
        let shape = ActivationShape::new(n, t, h, w, c);
        BatchNorm { shape, splits: self.splits, eps: 1e-5, relu: self.relu, part: None }
    }

    /// The same without gaps.
    pub fn dense(&self) -> Case {
        Case { x: [0; 2], y: [0; 2], r: [0; 2], ..self.clone() }
    }
}

/// Scratch memory of garbage, but for the counters of tickets where kernels run.
pub fn workspace(device: &Device, len_bytes: usize) -> Slice {
    let mut values = vec![f32::NAN; len_bytes.div_ceil(4)];
    if *device != Device::Cpu {
        values[..TICKET_BYTES / 4].fill(0.0);
    }
    Buffer::from_host(device, &values).expect("workspace")
}

/// Fails unless the counters of tickets are zero.
#[track_caller]
pub fn assert_tickets_are_zero(device: &Device, workspace: &Slice) {
    if *device != Device::Cpu {
        let tickets = workspace.part(0, TICKET_BYTES / 4).unwrap().read::<f32>().unwrap();
        assert!(tickets.iter().all(|t| t.to_bits() == 0), "tickets must be left at zero");
    }
}

/// Operands of a training step.
#[derive(Clone)]
pub struct Operands {
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub residual: Option<Vec<f32>>,
    pub dy: Vec<f32>,
    /// What the gradient of the residual holds before it is added to.
    pub dr_before: Vec<f32>,
}

impl Operands {
    /// As `dtype` stores them: activations alone, parameters are f32.
    pub fn rounded(mut self, dtype: DType) -> Operands {
        let round =
            |values: &mut Vec<f32>| values.iter_mut().for_each(|v| *v = stored::round(dtype, f64::from(*v)) as f32);
        [&mut self.x, &mut self.dy, &mut self.dr_before].into_iter().for_each(round);
        self.residual.iter_mut().for_each(round);
        self
    }

    pub fn random(case: &Case) -> Operands {
        let (name, shape) = (&case.name, case.op().shape);
        let (len, c) = (shape.num_elements(), shape.c);
        let value = |what: &str, n: usize, offset: f64| fill::f32(&format!("{name}/{what}"), n, 1.0, offset);
        Operands {
            x: value("x", len, 0.7),
            gamma: value("gamma", c, 1.5),
            beta: value("beta", c, 0.0),
            residual: case.residual.then(|| value("r", len, 0.0)),
            dy: value("dy", len, 0.1),
            dr_before: value("dr", len, 0.0),
        }
    }

    /// Operands for which sums of gradients are exact.
    pub fn integers(case: &Case) -> Operands {
        let value = |what: &str, n: usize| integers(&format!("{}/{what}", case.name), n, 3);
        let len = case.op().shape.num_elements();
        let random = Operands::random(case);
        Operands { dy: value("dy", len), dr_before: value("dr", len), ..random }
    }
}

/// What a training step gives, dense.
#[derive(Clone, Debug)]
pub struct Results {
    pub y: Vec<f32>,
    pub stats: Vec<f32>,
    pub dx: Vec<f32>,
    /// The masked gradient; with `residual` only.
    pub dr: Option<Vec<f32>>,
    pub dgamma: Vec<f32>,
    pub dbeta: Vec<f32>,
}

impl Results {
    pub fn parts(&self) -> Vec<(&'static str, &[f32])> {
        let mut parts = vec![("y", &self.y[..]), ("stats", &self.stats), ("dx", &self.dx)];
        parts.extend([("dgamma", &self.dgamma[..]), ("dbeta", &self.dbeta)]);
        parts.extend(self.dr.iter().map(|dr| ("dr", &dr[..])));
        parts
    }
}

/// Which memory the gradients share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    Nothing,
    /// `grad_input` is `grad_output`.
    Input,
    /// `grad_residual` is `grad_output`.
    Residual,
    /// `grad_residual` is added to.
    AddToResidual,
}

/// One forward and backward on the CPU.
pub fn step(case: &Case, o: &Operands, share: Share) -> Results {
    step_on(&Device::Cpu, DType::F32, case, o, share)
}

/// One forward and backward.
pub fn step_on(device: &Device, dtype: DType, case: &Case, o: &Operands, share: Share) -> Results {
    let (op, stream) = (case.op(), device.stream().expect("stream"));
    let tensor = |values: &[f32], place| stored::tensor(device, dtype, op.shape, values, place);
    let garbage = vec![f32::NAN; op.shape.num_elements()];
    let slice = |values: &[f32]| stored::slice(device, DType::F32, values);
    let x = tensor(&o.x, case.x);
    let y = tensor(&garbage, case.y);
    let residual = o.residual.as_ref().map(|r| tensor(r, case.r));
    let (gamma, beta) = (slice(&o.gamma), slice(&o.beta));
    let stats = slice(&vec![0f32; op.stats_len()]);
    let (dgamma, dbeta) = (slice(&vec![f32::NAN; op.shape.c]), slice(&vec![f32::NAN; op.shape.c]));
    let workspace = workspace(device, batch_norm::workspace_bytes(&stream, &op));
    batch_norm::forward_train(&stream, &op, &x, &gamma, &beta, residual.as_ref(), &y, &stats, &workspace)
        .expect("forward_train");

    let dy = tensor(&o.dy, case.y);
    let (dx, dx_place) = match share {
        Share::Input => (dy.clone(), case.y),
        _ => (tensor(&garbage, case.x), case.x),
    };
    let (dr, dr_place) = match share {
        Share::Residual => (dy.clone(), case.y),
        Share::AddToResidual => (tensor(&o.dr_before, case.r), case.r),
        _ => (tensor(&garbage, case.r), case.r),
    };
    let wanted = case.residual.then_some((&dr, share == Share::AddToResidual));
    batch_norm::backward(&stream, &op, &x, &y, &dy, &gamma, &stats, &dx, wanted, &dgamma, &dbeta, &workspace)
        .expect("backward");
    assert_tickets_are_zero(device, &workspace);
    Results {
        y: stored::read_tensor(&y, case.y),
        stats: stats.read().expect("stats"),
        dx: stored::read_tensor(&dx, dx_place),
        dr: case.residual.then(|| stored::read_tensor(&dr, dr_place)),
        dgamma: dgamma.read().expect("dgamma"),
        dbeta: dbeta.read().expect("dbeta"),
    }
}
