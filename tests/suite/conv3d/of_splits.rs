//! What the backward pass of a gram batch norm asks of a convolution: a filter gradient for each split, and the input's gradient from
//! two tensors side by side with a filter for each split.

use vcycle::device::{DType, Device, Slice};
use vcycle::ops::conv3d::reference::{self, Rounding};
use vcycle::ops::conv3d::{
    self, Beside, Conv3d, Direction, GradEpilogue, GradFilterLimits, GradFilterSources, GradNorm, Mask, Prologue,
};
use vcycle::shape::{ActivationShape, Part};

use super::fused::to_f32;
use super::typed::workspace;
use crate::compare::{as_f64, exact};
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, assert_twice_plain, garbage, read, read_tensor, slice, tensor};

struct Case {
    name: &'static str,
    input: [usize; 5],
    c_out: usize,
    splits: usize,
    gap: usize,
}

#[rustfmt::skip]
const CASES: [Case; 6] = [
    // a step of gemm_k that holds channels of both tensors; splits of 2, 2 and 1 clips
    Case { name: "ragged", input: [5, 2, 3, 5, 16], c_out: 40, splits: 3, gap: 8 },
    Case { name: "one_split", input: [2, 1, 5, 6, 8], c_out: 32, splits: 1, gap: 0 },
    // two columns of tiles, several tiles a split, whole steps of both tensors
    Case { name: "columns", input: [2, 2, 9, 9, 136], c_out: 64, splits: 2, gap: 0 },
    Case { name: "wide", input: [2, 1, 4, 5, 128], c_out: 72, splits: 2, gap: 0 },
    // gemm_k in slices
    Case { name: "slices", input: [1, 1, 3, 4, 64], c_out: 512, splits: 1, gap: 0 },
    // fewer clips than splits
    Case { name: "empty_splits", input: [3, 1, 4, 4, 24], c_out: 48, splits: 4, gap: 0 },
];

/// All operands, dense.
struct Operands {
    /// Before its batch norm and ReLU.
    raw: Vec<f32>,
    scale_shift: Vec<f32>,
    g: Vec<f32>,
    filter: Vec<f32>,
    shift: Vec<f32>,
    stats: Vec<f32>,
    gamma: Vec<f32>,
}

impl Case {
    fn shape(&self) -> ActivationShape {
        let [n, t, h, w, c] = self.input;
        ActivationShape::new(n, t, h, w, c)
    }

    fn op(&self) -> Conv3d {
        Conv3d {
            input: self.shape(),
            c_out: self.c_out,
            filter: [1; 3],
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            groups: 1,
            part: None,
        }
    }

    fn splits_used(&self) -> usize {
        Part::whole(self.input[0], self.splits).splits_of(self.input[0])
    }

    /// Positions of each split.
    fn rows(&self) -> Vec<std::ops::Range<usize>> {
        let of_clip = self.shape().num_positions() / self.input[0];
        let ranges = reference::splits_of(self.input[0], self.splits);
        ranges.into_iter().map(|clips| clips.start * of_clip..clips.end * of_clip).collect()
    }

    fn operands(&self, value: impl Fn(&str, usize) -> Vec<f32>) -> Operands {
        let (op, c) = (self.op(), self.input[4]);
        let norm = |what: &str, rows: usize| value(what, self.splits * rows * c);
        Operands {
            raw: value("raw", op.input.num_elements()),
            scale_shift: norm("scale_shift", 2),
            g: value("g", op.output().num_elements()),
            filter: value("filter", self.splits * (self.c_out + c) * c),
            shift: value("shift", self.splits * c),
            stats: norm("stats", 3).into_iter().map(|v| v.abs() + 1.0).collect(),
            gamma: value("gamma", c),
        }
    }

    fn integers(&self) -> Operands {
        self.operands(|what, n| {
            let all = fill::int(&format!("{}/{what}", self.name), n, 5);
            all.into_iter().map(|v| v as f32 - 2.0).collect()
        })
    }

    fn random(&self, dtype: DType) -> Operands {
        self.operands(|what, n| {
            let all = fill::f32(&format!("{}/{what}", self.name), n, 0.7, 0.1);
            all.into_iter().map(|v| stored::round(dtype, f64::from(v)) as f32).collect()
        })
    }

    fn normalised(&self, o: &Operands, rounding: Rounding) -> Vec<f64> {
        reference::normalised(self.shape(), self.splits, rounding, &as_f64(&o.raw), &as_f64(&o.scale_shift), None)
    }

    /// `[splits][c_out][c_in]` and `[splits][c_out]`.
    fn products(&self, o: &Operands, rounding: Rounding) -> [Vec<f64>; 2] {
        let (x, c, round) = (self.normalised(o, rounding), self.input[4], rounding.round);
        let (mut products, mut sums) = (vec![], vec![]);
        for rows in self.rows() {
            let (mut of_split, mut sum) = (vec![0.0; self.c_out * c], vec![0.0; self.c_out]);
            for row in rows {
                for k in 0..self.c_out {
                    let g = f64::from(o.g[row * self.c_out + k]);
                    sum[k] = round(sum[k] + g);
                    for i in 0..c {
                        of_split[k * c + i] = round(of_split[k * c + i] + g * x[row * c + i]);
                    }
                }
            }
            products.extend(of_split);
            sums.extend(sum);
        }
        [products, sums]
    }

    /// The sums, and what is stored of them where the ReLU was open.
    fn grad_input(&self, o: &Operands, rounding: Rounding) -> Vec<f64> {
        let (x, c, Rounding { round, store }) = (self.normalised(o, rounding), self.input[4], rounding);
        let mut dx = vec![];
        for (split, rows) in self.rows().into_iter().enumerate() {
            let filter = as_f64(&o.filter[split * (self.c_out + c) * c..][..(self.c_out + c) * c]);
            for row in rows {
                for i in 0..c {
                    let of_g = (0..self.c_out).map(|k| f64::from(o.g[row * self.c_out + k]) * filter[k * c + i]);
                    let of_x = (0..c).map(|k| x[row * c + k] * filter[(self.c_out + k) * c + i]);
                    let sum = of_g.chain(of_x).fold(0.0, |sum, term| round(sum + term));
                    dx.push(store(round(sum + f64::from(o.shift[split * c + i]))));
                }
            }
        }
        dx
    }

    /// The ReLU before the convolution, as f32 decides it.
    fn is_open(&self, o: &Operands, i: usize) -> bool {
        let (c, row) = (self.input[4], i / self.input[4]);
        let split = self.rows().iter().position(|rows| rows.contains(&row)).unwrap();
        let at = |r: usize| o.scale_shift[(split * 2 + r) * c + i % c];
        at(0).mul_add(o.raw[i], at(1)) > 0.0
    }
}

/// `[products, sums of g]`, in the order of the parts of which the batch is made.
fn run_products(device: &Device, dtype: DType, case: &Case, o: &Operands, cut: &[usize]) -> [Vec<f32>; 2] {
    let (stream, c) = (device.stream().unwrap(), case.input[4]);
    let mut results = [vec![], vec![]];
    for_each_part(case, cut, |op, clips, splits| {
        let (raw, g) = (part_of(&o.raw, case, &clips), part_of(&o.g, case, &clips));
        let tables = splits.start * 2 * c..splits.end * 2 * c;
        let table = slice(device, DType::F32, &o.scale_shift[tables]);
        let input = match device {
            Device::Cpu => {
                let x: Vec<f32> =
                    case.normalised(o, Rounding { round: to_f32, store: to_f32 }).iter().map(|v| *v as f32).collect();
                tensor(device, dtype, op.input, &part_of(&x, case, &clips), [0, case.gap])
            }
            _ => tensor(device, dtype, op.input, &raw, [0, case.gap]),
        };
        let prologue =
            (*device != Device::Cpu).then_some(Prologue { scale_shift: &table, splits: splits.len(), join: None });
        let grad_output = tensor(device, dtype, op.output(), &g, [0, case.gap]);
        let from =
            GradFilterSources { input: &input, prologue, grad_output: &grad_output, grad_table: None, pool: None };
        let filled = op.part.map_or(case.splits_used(), |part| part.splits_of(clips.len()));
        let lens = [op.filter_len(), case.c_out];
        let to = lens.map(|len| garbage(device, DType::F32, splits.len() * len));
        let scratch = workspace(device, conv3d::workspace_bytes_of_splits(&stream, &op, splits.len()));
        conv3d::grad_filter_of_splits(&stream, &op, &from, splits.len(), &to[0], Some(&to[1]), &scratch).unwrap();
        // Rows of splits without clips are left alone.
        for (i, all) in results.iter_mut().enumerate() {
            let (of_part, known) = (read(&to[i]), filled * lens[i]);
            assert!(of_part[known..].iter().all(|v| v.is_nan()), "{}: a row too many", case.name);
            all.extend_from_slice(&of_part[..known]);
        }
    });
    results
}

/// Calls `run` with the convolution of each part, its clips and its splits; the last part has the tables of splits without clips.
fn for_each_part(
    case: &Case,
    cut: &[usize],
    mut run: impl FnMut(Conv3d, std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let whole = Part::whole(case.input[0], case.splits);
    let mut first = 0;
    for (i, &splits) in cut.iter().enumerate() {
        let clips = first * whole.clips_per_split()..((first + splits) * whole.clips_per_split()).min(case.input[0]);
        let part = (cut.len() > 1).then_some(Part { first_clip: clips.start, ..whole });
        let op = Conv3d { input: ActivationShape { n: clips.len(), ..case.shape() }, part, ..case.op() };
        let end = if i + 1 == cut.len() { case.splits } else { first + splits };
        run(op, clips, first..end);
        first += splits;
    }
}

fn part_of(all: &[f32], case: &Case, clips: &std::ops::Range<usize>) -> Vec<f32> {
    let of_clip = all.len() / case.input[0];
    all[clips.start * of_clip..clips.end * of_clip].to_vec()
}

/// dx, and the table, dgamma and dbeta of the batch norm before it.
fn run_beside(
    device: &Device,
    dtype: DType,
    case: &Case,
    o: &Operands,
    has_epilogue: bool,
) -> (Vec<f32>, [Vec<f32>; 3]) {
    let (stream, op, c) = (device.stream().unwrap(), case.op(), case.input[4]);
    let table = slice(device, DType::F32, &o.scale_shift);
    let raw = tensor(device, dtype, op.input, &o.raw, [0, case.gap]);
    let normalised: Vec<f32> =
        case.normalised(o, Rounding { round: to_f32, store: to_f32 }).iter().map(|v| *v as f32).collect();
    let normalised = tensor(device, dtype, op.input, &normalised, [0, case.gap]);
    let is_cpu = *device == Device::Cpu;
    let g = tensor(device, dtype, op.output(), &o.g, [0, case.gap]);
    let (filter, shift) = (slice(device, dtype, &o.filter), slice(device, DType::F32, &o.shift));
    let from = Beside {
        grad_output: &g,
        input: if is_cpu { &normalised } else { &raw },
        prologue: (!is_cpu).then_some(Prologue { scale_shift: &table, splits: case.splits, join: None }),
        filter: &filter,
        shift: &shift,
        splits: case.splits,
    };
    let [stats, gamma] = [&o.stats, &o.gamma].map(|values| slice(device, DType::F32, values));
    let to: [Slice; 3] = [case.splits * 3 * c, c, c].map(|len| garbage(device, DType::F32, len));
    let norm =
        GradNorm { y: &raw, stats: &stats, gamma: &gamma, grad_table: &to[0], grad_gamma: &to[1], grad_beta: &to[2] };
    let epilogue = GradEpilogue {
        mask: Mask::Recomputed { scale_shift: &table, y: &raw },
        splits: case.splits,
        norms: &[norm],
        add: None,
    };
    let epilogue = if has_epilogue { epilogue } else { GradEpilogue::default() };
    let nan = vec![f32::NAN; o.raw.len()];
    let dx = tensor(device, dtype, op.input, &nan, [0, case.gap]);
    let bytes = conv3d::workspace_bytes_fused(&stream, &Beside::convolution(&op), Direction::GradInput, case.splits);
    let scratch = workspace(device, bytes);
    conv3d::grad_input_beside(&stream, &op, &from, &epilogue, &dx, &scratch).unwrap();
    let tickets = scratch.read::<u8>().unwrap();
    assert!(tickets.iter().take(vcycle::ops::TICKET_BYTES).all(|b| *b == 0), "{}: tickets are left behind", case.name);
    (read_tensor(&dx, [0, case.gap]), to.each_ref().map(read))
}

/// The executors, with the types that they store activations as.
fn executors_and_types() -> Vec<(Device, DType)> {
    let kernels = executors::with_kernels().into_iter().flat_map(|d| stored::SHORT.map(|dtype| (d.clone(), dtype)));
    kernels.chain([(Device::Cpu, DType::F32)]).collect()
}

fn roundings(dtype: DType) -> [Rounding; 2] {
    [Rounding::EXACT, Rounding { round: to_f32, store: stored::rounding(dtype) }]
}

#[test]
fn each_split_has_its_filter_gradient() {
    for (device, dtype) in executors_and_types() {
        for case in &CASES {
            let what = format!("{} {dtype:?} on {device}", case.name);
            let whole = [case.splits_used()];
            let o = case.integers();
            let want = case.products(&o, Rounding::EXACT);
            let got = run_products(&device, dtype, case, &o, &whole);
            assert_eq!(got.each_ref().map(|v| as_f64(v)), want, "{what}");
            let o = case.random(dtype);
            let got = run_products(&device, dtype, case, &o, &whole);
            let [want, plain] = roundings(dtype).map(|r| case.products(&o, r));
            for (i, part) in ["products", "sums"].into_iter().enumerate() {
                assert_twice_plain(&format!("{what}: {part}"), DType::F32, &got[i], &plain[i], &want[i]);
            }
            assert_eq!(
                run_products(&device, dtype, case, &o, &vec![1; case.splits_used()]),
                got,
                "{what}: split by split"
            );
        }
    }
}

#[test]
fn every_variant_makes_the_filter_gradients_of_splits() {
    let case = &CASES[0];
    let o = case.integers();
    let want = case.products(&o, Rounding::EXACT);
    for device in executors::with_kernels() {
        for (variant, num_sms, max_rows) in [(0, 64, 32), (1, 64, 16), (2, 2, 512)] {
            let limits =
                GradFilterLimits { variant: Some(variant), max_rows, ..GradFilterLimits::of(num_sms, 99 << 10) };
            let got = conv3d::with_grad_filter_limits(limits, || run_products(&device, DType::Bf16, case, &o, &[3]));
            assert_eq!(got.each_ref().map(|v| as_f64(v)), want, "variant {variant} on {device}");
        }
    }
}

#[test]
fn the_gradient_of_two_tensors_side_by_side() {
    for (device, dtype) in executors_and_types() {
        for case in &CASES {
            let what = format!("{} {dtype:?} on {device}", case.name);
            let o = case.integers();
            let want = case.grad_input(&o, Rounding { round: exact, store: stored::rounding(dtype) });
            assert_eq!(as_f64(&run_beside(&device, dtype, case, &o, false).0), want, "{what}");
            let o = case.random(dtype);
            let [want, plain] = roundings(dtype).map(|r| case.grad_input(&o, r));
            let (got, _) = run_beside(&device, dtype, case, &o, false);
            assert_twice_plain(&what, dtype, &got, &plain, &want);
        }
    }
}

#[test]
fn its_epilogue_serves_the_batch_norm_before_it() {
    for device in executors::with_kernels() {
        for case in &CASES {
            let (what, o) = (format!("{} on {device}", case.name), case.random(DType::Bf16));
            let (bare, _) = run_beside(&device, DType::Bf16, case, &o, false);
            let (got, tables) = run_beside(&device, DType::Bf16, case, &o, true);
            let want: Vec<f32> = (0..bare.len()).map(|i| if case.is_open(&o, i) { bare[i] } else { 0.0 }).collect();
            assert_eq!(got, want, "{what}: masked");
            let [got, raw, stats, gamma] = [&got, &o.raw, &o.stats, &o.gamma].map(|v| as_f64(v));
            let [want, plain] = [exact, to_f32]
                .map(|round| reference::grad_tables(case.shape(), case.splits, round, &got, &raw, &stats, &gamma));
            let known = case.splits_used() * 3 * case.input[4];
            for (i, (plain, want)) in
                [(plain.table, want.table), (plain.dgamma, want.dgamma), (plain.dbeta, want.dbeta)]
                    .into_iter()
                    .enumerate()
            {
                let len = if i == 0 { known } else { want.len() };
                assert_twice_plain(&format!("{what}: {i}"), DType::F32, &tables[i][..len], &plain[..len], &want[..len]);
            }
        }
    }
}

#[test]
fn the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        for case in [&CASES[0], &CASES[4]] {
            let o = case.random(DType::Bf16);
            let run = || {
                let products = run_products(&device, DType::Bf16, case, &o, &[case.splits_used()]);
                format!("{products:?} {:?}", run_beside(&device, DType::Bf16, case, &o, true))
            };
            let first = run();
            executors::in_all_modes(&device, |mode| assert!(run() == first, "{} on {mode}", case.name));
        }
    }
}

#[test]
fn wrong_input_is_refused() {
    let device = Device::Cpu;
    let (stream, case) = (device.stream().unwrap(), &CASES[0]);
    let o = case.integers();
    let op = case.op();
    let x = tensor(&device, DType::F32, op.input, &o.raw, [0, 0]);
    let g = tensor(&device, DType::F32, op.output(), &o.g, [0, 0]);
    let from = GradFilterSources { input: &x, prologue: None, grad_output: &g, grad_table: None, pool: None };
    let scratch = workspace(&device, conv3d::workspace_bytes_of_splits(&stream, &op, 3));
    let short = garbage(&device, DType::F32, op.filter_len());
    let refused = |op: &Conv3d, splits: usize| {
        conv3d::grad_filter_of_splits(&stream, op, &from, splits, &short, None, &scratch).unwrap_err().to_string()
    };
    let expected = format!("grad_filter must have {} elements", 3 * op.filter_len());
    assert!(refused(&op, 3).contains(&expected), "{}", refused(&op, 3));
    assert!(refused(&op, 0).contains("splits must be at least 1"), "{}", refused(&op, 0));
    let grouped = Conv3d { groups: 2, ..op };
    assert!(refused(&grouped, 3).contains("got 2 groups"), "{}", refused(&grouped, 3));

    let (filter, shift) = (slice(&device, DType::F32, &o.filter), slice(&device, DType::F32, &o.shift));
    let beside = Beside { grad_output: &g, input: &x, prologue: None, filter: &filter, shift: &shift, splits: 3 };
    let refused = |op: &Conv3d, from: &Beside<'_>| {
        conv3d::grad_input_beside(&stream, op, from, &GradEpilogue::default(), &x, &scratch).unwrap_err().to_string()
    };
    let strided = Conv3d { stride: [1, 2, 2], ..op };
    assert!(refused(&strided, &beside).contains("1x1x1 of unit stride"), "{}", refused(&strided, &beside));
    let fewer = Beside { splits: 2, ..beside };
    assert!(refused(&op, &fewer).contains("filter must have"), "{}", refused(&op, &fewer));
}
