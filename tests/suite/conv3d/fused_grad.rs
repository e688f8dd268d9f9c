//! Prologues and epilogues of the kernels of conv3d: grad_input.

use vcycle::device::{Device, Slice};
use vcycle::ops::conv3d::reference::{self, Rounding};
use vcycle::ops::conv3d::{self, Conv3d, Direction, GradEpilogue, GradNorm, GradTable, Mask};
use vcycle::shape::ActivationShape;

use super::fused::{F32, row, to_f32};
use super::typed::{Half, assert_exact, assert_near, floats, garbage, held, read_floats, slice, workspace};
use crate::executors;
use crate::golden::fill;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    None,
    Output,
    Recomputed,
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
    /// `A g + B y + C` on load; stored or not.
    table: Option<bool>,
    add: bool,
    mask: Kind,
    norms: usize,
}

/// Shapes are small; each row says why it is there.
#[rustfmt::skip]
const CASES: [Fused; 11] = [
    // a ragged last split, dy stored
    case("pointwise", [3, 1, 5, 5, 16], 24, [1, 1, 1], [1, 1, 1], [0, 0, 0], 2, 8, Some(true), false, Kind::Recomputed, 1),
    // several tiles of channels and the end of a block: two batch norms before the join
    case("join", [2, 2, 5, 5, 136], 40, [1, 1, 1], [1, 1, 1], [0, 0, 0], 2, 0, Some(true), true, Kind::Output, 2),
    // padding: zero outside, whatever C
    case("1x3x3", [1, 2, 5, 5, 8], 16, [1, 3, 3], [1, 1, 1], [0, 1, 1], 1, 0, Some(true), false, Kind::Recomputed, 1),
    case("3x1x1", [2, 3, 3, 4, 48], 40, [3, 1, 1], [1, 1, 1], [1, 0, 0], 2, 8, Some(true), true, Kind::Output, 2),
    // few channels: boxes of rows, by parity
    case("halo_s122", [3, 2, 9, 11, 16], 32, [1, 3, 3], [1, 2, 2], [0, 1, 1], 2, 0, Some(false), true, Kind::Recomputed, 2),
    // parities; dy by a launch of its own
    case("s122", [3, 1, 9, 7, 24], 40, [1, 3, 3], [1, 2, 2], [0, 1, 1], 2, 0, Some(true), true, Kind::Recomputed, 1),
    // parities without a tap still get the other branch's gradient, mask and sums
    case("shortcut", [2, 1, 7, 6, 16], 32, [1, 1, 1], [1, 2, 2], [0, 0, 0], 1, 8, Some(false), true, Kind::Output, 2),
    // channels and gaps that fill no chunk
    case("checked", [3, 1, 5, 4, 12], 20, [1, 3, 3], [1, 1, 1], [0, 1, 1], 3, 3, Some(true), true, Kind::Recomputed, 2),
    case("checked_s211", [2, 4, 3, 4, 3], 4, [3, 1, 1], [2, 1, 1], [1, 0, 0], 2, 1, Some(false), false, Kind::None, 1),
    // gemm_k in slices
    case("slices", [1, 2, 5, 5, 64], 64, [3, 3, 3], [1, 1, 1], [1, 1, 1], 1, 0, Some(false), true, Kind::Output, 1),
    // more tiles than a group joins; no table
    case("groups_of_tiles", [2, 2, 40, 10, 8], 8, [1, 1, 1], [1, 1, 1], [0, 0, 0], 1, 0, None, true, Kind::None, 2),
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
    table: Option<bool>,
    add: bool,
    mask: Kind,
    norms: usize,
) -> Fused {
    Fused { name, input, c_out, filter, stride, padding, splits, gap, table, add, mask, norms }
}

/// All operands, dense.
struct Operands {
    g: Vec<f64>,
    y: Vec<f64>,
    table: Vec<f64>,
    w: Vec<f64>,
    add: Vec<f64>,
    mask: Vec<f64>,
    mask_table: Vec<f64>,
    norm_y: [Vec<f64>; 2],
    stats: [Vec<f64>; 2],
    gamma: [Vec<f64>; 2],
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

    fn integers(&self) -> Operands {
        self.operands(|what, n| {
            let all = fill::int(&format!("{}/{what}", self.name), n, 5);
            all.into_iter().map(|v| v as f64 - 2.0).collect()
        })
    }

    fn random<T: Half>(&self) -> Operands {
        self.operands(|what, n| {
            let all = fill::f32(&format!("{}/{what}", self.name), n, 0.7, 0.1);
            all.into_iter().map(|v| T::store(f64::from(v))).collect()
        })
    }

    fn operands(&self, value: impl Fn(&str, usize) -> Vec<f64>) -> Operands {
        let (op, c) = (self.op(), self.input[4]);
        let (inputs, outputs) = (op.input.num_elements(), op.output().num_elements());
        // The second batch norm's input has a mean of 100 deviations.
        let shifted = |v: Vec<f64>, by: f64| -> Vec<f64> { v.into_iter().map(|v| v * 2.0 + by).collect() };
        let norm_y = [value("norm_y", inputs), shifted(value("norm_y2", inputs), 128.0)];
        let ones = vec![1.0; c];
        let norm_y = norm_y.map(|y| y.into_iter().map(|v| half::bf16::from_f64(v).to_f64()).collect::<Vec<f64>>());
        let stats = [0, 1].map(|k| {
            let tables = reference::statistics(op.input, self.splits, to_f32, 1e-5, &norm_y[k], &ones, &ones);
            tables.stats
        });
        Operands {
            g: value("g", outputs),
            y: value("y", outputs),
            table: value("table", self.splits * 3 * self.c_out),
            w: value("w", op.filter_len()),
            add: value("add", inputs),
            mask: value("mask", inputs),
            mask_table: value("mask_table", self.splits * 2 * c),
            norm_y,
            stats,
            gamma: [value("gamma", c), value("gamma2", c)],
        }
    }

    /// Whether the ReLU was open at element `i`, as f32 decides it.
    fn is_open(&self, o: &Operands, i: usize) -> bool {
        let [n, _, _, _, c] = self.input;
        let per_split = n.div_ceil(self.splits) * o.mask.len() / n;
        let (split, ch) = (i / per_split, i % c);
        let at = |r: usize| o.mask_table[(split * 2 + r) * c + ch] as f32;
        match self.mask {
            Kind::None => true,
            Kind::Output => o.mask[i] > 0.0,
            Kind::Recomputed => at(0).mul_add(o.mask[i] as f32, at(1)) > 0.0,
        }
    }

    /// dy, and the gradient that is stored.
    fn expected(&self, o: &Operands, rounding: Rounding) -> [Vec<f64>; 2] {
        let op = self.op();
        let dy = match self.table {
            None => o.g.clone(),
            Some(_) => reference::grad_of_table(op.output(), self.splits, rounding, &o.g, &o.y, &o.table),
        };
        let mut dx = vec![0.0; op.input.num_elements()];
        reference::for_each_term(&op, |t| dx[t.x] = (rounding.round)(dx[t.x] + dy[t.y] * o.w[t.w]));
        let masked = reference::masked(rounding, &dx, self.add.then_some(&o.add), |i| self.is_open(o, i));
        [dy, masked]
    }
}

struct Results {
    dx: Vec<f64>,
    dy: Option<Vec<f64>>,
    /// The tables, dgamma and dbeta of each batch norm.
    norms: Vec<[Vec<f64>; 3]>,
}

fn run<T: Half>(device: &Device, case: &Fused, o: &Operands) -> Results {
    let (op, stream) = (case.op(), device.stream().expect("stream"));
    let (g, y) = (held::<T>(device, op.output(), &o.g, case.gap), held::<T>(device, op.output(), &o.y, case.gap));
    let dy = garbage::<T>(device, op.output(), case.gap);
    let table_memory = floats(device, &o.table);
    let is_stored = case.table == Some(true);
    let table = case.table.map(|stored| GradTable {
        table: &table_memory,
        y: &y.tensor,
        splits: case.splits,
        store_dy: stored.then_some(&dy.tensor),
    });
    let w = slice::<T>(device, &o.w);
    // The result may replace what is added to it: half of the cases do so.
    let add = held::<T>(device, op.input, &o.add, case.gap);
    let is_in_place = case.add && case.norms == 2;
    let dx = if is_in_place { add.clone() } else { garbage::<T>(device, op.input, case.gap) };
    let mask = held::<T>(device, op.input, &o.mask, case.gap);
    let mask_table = floats(device, &o.mask_table);
    let norm_y = [0, 1].map(|k| held::<T>(device, op.input, &o.norm_y[k], case.gap));
    let (stats, gamma) = ([0, 1].map(|k| floats(device, &o.stats[k])), [0, 1].map(|k| floats(device, &o.gamma[k])));
    let nan = |n: usize| floats(device, &vec![f64::NAN; n]);
    let c = op.input.c;
    let written: [[Slice; 3]; 2] = [0, 1].map(|_| [nan(case.splits * 3 * c), nan(c), nan(c)]);
    let norms: Vec<GradNorm<'_>> = (0..case.norms)
        .map(|k| GradNorm {
            y: &norm_y[k].tensor,
            stats: &stats[k],
            gamma: &gamma[k],
            grad_table: &written[k][0],
            grad_gamma: &written[k][1],
            grad_beta: &written[k][2],
        })
        .collect();
    let epilogue = GradEpilogue {
        add: case.add.then_some(&add.tensor),
        mask: match case.mask {
            Kind::None => Mask::None,
            Kind::Output => Mask::Output(&mask.tensor),
            Kind::Recomputed => Mask::Recomputed { scale_shift: &mask_table, y: &mask.tensor },
        },
        splits: case.splits,
        norms: &norms,
    };
    let scratch = workspace(device, conv3d::workspace_bytes_fused(&stream, &op, Direction::GradInput, case.splits));
    conv3d::grad_input_fused(&stream, &op, &g.tensor, table.as_ref(), &w, &epilogue, &dx.tensor, &scratch)
        .expect("grad_input_fused");
    let tickets = scratch.read::<u8>().expect("workspace");
    assert!(tickets.iter().take(vcycle::ops::TICKET_BYTES).all(|b| *b == 0), "{}: tickets are left behind", case.name);
    Results {
        dx: dx.read::<T>(),
        dy: is_stored.then(|| dy.read::<T>()),
        norms: written[..case.norms].iter().map(|w| [0, 1, 2].map(|i| read_floats(&w[i]))).collect(),
    }
}

/// The tables against those of the stored gradient. Each row has its own scale: all are compared as parts of their largest
/// value, together, since the plain error of a few sums alone is a matter of luck.
fn check_tables(what: &str, case: &Fused, o: &Operands, got: &Results) {
    let (shape, c) = (case.op().input, case.input[4]);
    let mut all = [vec![], vec![], vec![]];
    for (k, [table, dgamma, dbeta]) in got.norms.iter().enumerate() {
        let [want, plain] = [|v| v, to_f32].map(|round| {
            reference::grad_tables(shape, case.splits, round, &got.dx, &o.norm_y[k], &o.stats[k], &o.gamma[k])
        });
        let mut rows = vec![[dgamma.clone(), plain.dgamma, want.dgamma], [dbeta.clone(), plain.dbeta, want.dbeta]];
        rows.extend((0..3).map(|r| [table, &plain.table, &want.table].map(|t| row(t, 3, c, r))));
        for row in rows {
            let largest = row[2].iter().filter(|v| !v.is_nan()).fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
            all.iter_mut().zip(row).for_each(|(all, row)| all.extend(row.into_iter().map(|v| v / largest)));
        }
    }
    assert_near(&format!("{what}: tables"), &all[0], &all[1], &all[2], F32);
}

pub fn check<T: Half>(device: &Device, case: &Fused) {
    let what = format!("{} {} on {device}", case.name, T::NAME);
    let o = case.integers();
    let got = run::<T>(device, case, &o);
    let [dy, dx] = case.expected(&o, Rounding { round: |v| v, store: T::store });
    assert_exact(&format!("{what}: dx"), &got.dx, &dx);
    got.dy.iter().for_each(|stored| assert_exact(&format!("{what}: dy"), stored, &dy));
    check_tables(&what, case, &o, &got);

    let o = case.random::<T>();
    let got = run::<T>(device, case, &o);
    let want = case.expected(&o, Rounding::EXACT);
    let plain = case.expected(&o, Rounding { round: to_f32, store: T::store });
    assert_near(&format!("{what}: dx"), &got.dx, &plain[1], &want[1], T::ROUNDING);
    got.dy.iter().for_each(|stored| assert_near(&format!("{what}: dy"), stored, &plain[0], &want[0], T::ROUNDING));
    check_tables(&what, case, &o, &got);
}

#[test]
fn fused_grad_input_agrees_with_the_reference() {
    for device in executors::with_kernels() {
        for case in &CASES {
            check::<half::bf16>(&device, case);
            check::<half::f16>(&device, case);
        }
    }
}

pub fn same_bits_in_all_modes<T: Half>(device: &Device, case: &Fused) {
    let o = case.random::<T>();
    let bits = |r: &Results| (r.dx.clone(), r.dy.clone(), format!("{:?}", r.norms));
    let first = bits(&run::<T>(device, case, &o));
    executors::in_all_modes(device, |mode| {
        assert!(first == bits(&run::<T>(device, case, &o)), "{} on {mode}", case.name);
    });
}

#[test]
fn fused_grad_input_gives_the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        let names = ["pointwise", "s122", "halo_s122", "checked", "slices"];
        CASES
            .iter()
            .filter(|c| names.contains(&c.name))
            .for_each(|case| same_bits_in_all_modes::<half::bf16>(&device, case));
    }
}

/// The chain as a network runs it, in f64: the gradient of batch norm by its table is that of `batch_norm::reference`.
#[test]
fn the_table_is_the_gradient_of_batch_norm() {
    use vcycle::ops::batch_norm;
    let shape = ActivationShape::new(5, 1, 3, 4, 6);
    let value = |what: &str, n: usize, offset: f64| -> Vec<f64> {
        fill::f32(what, n, 1.0, offset).into_iter().map(f64::from).collect()
    };
    let (x, g) = (value("x", shape.num_elements(), 3.0), value("g", shape.num_elements(), 0.1));
    let (gamma, beta) = (value("gamma", 6, 1.0), value("beta", 6, 0.0));
    let op = batch_norm::BatchNorm { shape, splits: 2, eps: 1e-5, relu: false, part: None };
    let forward = batch_norm::reference::forward(&op, |v| v, &x, &gamma, &beta, None);
    let backward = batch_norm::reference::backward(&op, |v| v, &x, &gamma, &forward, &g);
    let eps = f64::from(op.eps);
    let tables = reference::statistics(shape, 2, |v| v, eps, &x, &gamma, &beta);
    let grads = reference::grad_tables(shape, 2, |v| v, &g, &x, &tables.stats, &gamma);
    let dx = reference::grad_of_table(shape, 2, Rounding::EXACT, &g, &x, &grads.table);
    let close = |what: &str, a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-11, "{what}: {a} {b}"));
    };
    close("dx", &dx, &backward.dx);
    close("dgamma", &grads.dgamma, &backward.dgamma);
    close("dbeta", &grads.dbeta, &backward.dbeta);
    close("stats", &tables.stats, &forward.stats);
}
