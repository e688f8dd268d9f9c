//! `conv3d`'s `Epilogue::Normalise`: batch norm, shortcut and ReLU as the convolution is stored, on all forms of its kernels.

use vcycle::device::{DType, Device};
use vcycle::ops::conv3d::{self, Conv3d, Direction, Epilogue, Method, Normalise, Prologue, reference, with_method};

use super::rig::{Case, workspace};
use crate::compare::{as_f64, exact, integers, to_f32};
use crate::executors;
use crate::golden::fill;
use crate::stored::{self, SHORT, assert_twice_plain, rounding};

/// What is added before the ReLU.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shortcut {
    None,
    Plain,
    Normalised,
}

struct Layer {
    case: Case,
    gap: [usize; 2],
    shortcut: Shortcut,
    relu: bool,
    /// As the kernels are chosen, or wgmma.
    method: Option<Method>,
}

fn layers() -> Vec<Layer> {
    let layer = |name, input, c_out, splits, gap, shortcut, relu| Layer {
        case: Case::new(name, input, c_out, splits),
        gap,
        shortcut,
        relu,
        method: None,
    };
    let wgmma = |tile_n, layer: Layer| Layer { method: Some(Method::Wgmma { tile_n: Some(tile_n) }), ..layer };
    use Shortcut::{Normalised, Plain};
    vec![
        // the last split is smaller; a last tile of channels with few
        layer("splits", [3, 2, 5, 5, 16], 136, 2, [0, 8], Plain, true),
        layer("own_norm", [3, 1, 5, 5, 32], 72, 3, [8, 0], Normalised, true),
        layer("narrow", [2, 2, 5, 6, 8], 32, 2, [0; 2], Normalised, true),
        layer("no_shortcut", [2, 1, 6, 6, 24], 16, 1, [0; 2], Shortcut::None, false),
        // channels and gaps that fill no vector
        layer("checked", [3, 1, 5, 4, 12], 20, 2, [1, 2], Normalised, true),
        wgmma(64, layer("wgmma", [3, 2, 9, 8, 64], 72, 2, [0, 8], Normalised, true)),
        wgmma(128, layer("wgmma_128", [2, 1, 5, 5, 64], 136, 2, [0; 2], Plain, true)),
    ]
}

/// x and its table, filter, table of the output, shortcut and its table.
struct Operands {
    x: Vec<f32>,
    before: Vec<f32>,
    w: Vec<f32>,
    table: Vec<f32>,
    residual: Vec<f32>,
    residual_table: Vec<f32>,
}

impl Layer {
    fn conv(&self) -> Conv3d {
        self.case.op().conv()
    }

    fn operands(&self, value: impl Fn(&str, usize) -> Vec<f32>) -> Operands {
        let (op, conv, splits) = (self.case.op(), self.conv(), self.case.splits);
        let (c_in, c_out) = (op.c_in, conv.c_out);
        Operands {
            x: value("x", conv.input.num_elements()),
            before: value("before", splits * 2 * c_in),
            w: value("w", c_in * c_out),
            table: value("table", splits * 2 * c_out),
            residual: value("residual", conv.output().num_elements()),
            residual_table: value("residual_table", splits * 2 * c_out),
        }
    }

    /// The output; `round` of arithmetic, `store` of what is rounded to the tensors' type.
    fn expected(&self, o: &Operands, round: fn(f64) -> f64, store: fn(f64) -> f64) -> Vec<f64> {
        let (conv, splits) = (self.conv(), self.case.splits);
        let rounding = reference::Rounding { round, store };
        let x = reference::normalised(conv.input, splits, rounding, &as_f64(&o.x), &as_f64(&o.before), None);
        let (w, shape) = (as_f64(&o.w), conv.output());
        let mut y = vec![0.0; shape.num_elements()];
        reference::for_each_term(&conv, |t| y[t.y] = round(y[t.y] + x[t.x] * w[t.w]));
        let per_split = shape.n.div_ceil(splits) * shape.num_elements() / shape.n;
        let affine = |table: &[f32], i: usize, v: f64| {
            let row = |row: usize| f64::from(table[((i / per_split) * 2 + row) * shape.c + i % shape.c]);
            round(round(row(0) * v) + row(1))
        };
        let at = |(i, y): (usize, &f64)| {
            let r = f64::from(o.residual[i]);
            let joined = match self.shortcut {
                Shortcut::None => 0.0,
                Shortcut::Plain => r,
                Shortcut::Normalised => affine(&o.residual_table, i, r),
            };
            let v = round(affine(&o.table, i, *y) + joined);
            store(if self.relu && v < 0.0 { 0.0 } else { v })
        };
        y.iter().enumerate().map(at).collect()
    }

    fn run(&self, device: &Device, dtype: DType, o: &Operands) -> Vec<f32> {
        let (conv, stream, splits) = (self.conv(), device.stream().unwrap(), self.case.splits);
        let f32s = |values: &[f32]| stored::slice(device, DType::F32, values);
        let tensor = |shape, values: &[f32]| stored::tensor(device, dtype, shape, values, self.gap);
        let (x, residual) = (tensor(conv.input, &o.x), tensor(conv.output(), &o.residual));
        let y = tensor(conv.output(), &vec![f32::NAN; o.residual.len()]);
        let (before, table, residual_table) = (f32s(&o.before), f32s(&o.table), f32s(&o.residual_table));
        let prologue = Prologue { scale_shift: &before, splits, join: None };
        let epilogue = Epilogue::Normalise(Normalise {
            scale_shift: &table,
            splits,
            residual: (self.shortcut != Shortcut::None).then_some(&residual),
            residual_scale_shift: (self.shortcut == Shortcut::Normalised).then_some(&residual_table),
            relu: self.relu,
        });
        let w = stored::slice(device, dtype, &o.w);
        let run = || {
            let bytes = conv3d::workspace_bytes_fused(&stream, &conv, Direction::Forward, splits);
            let scratch = workspace(device, bytes);
            conv3d::forward_fused(&stream, &conv, &x, Some(&prologue), &w, &epilogue, &y, &scratch).expect("forward");
        };
        match self.method {
            Some(method) => with_method(method, run),
            None => run(),
        }
        stored::read_tensor(&y, self.gap)
    }
}

/// Devices that run a layer's kernels.
fn devices(layer: &Layer) -> Vec<Device> {
    let is_possible = |device: &Device| match device {
        Device::Cuda(device) => layer.method.is_none() || device.gpu().compute_capability == (9, 0),
        _ => true,
    };
    executors::with_kernels().into_iter().filter(is_possible).collect()
}

#[test]
fn normalised_on_store() {
    for layer in layers() {
        for (device, dtype) in devices(&layer).iter().flat_map(|device| SHORT.map(|dtype| (device, dtype))) {
            let name = &layer.case.name;
            // Whole numbers: everything is exact but the one rounding.
            let whole = layer.operands(|what, n| integers(&format!("{name}/{what}"), n, 2));
            let random = layer.operands(|what, n| {
                let values = fill::f32(&format!("{name}/{what}"), n, 1.0, 0.3);
                let is_table = what == "before" || what.contains("table");
                let round = |v: &f32| if is_table { *v } else { stored::round(dtype, f64::from(*v)) as f32 };
                values.iter().map(round).collect()
            });
            let test = |mode: &str| {
                let what = format!("{name} on {mode}");
                let got = layer.run(device, dtype, &whole);
                let want = layer.expected(&whole, exact, rounding(dtype));
                assert!(as_f64(&got) == want, "{what} {dtype:?}: whole numbers");
                let got = layer.run(device, dtype, &random);
                // What the prologue rounds is the same for both.
                let want = layer.expected(&random, exact, exact);
                assert_twice_plain(&what, dtype, &got, &layer.expected(&random, to_f32, rounding(dtype)), &want);
            };
            match dtype == DType::Bf16 && name == "narrow" {
                true => executors::in_all_modes(device, test),
                false => test(&device.to_string()),
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    for device in executors::with_kernels() {
        let (conv, stream) = (Case::new("refused", [2, 1, 3, 3, 8], 16, 2).op().conv(), device.stream().unwrap());
        let tensor = |shape: vcycle::shape::ActivationShape| {
            stored::tensor(&device, DType::Bf16, shape, &vec![0.0; shape.num_elements()], [0; 2])
        };
        let floats = |len| stored::slice(&device, DType::F32, &vec![0.0; len]);
        let (x, y, w) = (tensor(conv.input), tensor(conv.output()), stored::slice(&device, DType::Bf16, &[0.0; 128]));
        let (before, table, short) = (floats(32), floats(64), floats(32));
        let scratch = workspace(&device, conv3d::workspace_bytes_fused(&stream, &conv, Direction::Forward, 2));
        let told = |normalise: Normalise<'_>, splits_before: usize| {
            let before = if splits_before == 1 { before.part(0, 16).unwrap() } else { before.clone() };
            let prologue = Prologue { scale_shift: &before, splits: splits_before, join: None };
            let epilogue = Epilogue::Normalise(normalise);
            conv3d::forward_fused(&stream, &conv, &x, Some(&prologue), &w, &epilogue, &y, &scratch)
                .expect_err("refused")
                .to_string()
        };
        let right =
            Normalise { scale_shift: &table, splits: 2, residual: None, residual_scale_shift: None, relu: true };
        let short_table = told(Normalise { scale_shift: &short, ..right }, 2);
        assert!(short_table.contains("normalise.scale_shift must have 64 elements, got 32"), "{short_table}");
        let no_residual = told(Normalise { residual_scale_shift: Some(&table), ..right }, 2);
        assert!(no_residual.contains("residual_scale_shift needs a residual, got none"), "{no_residual}");
        let other_shape = told(Normalise { residual: Some(&x), ..right }, 2);
        assert!(other_shape.contains("normalise.residual must be [2,1,3,3,16]"), "{other_shape}");
        let splits = told(right, 1);
        assert!(splits.contains("splits on load and on store differ: 1 and 2"), "{splits}");
    }
}
