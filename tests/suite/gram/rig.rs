//! The cases of tests/cases/gram.toml and the op on them.

use serde::Deserialize;
use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::TICKET_BYTES;
use vcycle::ops::batch_norm::BatchNorm;
use vcycle::ops::conv3d::Prologue;
use vcycle::ops::gram::{self, Gram};
use vcycle::shape::{ActivationShape, Part};

use crate::compare::as_f64;
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
    pub input: [usize; 5],
    pub c_out: usize,
    #[serde(default = "one")]
    pub splits: usize,
    #[serde(default)]
    pub x: [usize; 2],
    #[serde(default)]
    pub prologue: bool,
    #[serde(default)]
    pub bench: bool,
    #[serde(skip)]
    pub part: Option<Part>,
}

fn one() -> usize {
    1
}

/// All cases but those that are there for their speed.
pub fn cases() -> Vec<Case> {
    let text = crate::executors::cases("gram");
    let cases = toml::from_str::<Cases>(&text).expect("tests/cases/gram.toml").case;
    cases.into_iter().filter(|c| !c.bench).collect()
}

impl Case {
    /// A case that is in no table.
    pub fn new(name: &str, input: [usize; 5], c_out: usize, splits: usize) -> Case {
        Case { name: name.into(), input, c_out, splits, x: [0; 2], prologue: false, bench: false, part: None }
    }

    pub fn op(&self) -> Gram {
        let [n, t, h, w, c_in] = self.input;
        let shape = ActivationShape::new(n, t, h, w, self.c_out);
        Gram { norm: BatchNorm { shape, splits: self.splits, eps: 1e-5, relu: true, part: self.part }, c_in }
    }
}

/// What the op reads.
#[derive(Clone)]
pub struct Operands {
    pub dtype: DType,
    /// As stored.
    pub x: Vec<f32>,
    /// `[splits][2][c_in]`: on load.
    pub before: Option<Vec<f32>>,
    pub w: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
}

impl Operands {
    pub fn random(device: &Device, dtype: DType, case: &Case) -> Operands {
        let (name, op) = (&case.name, case.op());
        let value =
            |what: &str, n: usize, scale: f64, offset: f64| fill::f32(&format!("{name}/{what}"), n, scale, offset);
        let rounded = |values: Vec<f32>| values.iter().map(|v| stored::round(dtype, f64::from(*v)) as f32).collect();
        let (c, c_out) = (op.c_in, op.norm.shape.c);
        let has_prologue = case.prologue && *device != Device::Cpu;
        // Without a prologue as behind a ReLU.
        let mut x = value("x", op.input().num_elements(), 1.0, 0.2);
        x.iter_mut().filter(|v| !has_prologue && **v < 0.0).for_each(|v| *v = 0.0);
        Operands {
            dtype,
            x: rounded(x),
            before: has_prologue.then(|| value("before", op.norm.splits * 2 * c, 0.5, 0.7)),
            w: rounded(value("w", c_out * c, 1.0, 0.0)),
            gamma: value("gamma", c_out, 1.5, 0.1),
            beta: value("beta", c_out, 1.0, 0.0),
        }
    }

    /// x as the convolution sees it.
    pub fn seen(&self, op: &Gram) -> Vec<f64> {
        let Some(before) = &self.before else { return as_f64(&self.x) };
        let (c, per_split) = (op.c_in, op.norm.clips_of_split(0).len() * op.input().num_elements() / op.input().n);
        let at = |(i, x): (usize, &f32)| {
            let (split, ch) = (i / per_split, i % c);
            let v = before[split * 2 * c + ch].mul_add(*x, before[(split * 2 + 1) * c + ch]);
            // From f32: from f64 values just above a tie count as ties.
            match self.dtype {
                DType::Bf16 => half::bf16::from_f32(v.max(0.0)).to_f64(),
                _ => half::f16::from_f32(v.max(0.0)).to_f64(),
            }
        };
        self.x.iter().enumerate().map(at).collect()
    }
}

/// What the op writes.
#[derive(Debug)]
pub struct Results {
    pub moments: Vec<f32>,
    pub stats: Vec<f32>,
    pub scale_shift: Vec<f32>,
    pub skip: u32,
}

impl Results {
    pub fn parts(&self) -> [(&'static str, &[f32]); 3] {
        [("moments", &self.moments), ("stats", &self.stats), ("scale_shift", &self.scale_shift)]
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

/// Moments and statistics of all clips.
pub fn run(device: &Device, case: &Case, o: &Operands) -> Results {
    let (op, stream) = (case.op(), device.stream().expect("stream"));
    let f32s = |values: &[f32]| stored::slice(device, DType::F32, values);
    let garbage = |len: usize| stored::garbage(device, DType::F32, len);
    let x = stored::tensor(device, o.dtype, op.input(), &o.x, case.x);
    let before = o.before.as_deref().map(f32s);
    let prologue = before.as_ref().map(|table| Prologue { scale_shift: table, splits: op.norm.splits, join: None });
    let scratch = workspace(device, gram::workspace_bytes(&stream, &op));
    let moments = garbage(op.moments_len());
    gram::moments(&stream, &op, &x, prologue.as_ref(), &moments, &scratch).expect("moments");
    let (stats, scale_shift) = (garbage(op.norm.stats_len()), garbage(op.norm.scale_shift_len()));
    let skip = Buffer::from_host(device, &[0u32]).expect("skip");
    let (gamma, beta) = (f32s(&o.gamma), f32s(&o.beta));
    let tables =
        gram::Tables { gamma: &gamma, beta: &beta, stats: &stats, scale_shift: Some(&scale_shift), skip: Some(&skip) };
    let filter = stored::slice(device, o.dtype, &o.w);
    gram::statistics(&stream, &op, &moments, &filter, &tables, &scratch).expect("statistics");
    if *device != Device::Cpu {
        let tickets = scratch.part(0, TICKET_BYTES / 4).unwrap().read::<f32>().unwrap();
        assert!(tickets.iter().all(|t| t.to_bits() == 0), "tickets must be left at zero");
    }
    Results {
        moments: moments.read().expect("moments"),
        stats: stats.read().expect("stats"),
        scale_shift: scale_shift.read().expect("scale_shift"),
        skip: skip.read::<u32>().expect("skip")[0],
    }
}
