//! grad_filter on the executors that run kernels: the cases of conv3d.toml as they are, and its `[[grad_filter]]` rows with
//! what is fused on load.

use serde::Deserialize;
use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::conv3d::reference::{self, Rounding};
use vcycle::ops::conv3d::{
    self, Conv3d, Direction, GradFilterLimits, GradFilterSources, GradPool, GradTable, Join, Prologue,
};
use vcycle::shape::ActivationShape;

use super::grad_filter_pool::pool_behind;
use super::typed::{Half, assert_exact, assert_near, floats, held, read_floats};
use super::{Case, cases, golden_case};
use crate::executors::{self, in_all_modes};
use crate::golden::{self, fill};

#[derive(Deserialize)]
struct FusedCases {
    grad_filter: Vec<FusedCase>,
}

/// A convolution, and what happens to its operands on load.
#[derive(Deserialize)]
struct FusedCase {
    #[serde(flatten)]
    case: Case,
    #[serde(default = "one_split")]
    splits: usize,
    #[serde(default)]
    input_form: InputForm,
    #[serde(default)]
    batch_norm_gradient: bool,
}

fn one_split() -> usize {
    1
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum InputForm {
    #[default]
    Plain,
    Affine,
    Join,
    JoinNormalised,
}

fn fused_cases() -> Vec<FusedCase> {
    toml::from_str::<FusedCases>(&executors::cases("conv3d")).expect("tests/cases/conv3d.toml").grad_filter
}

fn plain(case: Case) -> FusedCase {
    FusedCase { case, splits: 1, input_form: InputForm::Plain, batch_norm_gradient: false }
}

/// All rows: the plain ones first.
fn all_cases() -> Vec<FusedCase> {
    cases().into_iter().map(plain).chain(fused_cases()).collect()
}

/// Operands as they are stored, and tables in f32.
struct Data {
    x: Vec<f64>,
    residual: Vec<f64>,
    g: Vec<f64>,
    y: Vec<f64>,
    scale_shift: Vec<f64>,
    residual_scale_shift: Vec<f64>,
    table: Vec<f64>,
}

impl Data {
    /// Whole numbers so small that every sum is exact.
    fn integers(f: &FusedCase) -> Data {
        Data::new(f, |what, n| {
            let (least, count) = if what == "tables" { (-1.0, 3) } else { (-3.0, 7) };
            let name = format!("{}/{what}", f.case.name);
            fill::int(&name, n, count).into_iter().map(|v| v as f64 + least).collect()
        })
    }

    /// Values in [-1, 1), rounded to `T`. What a batch norm reads lies around `mean`, and the tables bring it back.
    fn random<T: Half>(f: &FusedCase, mean: f64) -> Data {
        let is_moved = |what: &str| match what {
            "x" | "residual" => f.input_form != InputForm::Plain,
            _ => what == "y",
        };
        let mut data = Data::new(f, |what, n| {
            let offset = if is_moved(what) { mean } else { 0.0 };
            let values = fill::f32(&format!("{}/{what}", f.case.name), n, 1.0, offset);
            let stored = |v: f32| if what == "tables" { f64::from(v) } else { T::store(f64::from(v)) };
            values.into_iter().map(stored).collect()
        });
        let recentre = |table: &mut [f64], rows: usize| {
            let c = table.len() / f.splits / rows;
            for split in table.chunks_mut(rows * c) {
                let (factors, shift) = split.split_at_mut((rows - 1) * c);
                let factor = &factors[(rows - 2) * c..];
                shift.iter_mut().zip(factor).for_each(|(shift, by)| *shift = f64::from((*shift - mean * by) as f32));
            }
        };
        recentre(&mut data.scale_shift, 2);
        recentre(&mut data.residual_scale_shift, 2);
        recentre(&mut data.table, 3);
        data
    }

    fn new(f: &FusedCase, value: impl Fn(&str, usize) -> Vec<f64>) -> Data {
        let op = f.case.op();
        let (input, output) = (op.input.num_elements(), op.output().num_elements());
        let mut tables = value("tables", f.splits * (4 * op.input.c + 3 * op.c_out)).into_iter();
        let mut table = |len: usize| tables.by_ref().take(len).collect();
        Data {
            x: value("x", input),
            residual: value("residual", input),
            g: value("g", output),
            y: value("y", output),
            scale_shift: table(f.splits * 2 * op.input.c),
            residual_scale_shift: table(f.splits * 2 * op.input.c),
            table: table(f.splits * 3 * op.c_out),
        }
    }

    /// The two operands of the sum.
    fn operands(&self, f: &FusedCase, rounding: Rounding) -> [Vec<f64>; 2] {
        let op = f.case.op();
        let residual = match f.input_form {
            InputForm::Plain | InputForm::Affine => None,
            InputForm::Join => Some((&self.residual[..], None)),
            InputForm::JoinNormalised => Some((&self.residual[..], Some(&self.residual_scale_shift[..]))),
        };
        let x = match f.input_form {
            InputForm::Plain => self.x.clone(),
            _ => reference::normalised(op.input, f.splits, rounding, &self.x, &self.scale_shift, residual),
        };
        let dy = match f.batch_norm_gradient {
            false => self.g.clone(),
            true => reference::grad_of_table(op.output(), f.splits, rounding, &self.g, &self.y, &self.table),
        };
        [x, dy]
    }
}

/// The filter's gradient, behind it the bias' where the case has one.
fn run<T: Half>(device: &Device, f: &FusedCase, data: &Data) -> Vec<f64> {
    let (op, case) = (f.case.op(), &f.case);
    let stream = device.stream().expect("stream");
    let input = |values: &[f64]| held::<T>(device, op.input, values, case.input_pitch).tensor;
    let output = |values: &[f64]| held::<T>(device, op.output(), values, case.output_pitch).tensor;
    let (x, residual, g, y) = (input(&data.x), input(&data.residual), output(&data.g), output(&data.y));
    let [scale_shift, residual_scale_shift, table] =
        [&data.scale_shift, &data.residual_scale_shift, &data.table].map(|t| floats(device, t));
    let join = Join {
        residual: &residual,
        residual_scale_shift: (f.input_form == InputForm::JoinNormalised).then_some(&residual_scale_shift),
        output: None,
    };
    let is_join = matches!(f.input_form, InputForm::Join | InputForm::JoinNormalised);
    let prologue = Prologue { scale_shift: &scale_shift, splits: f.splits, join: is_join.then_some(join) };
    let grad_table = GradTable { table: &table, y: &y, splits: f.splits, store_dy: None };
    let from = GradFilterSources {
        input: &x,
        prologue: (f.input_form != InputForm::Plain).then_some(prologue),
        grad_output: &g,
        grad_table: f.batch_norm_gradient.then_some(grad_table),
        pool: None,
    };
    let overwritten = |n: usize| floats(device, &vec![3.0; n]);
    let (dw, db) = (overwritten(op.filter_len()), case.bias.then(|| overwritten(op.c_out)));
    let bytes = conv3d::workspace_bytes_fused(&stream, &op, Direction::GradFilter, f.splits);
    let scratch = Buffer::from_host(device, &vec![0xabu8; bytes]).expect("workspace");
    conv3d::grad_filter_fused(&stream, &op, &from, &dw, db.as_ref(), &scratch)
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let tickets = scratch.part(0, vcycle::ops::TICKET_BYTES).and_then(|t| t.read::<u8>()).expect("tickets");
    assert!(tickets.iter().all(|&b| b == 0xab), "{}: other ops' tickets were written", case.name);
    [Some(dw), db].iter().flatten().flat_map(read_floats).collect()
}

/// One product after another in the reference's order, each sum through `round`.
fn sums(f: &FusedCase, [x, dy]: &[Vec<f64>; 2], round: fn(f64) -> f64) -> Vec<f64> {
    let op = f.case.op();
    let mut dw = vec![0.0; op.filter_len()];
    reference::for_each_term(&op, |t| dw[t.w] = round(dw[t.w] + dy[t.y] * x[t.x]));
    if f.case.bias {
        let mut db = vec![0.0; op.c_out];
        dy.chunks(op.c_out).for_each(|p| db.iter_mut().zip(p).for_each(|(b, v)| *b = round(*b + v)));
        dw.extend(db);
    }
    dw
}

fn check_exact<T: Half>(device: &Device, f: &FusedCase, mode: &str) {
    let data = Data::integers(f);
    let want = sums(f, &data.operands(f, Rounding::EXACT), |v| v);
    let what = format!("{} {} on {mode} ({:?})", f.case.name, T::NAME, f.case.op());
    assert_exact(&what, &run::<T>(device, f, &data), &want);
}

#[test]
fn small_integers_are_exact() {
    for device in executors::with_kernels() {
        for f in all_cases() {
            check_exact::<half::bf16>(&device, &f, "default");
            check_exact::<half::f16>(&device, &f, "default");
        }
    }
}

/// Every variant, with one part and with many, with small tiles and with large ones.
#[test]
fn small_integers_are_exact_with_every_variant() {
    for device in executors::with_kernels() {
        for f in all_cases() {
            for variant in 0..3 {
                for (num_sms, max_rows, shifts_grad) in
                    [(1, 16, None), (5, 48, Some(true)), (64, 16, Some(true)), (64, 16, Some(false))]
                {
                    let limits = GradFilterLimits {
                        max_rows,
                        variant: Some(variant),
                        shifts_grad,
                        ..GradFilterLimits::of(num_sms, 99 << 10)
                    };
                    conv3d::with_grad_filter_limits(limits, || {
                        check_exact::<half::bf16>(&device, &f, &format!("{limits:?}"));
                    });
                }
            }
        }
    }
}

#[test]
fn small_integers_are_exact_in_all_modes() {
    for device in executors::with_kernels() {
        for f in fused_cases() {
            let limits = GradFilterLimits { max_rows: 32, ..GradFilterLimits::of(2, 99 << 10) };
            conv3d::with_grad_filter_limits(limits, || {
                in_all_modes(&device, |mode| check_exact::<half::f16>(&device, &f, mode));
            });
        }
    }
}

fn check_near<T: Half>(device: &Device, f: &FusedCase, mean: f64) {
    let to_f32 = |v: f64| f64::from(v as f32);
    let data = Data::random::<T>(f, mean);
    let want = sums(f, &data.operands(f, Rounding::EXACT), |v| v);
    let plain = sums(f, &data.operands(f, Rounding { round: to_f32, store: T::store }), to_f32);
    let got = run::<T>(device, f, &data);
    let what = format!("{} {} mean {mean} on {device} ({:?})", f.case.name, T::NAME, f.case.op());
    assert_near(&what, &got, &plain, &want, f64::from(f32::EPSILON) / 2.0);
    assert_eq!(got, run::<T>(device, f, &data), "{what}: two runs differ");
}

#[test]
fn random_values_are_as_near_as_plain_arithmetic() {
    for device in executors::with_kernels() {
        for f in all_cases() {
            check_near::<half::bf16>(&device, &f, 0.0);
            check_near::<half::f16>(&device, &f, 0.0);
        }
    }
}

/// Values whose mean is a hundred times their deviation, which the tables undo.
#[test]
fn a_large_mean_costs_no_digits() {
    for device in executors::with_kernels() {
        for f in fused_cases() {
            check_near::<half::bf16>(&device, &f, 58.0);
            check_near::<half::f16>(&device, &f, 58.0);
        }
    }
}

/// NaN and infinity show in every gradient that they are a part of.
#[test]
fn what_is_not_finite_is_not_hidden() {
    for device in executors::with_kernels() {
        for f in fused_cases() {
            for bad in [f64::NAN, f64::INFINITY] {
                let mut data = Data::random::<half::bf16>(&f, 0.0);
                let (len, c) = (data.g.len(), f.case.c_out);
                data.g[len / 2] = bad;
                let got = run::<half::bf16>(&device, &f, &data);
                let want = sums(&f, &data.operands(&f, Rounding::EXACT), |v| v);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let name = &f.case.name;
                    assert!(want.is_finite() || !got.is_finite(), "{name}: element {i} of {c}: {got}, want {want}");
                }
            }
        }
    }
}

/// In f16 and bf16 the golden filter gradients are met as the rounded operands allow.
#[test]
fn golden_conv3d_grad_filter_on_kernels() {
    let Some(golden) = golden::open("ops/conv3d.json") else { return };
    let mut num_cases = 0;
    for device in executors::with_kernels() {
        for case in golden.json.as_array().expect("a list of cases") {
            let (mut row, operands, [_, w_shape, _]) = golden_case(case);
            row.bias = false;
            // The emulator needs a second for some ten million products.
            if device == Device::Simt && row.op().macs() > 30_000_000 {
                continue;
            }
            let f = plain(row);
            let mut data = Data::new(&f, |_, _| vec![]);
            let stored = |v: Vec<f32>| v.into_iter().map(|v| half::f16::store(f64::from(v))).collect();
            data.x = stored(operands.x);
            data.g = stored(operands.dy);
            let op = f.case.op();
            let rows: Vec<f32> = run::<half::f16>(&device, &f, &data).into_iter().map(|v| v as f32).collect();
            let rounded: Vec<f32> = sums(&f, &[data.x, data.g], |v| v).into_iter().map(|v| v as f32).collect();
            let differs =
                |dw: &[f32]| golden.compare(&case["outputs"]["dw"], &golden::channels_first(&w_shape, dw)).rel_l2;
            let (got, allowed) = (differs(&rows), 2.0 * differs(&rounded));
            let name = &f.case.name;
            assert!(got <= allowed, "{name} on {device}: rel l2 {got:.3e} > {allowed:.3e} ({op:?})");
            num_cases += 1;
        }
    }
    if num_cases > 0 {
        golden::passed("conv3d grad_filter on kernels", num_cases);
    }
}

/// The mappings of kernels/conv3d/grad_filter_mapping.cuh, as the host compiles them.
#[cfg(feature = "simt")]
#[test]
fn mappings_have_inverses_and_hold_large_offsets() {
    use vcycle::device::{LaunchConfig, launch};
    let stream = Device::Simt.stream().expect("stream");
    let output = Buffer::from_host(&Device::Simt, &[0u32; 2]).expect("output");
    let config = LaunchConfig { grid: [1; 3], block: [1; 3], shared_bytes: 0 };
    let address = output.address();
    // SAFETY: the kernel writes two u32 to the address that it is given, of a buffer that outlives it.
    unsafe {
        launch::launch(&stream, "test", "grad_filter_mapping", config, &[bytemuck::bytes_of(&address)])
            .expect("launch");
    }
    let [checks, first_wrong_line] = <[u32; 2]>::try_from(output.read::<u32>().expect("read")).expect("two");
    assert_eq!(first_wrong_line, 0, "kernels/simt/tests/grad_filter_mapping.cu, line {first_wrong_line}");
    assert!(checks > 10_000, "only {checks} checks");
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let f = fused_cases().into_iter().find(|f| f.case.name == "fused_pointwise").expect("case");
    let op: Conv3d = f.case.op();
    for device in executors::with_kernels() {
        let stream = device.stream().expect("stream");
        let tensor = |shape: ActivationShape, dtype| Tensor::zeroed(&device, dtype, shape).expect("tensor");
        let (x, g) = (tensor(op.input, DType::Bf16), tensor(op.output(), DType::Bf16));
        let (dw, scratch) = (floats(&device, &vec![0.0; op.filter_len()]), floats(&device, &vec![0.0; 1 << 20]));
        let table = floats(&device, &vec![0.0; 3 * 3 * op.c_out]);
        let scale_shift = floats(&device, &vec![0.0; 3 * 2 * op.input.c]);
        let prologue = Prologue { scale_shift: &scale_shift, splits: 3, join: None };
        let grad_table = GradTable { table: &table, y: &g, splits: 3, store_dy: None };
        let (prologue, grad_table) = (Some(prologue), Some(grad_table));
        let good = GradFilterSources { input: &x, prologue, grad_output: &g, grad_table, pool: None };
        let run = |from: &GradFilterSources<'_>, dw: &Slice, scratch: &Slice| {
            conv3d::grad_filter_fused(&stream, &op, from, dw, None, scratch)
        };
        run(&good, &dw, &scratch).expect("good operands");
        let refused = |result: vcycle::Result<()>, words: &[&str]| {
            let message = result.expect_err(words[0]).to_string();
            words.iter().for_each(|word| assert!(message.contains(word), "{word}: {message}"));
        };
        let (wide, half) = (tensor(op.input, DType::F32), tensor(op.input, DType::F16));
        refused(run(&GradFilterSources { input: &wide, ..good }, &dw, &scratch), &["conv3d grad_filter", "F32"]);
        refused(run(&GradFilterSources { input: &half, ..good }, &dw, &scratch), &["grad_output must be F16", "Bf16"]);
        refused(run(&GradFilterSources { input: &g, ..good }, &dw, &scratch), &["input must be [5,2,7,5,24]"]);
        let other = grad_table.map(|table| GradTable { splits: 2, ..table });
        refused(run(&GradFilterSources { grad_table: other, ..good }, &dw, &scratch), &["grad_table.table"]);
        let indices = Buffer::from_host(&device, &vec![0u8; op.output().num_elements()]).expect("indices");
        let pool = pool_behind(&op, [3, 3], [2, 2]);
        let pool = Some(GradPool { op: pool, indices: &indices, scale_shift: &table });
        refused(run(&GradFilterSources { pool, ..good }, &dw, &scratch), &["no such pool behind this convolution"]);
        refused(run(&good, &scratch, &dw), &["grad_filter must have"]);
        refused(run(&good, &dw, &dw), &["workspace must have", "got 3840"]);
        let inside = scratch.part(0, op.filter_len()).expect("part");
        refused(run(&good, &inside, &scratch), &["overlap"]);
    }
}
