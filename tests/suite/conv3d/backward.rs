//! Both gradients of a convolution by one kernel.

use vcycle::device::{Device, Slice};
use vcycle::ops::conv3d::reference::{self, Rounding};
use vcycle::ops::conv3d::{
    self, Conv3d, Direction, GradEpilogue, GradFilterLimits, GradFilterSources, GradNorm, GradTable, Mask, Method,
    Prologue, with_method,
};
use vcycle::shape::{ActivationShape, Part};

use super::fused::{F32, row, to_f32};
use super::typed::{Half, Held, assert_exact, assert_near, floats, garbage, held, read_floats, slice, workspace};
use crate::executors;
use crate::golden::fill;

/// What is added to the input's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Add {
    Nothing,
    /// What its memory holds.
    InPlace,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    input: [usize; 5],
    c_out: usize,
    splits: usize,
    gap: usize,
    /// The input is `relu(s x + b)` and the mask that of this ReLU; else the input is what a ReLU made, or there was none.
    affine: bool,
    table: bool,
    add: Add,
    /// Batch norms before the input; with `affine` the first is that of the input.
    norms: usize,
}

#[rustfmt::skip]
const CASES: [Case; 7] = [
    // each variant; tiles and splits that end within a tile; pitches
    case("64x16", [5, 1, 7, 9, 8], 32, 2, 8, true, true, Add::Nothing, 1),
    case("128x32", [3, 2, 6, 6, 32], 128, 2, 0, true, true, Add::Other, 1),
    case("64x128", [3, 1, 8, 8, 256], 64, 2, 8, false, true, Add::InPlace, 2),
    case("128x128", [2, 1, 6, 6, 320], 128, 2, 0, false, true, Add::Other, 1),
    case("256x64", [3, 1, 6, 5, 64], 256, 3, 8, true, true, Add::Nothing, 2),
    // fewer channels than a tile has, of both; the gradient as it is
    case("odd", [1, 1, 5, 5, 24], 40, 1, 8, false, false, Add::Other, 0),
    case("first", [3, 1, 7, 5, 80], 56, 3, 16, false, true, Add::Nothing, 0),
];

#[allow(clippy::too_many_arguments)]
const fn case(
    name: &'static str,
    input: [usize; 5],
    c_out: usize,
    splits: usize,
    gap: usize,
    affine: bool,
    table: bool,
    add: Add,
    norms: usize,
) -> Case {
    Case { name, input, c_out, splits, gap, affine, table, add, norms }
}

/// All operands, dense.
struct Operands {
    g: Vec<f64>,
    y: Vec<f64>,
    table: Vec<f64>,
    x: Vec<f64>,
    scale_shift: Vec<f64>,
    w: Vec<f64>,
    add: Vec<f64>,
    norm_y: [Vec<f64>; 2],
    stats: [Vec<f64>; 2],
    gamma: [Vec<f64>; 2],
}

impl Case {
    fn op(&self) -> Conv3d {
        let [n, t, h, w, c] = self.input;
        Conv3d {
            input: ActivationShape::new(n, t, h, w, c),
            c_out: self.c_out,
            filter: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            groups: 1,
            part: None,
        }
    }

    fn integers(&self) -> Operands {
        self.operands(0.0, |what, n| {
            let (least, count) = if what.contains("table") { (-1.0, 3) } else { (-2.0, 5) };
            let all = fill::int(&format!("{}/{what}", self.name), n, count);
            all.into_iter().map(|v| v as f64 + least).collect()
        })
    }

    /// What batch norms read lies around `mean`, and the tables bring it back.
    fn random<T: Half>(&self, mean: f64) -> Operands {
        self.operands(mean, |what, n| {
            let all = fill::f32(&format!("{}/{what}", self.name), n, 0.7, 0.1);
            all.into_iter().map(|v| T::store(f64::from(v))).collect()
        })
        .rounded::<T>()
    }

    fn operands(&self, mean: f64, value: impl Fn(&str, usize) -> Vec<f64>) -> Operands {
        let (op, c) = (self.op(), self.input[4]);
        let (inputs, outputs) = (op.input.num_elements(), op.output().num_elements());
        let moved = |v: Vec<f64>, by: f64| -> Vec<f64> { v.into_iter().map(|v| v + by).collect() };
        let recentred = |mut table: Vec<f64>, rows: usize, c: usize| {
            for split in table.chunks_mut(rows * c) {
                let (factors, shift) = split.split_at_mut((rows - 1) * c);
                let factor = &factors[(rows - 2) * c..];
                shift.iter_mut().zip(factor).for_each(|(shift, by)| *shift = to_f32(*shift - mean * by));
            }
            table
        };
        let x = if self.affine { moved(value("x", inputs), mean) } else { value("x", inputs) };
        let own = if self.affine { x.clone() } else { moved(value("norm_y", inputs), mean) };
        // The other batch norm's input has a mean of 100 deviations.
        let other = moved(value("norm_y2", inputs).into_iter().map(|v| v * 2.0).collect(), 128.0);
        let norm_y = [own, other].map(|y| y.into_iter().map(half::bf16::store).collect::<Vec<f64>>());
        let ones = vec![1.0; c];
        let stats =
            [0, 1].map(|k| reference::statistics(op.input, self.splits, to_f32, 1e-5, &norm_y[k], &ones, &ones).stats);
        Operands {
            g: value("g", outputs),
            y: moved(value("y", outputs), mean),
            table: recentred(value("table", self.splits * 3 * self.c_out), 3, self.c_out),
            x: if self.affine { norm_y[0].clone() } else { x.iter().map(|v| v.max(0.0)).collect() },
            scale_shift: recentred(value("table2", self.splits * 2 * c), 2, c),
            w: value("w", op.filter_len()),
            add: value("add", inputs),
            norm_y,
            stats,
            gamma: [value("gamma", c), value("gamma2", c)],
        }
    }

    /// Whether the ReLU was open at element `i`, as f32 decides it.
    fn is_open(&self, o: &Operands, i: usize) -> bool {
        let [n, _, _, _, c] = self.input;
        let (split, ch) = (i / (n.div_ceil(self.splits) * o.x.len() / n), i % c);
        let at = |r: usize| o.scale_shift[(split * 2 + r) * c + ch] as f32;
        match self.affine {
            true => at(0).mul_add(o.x[i] as f32, at(1)) > 0.0,
            false => o.x[i] > 0.0,
        }
    }

    /// The gradients of input and filter.
    fn expected(&self, o: &Operands, rounding: Rounding) -> [Vec<f64>; 2] {
        let op = self.op();
        let dy = match self.table {
            false => o.g.clone(),
            true => reference::grad_of_table(op.output(), self.splits, rounding, &o.g, &o.y, &o.table),
        };
        let x = match self.affine {
            false => o.x.clone(),
            true => reference::normalised(op.input, self.splits, rounding, &o.x, &o.scale_shift, None),
        };
        let (mut dx, mut dw) = (vec![0.0; op.input.num_elements()], vec![0.0; op.filter_len()]);
        reference::for_each_term(&op, |t| {
            dx[t.x] = (rounding.round)(dx[t.x] + dy[t.y] * o.w[t.w]);
            dw[t.w] = (rounding.round)(dw[t.w] + dy[t.y] * x[t.x]);
        });
        let add = (self.add != Add::Nothing).then_some(&o.add[..]);
        [reference::masked(rounding, &dx, add, |i| self.is_open(o, i)), dw]
    }
}

impl Operands {
    /// With activations that `T` holds.
    fn rounded<T: Half>(mut self) -> Operands {
        self.y.iter_mut().for_each(|v| *v = T::store(*v));
        self
    }
}

#[derive(Debug, Default, PartialEq)]
struct Results {
    dx: Vec<f64>,
    dw: Vec<f64>,
    /// The tables, dgamma and dbeta of each batch norm.
    norms: [[Vec<f64>; 3]; 2],
}

/// Runs the splits of a batch in groups of so many, by one kernel or by one function after the other.
fn run<T: Half>(device: &Device, case: &Case, o: &Operands, cut: &[usize], at_once: bool) -> Results {
    let (batch, c) = (case.op(), case.input[4]);
    let whole = Part::whole(batch.input.n, case.splits);
    let nan = |n: usize| floats(device, &vec![f64::NAN; n]);
    let dw = nan(batch.filter_len());
    let params: [[Slice; 2]; 2] = [0, 1].map(|_| [nan(c), nan(c)]);
    let mut results = Results::default();
    let (mut part, mut first_split) = (whole, 0);
    for &splits in cut {
        let clips = (splits * part.clips_per_split()).min(part.batch_clips - part.first_clip);
        let op = Conv3d { input: ActivationShape { n: clips, ..batch.input }, part: Some(part), ..batch };
        let call = Call { device, case, o, op, splits, first_split, first_clip: part.first_clip };
        let (dx, tables) = call.run::<T>(&dw, &params, at_once);
        results.dx.extend(dx);
        results.norms.iter_mut().zip(tables).for_each(|(to, table)| to[0].extend(table));
        (part.first_clip, first_split) = (part.first_clip + clips, first_split + splits);
    }
    assert_eq!(part.first_clip, part.batch_clips);
    results.dw = read_floats(&dw);
    for (to, of) in results.norms.iter_mut().zip(&params).take(case.norms) {
        (to[1], to[2]) = (read_floats(&of[0]), read_floats(&of[1]));
    }
    results
}

/// One call: of some splits of a batch.
struct Call<'a> {
    device: &'a Device,
    case: &'a Case,
    o: &'a Operands,
    op: Conv3d,
    splits: usize,
    first_split: usize,
    first_clip: usize,
}

impl Call<'_> {
    fn held<T: Half>(&self, values: &[f64], shape: ActivationShape) -> Held {
        let of_clip = shape.num_elements() / shape.n;
        let values = &values[self.first_clip * of_clip..][..shape.num_elements()];
        held::<T>(self.device, shape, values, self.case.gap)
    }

    /// Rows of the splits at hand.
    fn table(&self, values: &[f64], len: usize) -> Slice {
        floats(self.device, &values[self.first_split * len..][..self.splits * len])
    }

    fn run<T: Half>(&self, dw: &Slice, params: &[[Slice; 2]; 2], at_once: bool) -> (Vec<f64>, [Vec<f64>; 2]) {
        let Call { device, case, o, ref op, splits, .. } = *self;
        let (stream, c) = (device.stream().expect("stream"), op.input.c);
        let (g, y) = (self.held::<T>(&o.g, op.output()), self.held::<T>(&o.y, op.output()));
        let (x, add) = (self.held::<T>(&o.x, op.input), self.held::<T>(&o.add, op.input));
        let others = [0, 1].map(|k| self.held::<T>(&o.norm_y[k], op.input));
        let dx = if case.add == Add::InPlace { add.clone() } else { garbage::<T>(device, op.input, case.gap) };
        let (table, scale_shift) = (self.table(&o.table, 3 * case.c_out), self.table(&o.scale_shift, 2 * c));
        let stats = [0, 1].map(|k| self.table(&o.stats[k], 3 * c));
        let gamma = [0, 1].map(|k| floats(device, &o.gamma[k]));
        let tables = [0, 1].map(|_| floats(device, &vec![f64::NAN; splits * 3 * c]));
        let norms: Vec<GradNorm<'_>> = (0..case.norms)
            .map(|k| GradNorm {
                y: if case.affine && k == 0 { &x.tensor } else { &others[k].tensor },
                stats: &stats[k],
                gamma: &gamma[k],
                grad_table: &tables[k],
                grad_gamma: &params[k][0],
                grad_beta: &params[k][1],
            })
            .collect();
        let from = GradFilterSources {
            input: &x.tensor,
            prologue: case.affine.then_some(Prologue { scale_shift: &scale_shift, splits, join: None }),
            grad_output: &g.tensor,
            grad_table: case.table.then_some(GradTable { table: &table, y: &y.tensor, splits, store_dy: None }),
            pool: None,
        };
        let epilogue = GradEpilogue {
            add: (case.add != Add::Nothing).then_some(&add.tensor),
            mask: match case.affine {
                true => Mask::Recomputed { scale_shift: &scale_shift, y: &x.tensor },
                false => Mask::Output(&x.tensor),
            },
            splits,
            norms: &norms,
        };
        let w = slice::<T>(device, &o.w);
        if at_once {
            let scratch = workspace(device, conv3d::backward_workspace_bytes(&stream, op, splits));
            conv3d::backward_fused(&stream, op, &from, &w, &epilogue, &dx.tensor, dw, &scratch).expect(case.name);
            let tickets = scratch.read::<u8>().expect("workspace");
            assert!(tickets.iter().take(vcycle::ops::TICKET_BYTES).all(|b| *b == 0), "{}: tickets", case.name);
        } else {
            let scratch =
                |direction| workspace(device, conv3d::workspace_bytes_fused(&stream, op, direction, splits) + 4096);
            let memory = scratch(Direction::GradFilter);
            conv3d::grad_filter_fused(&stream, op, &from, dw, None, &memory).expect(case.name);
            let (memory, table) = (scratch(Direction::GradInput), from.grad_table.as_ref());
            conv3d::grad_input_fused(&stream, op, &g.tensor, table, &w, &epilogue, &dx.tensor, &memory)
                .expect(case.name);
        }
        (dx.read::<T>(), [0, 1].map(|k| if k < case.norms { read_floats(&tables[k]) } else { vec![] }))
    }
}

/// The tables against those of the stored gradient, each row as parts of its largest value.
fn check_tables(what: &str, case: &Case, o: &Operands, got: &Results) {
    let (shape, c) = (case.op().input, case.input[4]);
    let mut all = [vec![], vec![], vec![]];
    for (k, [table, dgamma, dbeta]) in got.norms.iter().enumerate().take(case.norms) {
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

fn check_exact<T: Half>(device: &Device, case: &Case, what: &str) {
    let (o, what) = (case.integers(), format!("{} {} {what}", case.name, T::NAME));
    let got = run::<T>(device, case, &o, &[case.splits], true);
    let [dx, dw] = case.expected(&o, Rounding { round: |v| v, store: T::store });
    assert_exact(&format!("{what}: dx"), &got.dx, &dx);
    assert_exact(&format!("{what}: dw"), &got.dw, &dw);
    check_tables(&what, case, &o, &got);
}

fn check_near<T: Half>(device: &Device, case: &Case, mean: f64) {
    let (o, what) = (case.random::<T>(mean), format!("{} {} mean {mean}", case.name, T::NAME));
    let got = run::<T>(device, case, &o, &[case.splits], true);
    let want = case.expected(&o, Rounding::EXACT);
    let plain = case.expected(&o, Rounding { round: to_f32, store: T::store });
    assert_near(&format!("{what}: dx"), &got.dx, &plain[0], &want[0], T::ROUNDING);
    assert_near(&format!("{what}: dw"), &got.dw, &plain[1], &want[1], F32);
    check_tables(&what, case, &o, &got);
    assert!(got == run::<T>(device, case, &o, &[case.splits], true), "{what}: two runs differ");
    // The same products in the same order: the input's gradient has the bits of the kernel that makes it alone.
    let separate = with_method(Method::Mma, || run::<T>(device, case, &o, &[case.splits], false));
    assert!(got.dx == separate.dx, "{what}: grad_input alone gives other bits");
    let largest = want[1].iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let differ = got.dw.iter().zip(&separate.dw).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(differ <= largest * 64.0 * F32, "{what}: grad_filter alone differs by {differ:e} of {largest}");
}

/// With as many parts as there are tiles, with one, and as planned.
fn in_parts(test: impl Fn(&str)) {
    test("as planned");
    for num_sms in [1, 64] {
        conv3d::with_grad_filter_limits(GradFilterLimits::of(num_sms, 99 << 10), || test(&format!("{num_sms} SMs")));
    }
}

#[test]
fn small_integers_are_exact() {
    for device in executors::with_kernels() {
        for case in &CASES {
            in_parts(|how| check_exact::<half::bf16>(&device, case, how));
            check_exact::<half::f16>(&device, case, "as planned");
        }
    }
}

#[test]
fn random_values_are_as_near_as_plain_arithmetic() {
    for device in executors::with_kernels() {
        for case in &CASES {
            check_near::<half::bf16>(&device, case, 0.0);
            check_near::<half::f16>(&device, case, 0.0);
        }
    }
}

/// Values whose mean is a hundred times their deviation, which the tables undo.
#[test]
fn a_large_mean_costs_no_digits() {
    for device in executors::with_kernels() {
        CASES.iter().filter(|case| case.table).for_each(|case| check_near::<half::bf16>(&device, case, 58.0));
    }
}

#[test]
fn bits_are_the_same_in_all_modes_and_split_by_split() {
    for device in executors::with_kernels() {
        for case in &CASES {
            let o = case.random::<half::bf16>(0.0);
            conv3d::with_grad_filter_limits(GradFilterLimits::of(2, 99 << 10), || {
                let first = run::<half::bf16>(&device, case, &o, &[case.splits], true);
                for cut in [vec![1, case.splits - 1], vec![1; case.splits]] {
                    let cut: Vec<usize> = cut.into_iter().filter(|splits| *splits > 0).collect();
                    assert!(first == run::<half::bf16>(&device, case, &o, &cut, true), "{} in {cut:?}", case.name);
                }
                executors::in_all_modes(&device, |mode| {
                    let got = run::<half::bf16>(&device, case, &o, &[case.splits], true);
                    assert!(first == got, "{} on {mode}", case.name);
                });
            });
        }
    }
}
