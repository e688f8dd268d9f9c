//! Prologues and epilogues of the kernels of conv3d: forward.

use vcycle::device::{Buffer, Device};
use vcycle::ops::conv3d::reference::{self, Rounding};
use vcycle::ops::conv3d::{self, Conv3d, Direction, Epilogue, Evaluation, Join, Prologue, Running, Statistics};
use vcycle::shape::ActivationShape;

use super::typed::{Half, assert_exact, assert_near, floats, garbage, held, read_floats, slice, workspace};
use crate::executors;
use crate::golden::fill;

/// What happens on load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    Plain,
    Affine,
    /// With a residual as it is, or one with a table; stored or not.
    Join {
        table: bool,
        stored: bool,
    },
}

/// What happens on store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Store {
    Statistics,
    Evaluation,
}

#[derive(Clone, Copy, Debug)]
pub struct Fused {
    pub name: &'static str,
    input: [usize; 5],
    c_out: usize,
    filter: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    splits: usize,
    gap: usize,
    load: Load,
    store: Store,
}

pub const JOIN: Load = Load::Join { table: false, stored: true };
pub const JOIN_TABLE: Load = Load::Join { table: true, stored: true };

/// Shapes are small; each row says why it is there.
#[rustfmt::skip]
const CASES: [Fused; 13] = [
    // a ragged last split
    case("affine_splits", [3, 1, 5, 5, 16], 24, [1, 1, 1], [1, 1, 1], [0, 0, 0], 2, 8, Load::Affine, Store::Statistics),
    // padding: zero outside, whatever the shift; a stride
    case("affine_s122", [2, 1, 9, 7, 24], 40, [1, 3, 3], [1, 2, 2], [0, 1, 1], 1, 0, Load::Affine, Store::Statistics),
    // several tiles of channels: the join is stored by the first
    case("join_pointwise", [2, 2, 5, 5, 40], 136, [1, 1, 1], [1, 1, 1], [0, 0, 0], 2, 8, JOIN, Store::Statistics),
    // several taps: the middle one stores
    case("join_1x3x3", [1, 2, 5, 5, 8], 16, [1, 3, 3], [1, 1, 1], [0, 1, 1], 1, 0, JOIN_TABLE, Store::Evaluation),
    case("join_3x1x1", [2, 3, 3, 4, 48], 16, [3, 1, 1], [1, 1, 1], [1, 0, 0], 2, 8, JOIN, Store::Statistics),
    // few channels: boxes of rows
    case("halo_affine", [3, 2, 9, 11, 24], 8, [1, 3, 3], [1, 1, 1], [0, 1, 1], 2, 0, Load::Affine, Store::Statistics),
    // a stride: a launch of its own stores
    case("join_s122", [3, 1, 7, 7, 16], 32, [1, 1, 1], [1, 2, 2], [0, 0, 0], 2, 0, JOIN_TABLE, Store::Statistics),
    // nothing is stored: each tap joins again
    case("join_not_stored", [2, 4, 3, 3, 8], 8, [3, 1, 1], [2, 1, 1], [1, 0, 0], 2, 0,
         Load::Join { table: true, stored: false }, Store::Statistics),
    // channels and gaps that fill no chunk
    case("checked", [3, 1, 5, 4, 12], 20, [1, 3, 3], [1, 1, 1], [0, 1, 1], 3, 3, JOIN_TABLE, Store::Statistics),
    case("checked_s122", [2, 1, 5, 4, 12], 20, [1, 3, 3], [1, 2, 2], [0, 1, 1], 1, 1, JOIN, Store::Evaluation),
    case("checked_affine", [2, 3, 4, 4, 3], 4, [3, 1, 1], [1, 1, 1], [1, 0, 0], 2, 1, Load::Affine, Store::Statistics),
    // gemm_k in slices
    case("slices", [1, 2, 5, 5, 64], 64, [3, 3, 3], [1, 1, 1], [1, 1, 1], 1, 0, Load::Affine, Store::Statistics),
    // more tiles than a group joins; a mean of 100 deviations, see `operands`
    case("groups_of_tiles", [2, 2, 40, 10, 8], 8, [1, 1, 1], [1, 1, 1], [0, 0, 0], 1, 0, Load::Plain, Store::Statistics),
];

#[allow(clippy::too_many_arguments)]
pub const fn case(
    name: &'static str,
    input: [usize; 5],
    c_out: usize,
    filter: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    splits: usize,
    gap: usize,
    load: Load,
    store: Store,
) -> Fused {
    Fused { name, input, c_out, filter, stride, padding, splits, gap, load, store }
}

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// All operands, dense.
struct Operands {
    x: Vec<f64>,
    w: Vec<f64>,
    table: Vec<f64>,
    residual: Vec<f64>,
    residual_table: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    /// Of evaluation.
    bias: Vec<f64>,
    other: Vec<f64>,
}

impl Fused {
    fn op(&self) -> Conv3d {
        let [n, t, h, w, c] = self.input;
        Conv3d {
            input: ActivationShape::new(n, t, h, w, c),
            c_out: self.c_out,
            filter: self.filter,
            stride: self.stride,
            padding: self.padding,
            dilation: [1; 3],
            groups: 1,
            part: None,
        }
    }

    /// Whole numbers, for which everything before the statistics is exact; shifts are positive on the whole.
    fn integers(&self) -> Operands {
        let value = |what: &str, n: usize, low: i64, high: i64| -> Vec<f64> {
            let all = fill::int(&format!("{}/{what}", self.name), n, (high - low + 1) as u64);
            all.into_iter().map(|v| (v as i64 + low) as f64).collect()
        };
        self.operands(|what, n| match what {
            "table" | "residual_table" | "gamma" => value(what, n, 1, 2),
            _ => value(what, n, -2, 3),
        })
    }

    fn random<T: Half>(&self) -> Operands {
        let mut o = self.operands(|what, n| {
            let offset = if what.contains("table") || what == "gamma" { 1.0 } else { 0.2 };
            let all = fill::f32(&format!("{}/{what}", self.name), n, 0.5, offset);
            all.into_iter().map(|v| T::store(f64::from(v))).collect()
        });
        if self.load == Load::Plain {
            // Channel 0 is 1, its weight 100: the output has a mean of about 100 deviations.
            let c = self.input[4];
            o.x.iter_mut().step_by(c).for_each(|v| *v = 1.0);
            o.w.iter_mut().step_by(c).for_each(|v| *v = 100.0);
        }
        o
    }

    fn operands(&self, value: impl Fn(&str, usize) -> Vec<f64>) -> Operands {
        let (op, c) = (self.op(), self.input[4]);
        Operands {
            x: value("x", op.input.num_elements()),
            w: value("w", op.filter_len()),
            table: value("table", self.splits * 2 * c),
            residual: value("residual", op.input.num_elements()),
            residual_table: value("residual_table", self.splits * 2 * c),
            gamma: value("gamma", self.c_out),
            beta: value("beta", self.c_out),
            bias: value("bias", self.c_out),
            other: value("other", op.output().num_elements()),
        }
    }

    /// The input behind the prologue, and the output.
    fn expected(&self, o: &Operands, rounding: Rounding) -> [Vec<f64>; 2] {
        let op = self.op();
        let residual = match self.load {
            Load::Join { table, .. } => Some((&o.residual[..], table.then_some(&o.residual_table[..]))),
            _ => None,
        };
        let x = match self.load {
            Load::Plain => o.x.clone(),
            _ => reference::normalised(op.input, self.splits, rounding, &o.x, &o.table, residual),
        };
        let mut y = vec![0.0; op.output().num_elements()];
        reference::for_each_term(&op, |t| y[t.y] = (rounding.round)(y[t.y] + x[t.x] * o.w[t.w]));
        for (i, y) in y.iter_mut().enumerate() {
            if self.store == Store::Evaluation {
                let v = (rounding.round)((rounding.round)(*y + o.bias[i % self.c_out]) + o.other[i]);
                *y = if v < 0.0 { 0.0 } else { v };
            }
            *y = (rounding.store)(*y);
        }
        [x, y]
    }
}

#[derive(PartialEq)]
struct Results {
    y: Vec<f64>,
    joined: Option<Vec<f64>>,
    stats: Vec<f64>,
    scale_shift: Vec<f64>,
    running: [Vec<f64>; 2],
    skip: u32,
}

fn run<T: Half>(device: &Device, case: &Fused, o: &Operands) -> Results {
    let (op, stream) = (case.op(), device.stream().expect("stream"));
    let x = held::<T>(device, op.input, &o.x, case.gap);
    let w = slice::<T>(device, &o.w);
    let y = garbage::<T>(device, op.output(), case.gap);
    let residual = held::<T>(device, op.input, &o.residual, case.gap);
    let joined = garbage::<T>(device, op.input, case.gap);
    let (table, residual_table) = (floats(device, &o.table), floats(device, &o.residual_table));
    let is_stored = matches!(case.load, Load::Join { stored: true, .. });
    let join = match case.load {
        Load::Join { table, stored } => Some(Join {
            residual: &residual.tensor,
            residual_scale_shift: table.then_some(&residual_table),
            output: stored.then_some(&joined.tensor),
        }),
        _ => None,
    };
    let prologue = Prologue { scale_shift: &table, splits: case.splits, join };

    let (gamma, beta, bias) = (floats(device, &o.gamma), floats(device, &o.beta), floats(device, &o.bias));
    let nan = |rows: usize| floats(device, &vec![f64::NAN; case.splits * rows * case.c_out]);
    let (stats, scale_shift) = (nan(3), nan(2));
    let running = [1.0, 2.0].map(|v| floats(device, &vec![v; case.c_out]));
    let skip = Buffer::from_host(device, &[0u32]).expect("skip");
    let other = held::<T>(device, op.output(), &o.other, case.gap);
    let epilogue = match case.store {
        Store::Statistics => Epilogue::Statistics(Statistics {
            splits: case.splits,
            eps: EPS as f32,
            gamma: &gamma,
            beta: &beta,
            running: Some(Running { mean: &running[0], var: &running[1], momentum: MOMENTUM as f32 }),
            stats: &stats,
            scale_shift: &scale_shift,
            skip: Some(&skip),
        }),
        Store::Evaluation => {
            Epilogue::Evaluation(Evaluation { bias: Some(&bias), residual: Some(&other.tensor), relu: true })
        }
    };
    let scratch = workspace(device, conv3d::workspace_bytes_fused(&stream, &op, Direction::Forward, case.splits));
    let prologue = (case.load != Load::Plain).then_some(&prologue);
    conv3d::forward_fused(&stream, &op, &x.tensor, prologue, &w, &epilogue, &y.tensor, &scratch)
        .expect("forward_fused");
    let tickets = scratch.read::<u8>().expect("workspace");
    assert!(tickets.iter().take(vcycle::ops::TICKET_BYTES).all(|b| *b == 0), "{}: tickets are left behind", case.name);
    Results {
        y: y.read::<T>(),
        joined: is_stored.then(|| joined.read::<T>()),
        stats: read_floats(&stats),
        scale_shift: read_floats(&scale_shift),
        running: running.map(|r| read_floats(&r)),
        skip: skip.read::<u32>().expect("skip")[0],
    }
}

/// Row `row` of a table `[splits][rows][c]`, of all splits.
pub fn row(table: &[f64], rows: usize, c: usize, row: usize) -> Vec<f64> {
    table.chunks(rows * c).flat_map(|split| &split[row * c..][..c]).copied().collect()
}

pub const F32: f64 = f32::EPSILON as f64 / 2.0;

pub fn to_f32(v: f64) -> f64 {
    f64::from(v as f32)
}

/// The tables against those of the stored output.
fn check_statistics(what: &str, case: &Fused, o: &Operands, got: &Results) {
    let (shape, c) = (case.op().output(), case.c_out);
    let [want, plain] = [|v| v, to_f32].map(|round| {
        reference::statistics(shape, case.splits, round, f64::from(EPS as f32), &got.y, &o.gamma, &o.beta)
    });
    for (r, name) in ["mean", "inverse deviation", "variance"].iter().enumerate() {
        let [got, plain, want] = [&got.stats, &plain.stats, &want.stats].map(|table| row(table, 3, c, r));
        assert_near(&format!("{what}: {name}"), &got, &plain, &want, F32);
    }
    for (r, name) in ["scale", "shift"].iter().enumerate() {
        let [got, plain, want] =
            [&got.scale_shift, &plain.scale_shift, &want.scale_shift].map(|table| row(table, 2, c, r));
        assert_near(&format!("{what}: {name}"), &got, &plain, &want, F32);
    }
    let used = reference::splits_of(shape.n, case.splits).len();
    for (k, (first, before)) in [(0, 1.0), (2, 2.0)].into_iter().enumerate() {
        let mean =
            |table: &[f64], ch: usize| (0..used).map(|s| table[(s * 3 + first) * c + ch]).sum::<f64>() / used as f64;
        let running = |table: &[f64]| -> Vec<f64> {
            let share = f64::from(MOMENTUM as f32);
            (0..c).map(|ch| (1.0 - share) * before + share * mean(table, ch)).collect()
        };
        assert_near(
            &format!("{what}: running {k}"),
            &got.running[k],
            &running(&plain.stats),
            &running(&want.stats),
            F32,
        );
    }
    assert_eq!(got.skip, 0, "{what}: skip");
}

pub fn check<T: Half>(device: &Device, case: &Fused) {
    let what = format!("{} {} on {device}", case.name, T::NAME);
    let o = case.integers();
    let got = run::<T>(device, case, &o);
    let [x, y] = case.expected(&o, Rounding { round: |v| v, store: T::store });
    assert_exact(&format!("{what}: y"), &got.y, &y);
    got.joined.iter().for_each(|joined| assert_exact(&format!("{what}: joined"), joined, &x));

    let o = case.random::<T>();
    let got = run::<T>(device, case, &o);
    let want = case.expected(&o, Rounding::EXACT);
    let plain = case.expected(&o, Rounding { round: to_f32, store: T::store });
    assert_near(&format!("{what}: y"), &got.y, &plain[1], &want[1], T::ROUNDING);
    got.joined.iter().for_each(|j| assert_near(&format!("{what}: joined"), j, &plain[0], &want[0], T::ROUNDING));
    if case.store == Store::Statistics {
        check_statistics(&what, case, &o, &got);
    }
}

#[test]
fn fused_forward_agrees_with_the_reference() {
    for device in executors::with_kernels() {
        for case in &CASES {
            check::<half::bf16>(&device, case);
            check::<half::f16>(&device, case);
        }
    }
}

pub fn same_bits_in_all_modes<T: Half>(device: &Device, case: &Fused) {
    let o = case.random::<T>();
    let bits = |r: &Results| (r.y.clone(), r.joined.clone(), format!("{:?}", (&r.stats, &r.scale_shift, &r.running)));
    let first = bits(&run::<T>(device, case, &o));
    executors::in_all_modes(device, |mode| {
        assert!(first == bits(&run::<T>(device, case, &o)), "{} on {mode}", case.name);
    });
}

#[test]
fn fused_forward_gives_the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        let names = ["affine_splits", "join_1x3x3", "halo_affine", "checked", "slices"];
        CASES
            .iter()
            .filter(|c| names.contains(&c.name))
            .for_each(|case| same_bits_in_all_modes::<half::bf16>(&device, case));
    }
}

/// A value that is not finite reaches the statistics, and they say so.
#[test]
fn a_nan_sets_the_skip_flag() {
    for device in executors::with_kernels() {
        let case = &CASES[0];
        for bad in [f64::NAN, f64::INFINITY] {
            let mut o = case.random::<half::bf16>();
            o.x[3] = bad;
            let got = run::<half::bf16>(&device, case, &o);
            assert_eq!(got.skip, 1, "{bad}");
            assert!(got.running.iter().flatten().all(|v| v.is_finite()), "{bad} is in the running pair");
            assert!(got.y.iter().any(|v| !v.is_finite()), "{bad} is lost");
        }
    }
}

#[test]
fn fused_operands_that_do_not_fit_are_refused_by_name() {
    let case = &CASES[0];
    let op = case.op();
    let refused = |device: &Device, splits: usize, table_len: usize, words: &str| {
        let stream = device.stream().expect("stream");
        let dtype = if *device == Device::Cpu { vcycle::device::DType::F32 } else { vcycle::device::DType::Bf16 };
        let zeroed = |shape| vcycle::device::Tensor::zeroed(device, dtype, shape).expect("tensor");
        let (x, y) = (zeroed(op.input), zeroed(op.output()));
        let w = slice::<half::bf16>(device, &vec![0.0; op.filter_len()]);
        let (table, vector) = (floats(device, &vec![0.0; table_len]), floats(device, &vec![0.0; case.c_out]));
        let tables = [3, 2].map(|rows| floats(device, &vec![0.0; 2 * rows * case.c_out]));
        let statistics = Statistics {
            splits: 2,
            eps: 1e-5,
            gamma: &vector,
            beta: &vector,
            running: None,
            stats: &tables[0],
            scale_shift: &tables[1],
            skip: None,
        };
        let prologue = Prologue { scale_shift: &table, splits, join: None };
        let scratch = workspace(device, 1 << 20);
        let epilogue = Epilogue::Statistics(statistics);
        let error =
            conv3d::forward_fused(&stream, &op, &x, Some(&prologue), &w, &epilogue, &y, &scratch).expect_err(words);
        assert!(error.to_string().contains(words), "{words}: {error}");
    };
    refused(&Device::Cpu, 2, 64, "call batch_norm, pointwise and conv3d one by one");
    for device in executors::with_kernels() {
        refused(&device, 2, 63, "prologue.scale_shift must have 64 elements, got 63");
        refused(&device, 1, 32, "splits on load and on store differ: 1 and 2");
        refused(&device, 0, 32, "splits must be at least 1");
    }
}
