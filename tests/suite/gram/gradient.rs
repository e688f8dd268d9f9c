//! The backward pass from tables: against the f64 reference, from the same tables.

use vcycle::device::{DType, Device, Slice};
use vcycle::ops::batch_norm::BatchNorm;
use vcycle::ops::gram::{self, GradientResults, GradientSources, Gram, reference};
use vcycle::shape::{ActivationShape, Part};

use crate::compare::{as_f64, exact, to_f32};
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, assert_twice_plain, garbage, read, rounding, slice};

struct Case {
    name: &'static str,
    clips: usize,
    positions: usize,
    c_in: usize,
    c_out: usize,
    splits: usize,
}

#[rustfmt::skip]
const CASES: [Case; 5] = [
    // channels that fill no tile; a ragged last split
    Case { name: "ragged", clips: 5, positions: 8, c_in: 24, c_out: 40, splits: 3 },
    Case { name: "one_split", clips: 2, positions: 16, c_in: 8, c_out: 32, splits: 1 },
    // several tiles both ways, several steps of gemm_k
    Case { name: "tiles", clips: 4, positions: 8, c_in: 72, c_out: 130, splits: 2 },
    // one clip a split; fewer channels than a block has warps
    Case { name: "one_clip", clips: 4, positions: 4, c_in: 3, c_out: 2, splits: 4 },
    Case { name: "empty_splits", clips: 3, positions: 4, c_in: 16, c_out: 33, splits: 4 },
];

impl Case {
    fn op(&self) -> Gram {
        let shape = ActivationShape::new(self.clips, 1, 1, self.positions, self.c_out);
        let norm = BatchNorm { shape, splits: self.splits, eps: 1e-5, relu: false, part: None };
        Gram { norm, c_in: self.c_in }
    }
}

/// What the backward pass reads, dense f32; of the filter's type.
struct Operands {
    products: Vec<f32>,
    grad_sums: Vec<f32>,
    moments: Vec<f32>,
    stats: Vec<f32>,
    gamma: Vec<f32>,
    filter: Vec<f32>,
    /// The reference's form of the first three: sums about the mean, then the sum of g, of each channel.
    centred: Vec<f64>,
}

impl Operands {
    /// Sums of a random input and gradient, whose mean is `mean` deviations.
    fn random(case: &Case, dtype: DType, mean: f32) -> Operands {
        let (op, value) = (case.op(), |what: &str, n: usize, offset: f64| {
            let all = fill::f32(&format!("{}/{what}", case.name), n, 1.0, offset);
            all.into_iter().map(|v| stored::round(dtype, f64::from(v)) as f32).collect::<Vec<f32>>()
        });
        let rows = case.clips * case.positions;
        let x = as_f64(&value("x", rows * case.c_in, f64::from(mean)));
        let (g, filter) = (value("g", rows * case.c_out, 0.1), value("filter", case.c_out * case.c_in, 0.0));
        let f32s = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        let moments = f32s(reference::moments(&op, exact, &x));
        let stats = f32s(reference::statistics(&op, exact, &as_f64(&moments), &as_f64(&filter)));
        let centred = reference::products(&op, exact, &x, &as_f64(&g), &as_f64(&moments));
        Operands::of(case, centred, moments, stats, value("gamma", case.c_out, 1.0), filter)
    }

    /// All that is divided by is a power of two.
    fn integers(case: &Case) -> Operands {
        let (op, value) = (case.op(), |what: &str, n: usize| {
            let all = fill::int(&format!("{}/{what}", case.name), n, 5);
            all.into_iter().map(|v| v as f32 - 2.0).collect::<Vec<f32>>()
        });
        let centred = value("products", case.splits * case.c_out * (case.c_in + 1));
        let stats = value("stats", op.norm.stats_len()).into_iter().map(|v| if v < 0.0 { 0.5 } else { 2.0 }).collect();
        let filter = value("filter", case.c_out * case.c_in);
        Operands::of(
            case,
            as_f64(&centred),
            value("moments", op.moments_len()),
            stats,
            value("gamma", case.c_out),
            filter,
        )
    }

    fn of(
        case: &Case,
        mut centred: Vec<f64>,
        moments: Vec<f32>,
        stats: Vec<f32>,
        gamma: Vec<f32>,
        filter: Vec<f32>,
    ) -> Operands {
        let (c, per_split) = (case.c_in, case.op().moments_of_split());
        let (mut products, mut grad_sums) = (vec![], vec![]);
        for (row, centred) in centred.chunks_mut(c + 1).enumerate() {
            let mean = &moments[row / case.c_out * per_split..][..c];
            let sum = centred[c] as f32;
            centred[c] = f64::from(sum);
            for (centred, mean) in centred.iter_mut().zip(mean) {
                let product = (*centred + f64::from(sum) * f64::from(*mean)) as f32;
                products.push(product);
                // What f32 keeps of it.
                *centred = f64::from(product) - f64::from(sum) * f64::from(*mean);
            }
            grad_sums.push(sum);
        }
        Operands { products, grad_sums, moments, stats, gamma, filter, centred }
    }
}

#[derive(Debug, PartialEq)]
struct Results {
    table: Vec<f32>,
    back_filter: Vec<f32>,
    back_shift: Vec<f32>,
    grad_filter: Vec<f32>,
    grad_gamma: Vec<f32>,
    grad_beta: Vec<f32>,
}

/// All splits at once, or (`cut`) each in a call of its own.
fn run(device: &Device, dtype: DType, case: &Case, o: &Operands, cut: bool) -> Results {
    let (op, stream) = (case.op(), device.stream().unwrap());
    let f32s = |values: &[f32]| slice(device, DType::F32, values);
    let nan = |len: usize| garbage(device, DType::F32, len);
    let (gamma, filter) = (f32s(&o.gamma), slice(device, dtype, &o.filter));
    let [grad_filter, grad_gamma, grad_beta] = [case.c_out * case.c_in, case.c_out, case.c_out].map(nan);
    let back_len = (case.c_out + case.c_in) * case.c_in;
    let mut all = [vec![], vec![], vec![]];
    let whole = Part::whole(case.clips, case.splits);
    let each = if cut { 1 } else { case.splits };
    for first in (0..op.norm.splits_used()).step_by(each) {
        let at = first..first + each;
        let first_clip = at.start * whole.clips_per_split();
        let clips = at.len() * whole.clips_per_split();
        let mut op = op;
        if cut {
            op.norm.part = Some(Part { first_clip, ..whole });
            (op.norm.shape.n, op.norm.splits) = (clips.min(case.clips - first_clip), 1);
        }
        let of_splits = |all: &[f32]| {
            let each = all.len() / case.splits;
            f32s(&all[at.start * each..at.end * each])
        };
        let [products, grad_sums, moments, stats] =
            [&o.products, &o.grad_sums, &o.moments, &o.stats].map(|v| of_splits(v));
        let from = GradientSources {
            products: &products,
            grad_sums: &grad_sums,
            moments: &moments,
            stats: &stats,
            gamma: &gamma,
            filter: &filter,
        };
        let table = nan(at.len() * 3 * case.c_out);
        let (back_filter, back_shift) = (garbage(device, dtype, at.len() * back_len), nan(at.len() * case.c_in));
        let to = GradientResults {
            grad_table: &table,
            back_filter: &back_filter,
            back_shift: &back_shift,
            grad_filter: &grad_filter,
            grad_gamma: &grad_gamma,
            grad_beta: &grad_beta,
        };
        gram::gradient(&stream, &op, &from, &to).unwrap();
        let filled = op.norm.splits_used();
        let known = |slice: &Slice, each: usize| read(slice)[..filled * each].to_vec();
        all[0].extend(known(&table, 3 * case.c_out));
        all[1].extend(known(&back_filter, back_len));
        all[2].extend(known(&back_shift, case.c_in));
    }
    let [table, back_filter, back_shift] = all;
    let [grad_filter, grad_gamma, grad_beta] = [&grad_filter, &grad_gamma, &grad_beta].map(read);
    Results { table, back_filter, back_shift, grad_filter, grad_gamma, grad_beta }
}

/// Table, dgamma, dbeta; then from the table that was written dW, the filter and the shift.
fn expected(case: &Case, o: &Operands, round: fn(f64) -> f64, got: &Results) -> [Vec<f64>; 6] {
    let (op, known) = (case.op(), got.table.len());
    let [w, gamma, stats, moments] = [&o.filter, &o.gamma, &o.stats, &o.moments].map(|v| as_f64(v));
    let mut table = as_f64(&got.table);
    table.resize(op.norm.grad_table_len(), 0.0);
    let [mut tables, dgamma, dbeta] = reference::grad_tables(&op, round, &o.centred, &w, &gamma, &stats);
    tables.truncate(known);
    let dw = reference::grad_filter(&op, round, &o.centred, &moments, &w, &table);
    let (mut filter, mut shift) = (vec![], vec![]);
    for [of_g, of_x, constant] in reference::input_factors(&op, round, &w, &table) {
        filter.extend(of_g.into_iter().chain(of_x));
        shift.extend(constant);
    }
    [tables, dgamma, dbeta, dw, filter, shift]
}

impl Results {
    /// In the order of [`expected`], with what is in the filter's type.
    fn parts(&self) -> [(&'static str, &[f32], bool); 6] {
        [
            ("table", &self.table, false),
            ("dgamma", &self.grad_gamma, false),
            ("dbeta", &self.grad_beta, false),
            ("dW", &self.grad_filter, false),
            ("back_filter", &self.back_filter, true),
            ("back_shift", &self.back_shift, false),
        ]
    }
}

fn executors_and_types() -> Vec<(Device, DType)> {
    let kernels = executors::with_kernels().into_iter().flat_map(|d| stored::SHORT.map(|dtype| (d.clone(), dtype)));
    kernels.chain([(Device::Cpu, DType::F32)]).collect()
}

#[test]
fn powers_of_two_are_exact() {
    for (device, dtype) in executors_and_types() {
        // Numbers of positions that are powers of two.
        for case in CASES.iter().filter(|case| (case.clips * case.positions).is_power_of_two()) {
            let o = Operands::integers(case);
            let got = run(&device, dtype, case, &o, false);
            let want = expected(case, &o, exact, &got);
            for ((part, got, is_short), want) in got.parts().into_iter().zip(want) {
                let stored = if is_short { dtype } else { DType::F32 };
                let want: Vec<f64> = want.into_iter().map(rounding(stored)).collect();
                assert_eq!(as_f64(got), want, "{} {dtype:?} on {device}: {part}", case.name);
            }
        }
    }
}

#[test]
fn random_tables_agree_with_the_reference() {
    for (device, dtype) in executors_and_types() {
        for (case, mean) in CASES.iter().flat_map(|case| [(case, 0.0), (case, 58.0)]) {
            let what = format!("{} {dtype:?} mean {mean} on {device}", case.name);
            let o = Operands::random(case, dtype, mean);
            let got = run(&device, dtype, case, &o, false);
            let [want, plain] = [exact, to_f32].map(|round| expected(case, &o, round, &got));
            for (i, (part, got, is_short)) in got.parts().into_iter().enumerate() {
                let stored = if is_short { dtype } else { DType::F32 };
                let plain: Vec<f64> = plain[i].iter().copied().map(rounding(stored)).collect();
                assert_twice_plain(&format!("{what}: {part}"), stored, got, &plain, &want[i]);
            }
            assert_eq!(run(&device, dtype, case, &o, true), got, "{what}: split by split");
        }
    }
}

#[test]
fn the_gradient_has_the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        for case in &CASES {
            let o = Operands::random(case, DType::Bf16, 0.0);
            let first = run(&device, DType::Bf16, case, &o, false);
            executors::in_all_modes(&device, |mode| {
                assert!(run(&device, DType::Bf16, case, &o, false) == first, "{} on {mode}", case.name);
            });
        }
    }
}
