//! The kernels' products: 16-bit operands, outputs in 16 bits and f32, with and without splits.

use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::linear;
use vcycle::shape::ActivationShape;

use super::{Case, Operands, Results, cases, expected};
use crate::compare::to_f32;
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, SHORT};

/// The operands as `dtype` stores them.
fn stored_operands(case: &Case, dtype: DType) -> Operands {
    let all = Operands::random(case);
    let short = |values: Vec<f32>| values.into_iter().map(|v| stored::round(dtype, f64::from(v)) as f32).collect();
    Operands { x: short(all.x), w: short(all.w), bias: all.bias, dy: short(all.dy) }
}

fn workspace(device: &Device, case: &Case) -> Slice {
    let bytes = linear::workspace_bytes(device, case.positions, case.c_in, case.c_out);
    Buffer::zeroed(device, bytes).unwrap().slice::<f32>(0, bytes / 4).unwrap()
}

/// y, dx, dw, db; dense.
fn run(
    device: &Device,
    case: &Case,
    o: &Operands,
    dtype: DType,
    y_dtype: DType,
    workspace: Option<&Slice>,
) -> Results<f32> {
    let stream = device.stream().unwrap();
    let shape = |c| ActivationShape::new(case.positions, 1, 1, 1, c);
    let (gaps_x, gaps_y) = ([0, case.input_pitch], [0, case.output_pitch]);
    let tensor = |dtype, c, values: &[f32], gaps| stored::tensor(device, dtype, shape(c), values, gaps);
    let x = tensor(dtype, case.c_in, &o.x, gaps_x);
    let y = tensor(y_dtype, case.c_out, &vec![f32::NAN; o.dy.len()], gaps_y);
    let dy = tensor(dtype, case.c_out, &o.dy, gaps_y);
    let dx = tensor(dtype, case.c_in, &vec![f32::NAN; o.x.len()], gaps_x);
    let w = stored::slice(device, dtype, &o.w);
    let dw = stored::garbage(device, DType::F32, o.w.len());
    let bias = o.bias.as_ref().map(|b| stored::slice(device, DType::F32, b));
    let db = o.bias.as_ref().map(|b| stored::garbage(device, DType::F32, b.len()));
    match workspace {
        None => {
            linear::forward(&stream, &x, &w, bias.as_ref(), &y).unwrap();
            linear::backward(&stream, &x, &w, &dy, &dx, &dw, db.as_ref()).unwrap();
        }
        Some(scratch) => {
            linear::forward_with(&stream, None, &x, &w, bias.as_ref(), &y, scratch).unwrap();
            linear::backward_with(&stream, None, &x, &w, &dy, &dx, &dw, db.as_ref(), scratch).unwrap();
        }
    }
    let db = db.map_or(vec![], |db| stored::read(&db));
    [stored::read_tensor(&y, gaps_y), stored::read_tensor(&dx, gaps_x), stored::read(&dw), db]
}

fn small_cases() -> Vec<Case> {
    cases().into_iter().filter(|case| !case.is_bench).collect()
}

#[test]
fn small_integers_are_exact_on_every_executor() {
    for device in executors::with_kernels() {
        for case in small_cases() {
            let operands = Operands::new(&case, |what, n| {
                fill::int(&format!("{}/{what}", case.name), n, 9).into_iter().map(|v| v as f32 - 4.0).collect()
            });
            let scratch = workspace(&device, &case);
            for dtype in SHORT {
                for (y_dtype, scratch) in [(DType::F32, Some(&scratch)), (dtype, None)] {
                    let types = [y_dtype, dtype, DType::F32, DType::F32];
                    let got = run(&device, &case, &operands, dtype, y_dtype, scratch);
                    for (i, (want, got)) in expected(&case, &operands).iter().zip(&got).enumerate() {
                        // The sum is exact, and rounded once.
                        let want: Vec<f32> = want.iter().map(|v| stored::round(types[i], *v) as f32).collect();
                        assert!(&want == got, "{device} {} {types:?}: result {i} of y, dx, dw, db", case.name);
                    }
                }
            }
        }
    }
}

#[test]
fn cases_agree_with_the_reference_on_every_executor() {
    for device in executors::with_kernels() {
        for case in small_cases() {
            for dtype in SHORT {
                let operands = stored_operands(&case, dtype);
                let (want, plain) = (expected(&case, &operands), super::plain_f32(&case, &operands));
                let test = |mode: &str| {
                    let scratch = workspace(&device, &case);
                    for (y_dtype, scratch) in [(DType::F32, Some(&scratch)), (dtype, None)] {
                        let types = [y_dtype, dtype, DType::F32, DType::F32];
                        let got = run(&device, &case, &operands, dtype, y_dtype, scratch);
                        for (i, got) in got.iter().enumerate() {
                            let plain: Vec<f64> = plain[i].iter().map(|v| to_f32(f64::from(*v))).collect();
                            let what = format!("{mode} {} result {i} of y, dx, dw, db", case.name);
                            stored::assert_twice_plain(&what, types[i], got, &plain, &want[i]);
                        }
                        assert!(
                            got == run(&device, &case, &operands, dtype, y_dtype, scratch),
                            "{mode}: two runs differ"
                        );
                    }
                };
                // The smaller ones in all orders of threads and copies.
                let is_small = case.positions * case.c_in * case.c_out < 30_000;
                if is_small { executors::in_all_modes(&device, test) } else { test(&device.to_string()) }
            }
        }
    }
}

/// Several layers may share one workspace: its tickets are zero again after each.
#[test]
fn one_workspace_serves_all_layers() {
    for device in executors::with_kernels() {
        let is_split = |case: &Case| !workspace(&device, case).is_empty();
        let all: Vec<Case> = small_cases().into_iter().filter(is_split).collect();
        assert!(all.len() >= 2);
        let scratch = all.iter().map(|case| workspace(&device, case)).max_by_key(Slice::len).unwrap();
        for case in all.iter().chain(all.iter().rev()) {
            let operands = stored_operands(case, DType::Bf16);
            let alone = run(&device, case, &operands, DType::Bf16, DType::F32, Some(&workspace(&device, case)));
            let shared = run(&device, case, &operands, DType::Bf16, DType::F32, Some(&scratch));
            assert!(alone == shared, "{device} {}", case.name);
        }
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    for device in executors::with_kernels() {
        let case = small_cases().into_iter().find(|case| case.name == "tails").unwrap();
        let mut operands = stored_operands(&case, DType::F16);
        operands.x[case.c_in] = f32::NAN;
        let [y, ..] = run(&device, &case, &operands, DType::F16, DType::F32, None);
        for (p, row) in y.chunks(case.c_out).enumerate() {
            assert!(row.iter().all(|v| v.is_nan() == (p == 1)), "{device}: position {p}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_everywhere() {
    for device in executors::with_kernels() {
        let stream = device.stream().unwrap();
        let tensor = |c, dtype| -> Tensor {
            stored::tensor(&device, dtype, ActivationShape::new(2, 1, 1, 1, c), &vec![0.0; 2 * c], [0, 0])
        };
        let slice = |len, dtype| stored::slice(&device, dtype, &vec![0.0; len]);
        let refused = |x: &Tensor, w: &Slice, y: &Tensor, words: &str| {
            let error = linear::forward(&stream, x, w, None, y).unwrap_err().to_string();
            assert!(error.contains(words), "{device}: {error}");
        };
        let (x, w, y) = (tensor(512, DType::F16), slice(512 * 4, DType::F16), tensor(4, DType::F32));
        refused(&tensor(512, DType::F32), &w, &y, "input and weight must be Bf16 or F16, got F32");
        refused(&x, &slice(512 * 4, DType::Bf16), &y, "input and weight must have one type, got F16 and Bf16");
        refused(&x, &w, &tensor(4, DType::Bf16), "output must hold F16 (with kernels also F32), got Bf16");
        let error =
            linear::forward_with(&stream, None, &x, &w, None, &y, &slice(100, DType::F32)).unwrap_err().to_string();
        assert!(error.contains("workspace must have at least"), "{error}");
        let (dx, dw) = (tensor(512, DType::F16), slice(512 * 4, DType::F32));
        let error = linear::backward(&stream, &x, &w, &y, &dx, &dw, None).unwrap_err().to_string();
        assert!(error.contains("grad_output must hold F16 as the input, got F32"), "{error}");
    }
}
