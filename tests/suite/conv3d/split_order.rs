//! A batch whose batch-norm splits come in several calls has the bits of one call: outputs, statistics, gradients of inputs, sums of
//! gradients of parameters. The last split is ragged.

use vcycle::device::{Buffer, Device, Slice};
use vcycle::ops::conv3d::{
    self, Conv3d, Direction, Epilogue, GradEpilogue, GradFilterLimits, GradFilterSources, GradNorm, GradTable, Mask,
    Method, Prologue, Statistics, with_method,
};
use vcycle::shape::{ActivationShape, Part};

use super::typed::{Half, floats, garbage, held, read_floats, slice, workspace};
use crate::executors;
use crate::golden::fill;

/// A convolution between two batch norms.
struct Layer {
    name: &'static str,
    input: [usize; 5],
    c_out: usize,
    filter: [usize; 3],
    stride: [usize; 3],
    splits: usize,
    /// Whether the input comes as it is, and the output's gradient too, with one for a bias: a convolution without batch norms.
    is_plain: bool,
}

const POINTWISE: Layer = Layer {
    name: "pointwise",
    input: [5, 2, 5, 5, 24],
    c_out: 16,
    filter: [1; 3],
    stride: [1; 3],
    splits: 3,
    is_plain: false,
};

#[rustfmt::skip]
const LAYERS: [Layer; 6] = [
    // clips are joined: splits of 2, 2, 1 clips, each ending within a tile
    POINTWISE,
    // gemm_k of the whole batch in slices, and of a part that has fewer tiles
    Layer { name: "slices", input: [3, 1, 3, 3, 264], c_out: 32, ..POINTWISE },
    Layer { name: "halo", input: [5, 2, 5, 6, 8], c_out: 8, filter: [1, 3, 3], ..POINTWISE },
    Layer { name: "temporal_stride", input: [5, 3, 6, 5, 16], c_out: 40, filter: [3, 1, 1], stride: [1, 2, 2], ..POINTWISE },
    // the filter of a stem, pixels in pairs; a bias
    Layer { name: "stem", input: [3, 2, 10, 12, 4], c_out: 8, filter: [1, 3, 7], stride: [1, 2, 2], splits: 2, is_plain: true },
    Layer { name: "bias", input: [7, 1, 4, 5, 20], c_out: 12, splits: 4, is_plain: true, ..POINTWISE },
];

impl Layer {
    fn op(&self, clips: usize, part: Part) -> Conv3d {
        let [_, t, h, w, c] = self.input;
        Conv3d {
            input: ActivationShape::new(clips, t, h, w, c),
            c_out: self.c_out,
            filter: self.filter,
            stride: self.stride,
            padding: self.filter.map(|f| f / 2),
            dilation: [1; 3],
            groups: 1,
            part: Some(part),
        }
    }

    /// The splits of each part: whole, in two, one by one.
    fn cuts(&self) -> [Vec<usize>; 3] {
        let used = Part::whole(self.input[0], self.splits).splits_of(self.input[0]);
        [vec![used], vec![1, used - 1], vec![1; used]]
    }
}

/// Every result, in the order of the batch.
#[derive(Debug, Default, PartialEq)]
struct Results {
    output: Vec<f64>,
    /// Statistics, and the tables that they make.
    stats: [Vec<f64>; 2],
    grad_input: Vec<f64>,
    grad_tables: [Vec<f64>; 2],
    /// Of the filter, the bias, and gamma and beta of two batch norms.
    params: Vec<Vec<f64>>,
}

/// The values of a batch, from which parts take theirs.
struct Batch<'a> {
    layer: &'a Layer,
    whole: Part,
}

impl Batch<'_> {
    fn values(&self, what: &str, n: usize) -> Vec<f64> {
        fill::f32(&format!("{}/{what}", self.layer.name), n, 0.7, 0.1).into_iter().map(f64::from).collect()
    }

    /// Of the clips at hand, `[clips][of_clip]`.
    fn clips<T: Half>(&self, what: &str, part: Part, shape: ActivationShape) -> Vec<f64> {
        let of_clip = shape.num_elements() / shape.n;
        let all = self.values(what, self.whole.batch_clips * of_clip);
        all[part.first_clip * of_clip..][..shape.n * of_clip].iter().map(|v| T::store(*v)).collect()
    }

    /// Rows of the splits at hand.
    fn table(&self, device: &Device, what: &str, part: Part, splits: usize, len: usize) -> Slice {
        let first = part.first_clip / part.clips_per_split();
        let all: Vec<f64> = self.values(what, self.layer.splits * len).into_iter().map(|v| v.abs() + 0.5).collect();
        floats(device, &all[first * len..][..splits * len])
    }
}

/// Runs the layer's three convolutions part by part.
fn run<T: Half>(device: &Device, layer: &Layer, cut: &[usize]) -> Results {
    let batch = Batch { layer, whole: Part::whole(layer.input[0], layer.splits) };
    let (mut results, c) = (Results::default(), layer.input[4]);
    let of_batch = layer.op(layer.input[0], batch.whole);
    let overwritten = |n: usize| floats(device, &vec![f64::NAN; n]);
    let (dw, db) = (overwritten(of_batch.filter_len()), overwritten(layer.c_out));
    let norms: [[Slice; 2]; 2] = [0, 1].map(|_| [overwritten(c), overwritten(c)]);
    let mut part = batch.whole;
    for &splits in cut {
        let clips = (splits * part.clips_per_split()).min(part.batch_clips - part.first_clip);
        run_part::<T>(device, &batch, part, clips, [&dw, &db], &norms, &mut results);
        part.first_clip += clips;
    }
    assert_eq!(part.first_clip, part.batch_clips);
    let bias = layer.is_plain.then_some(&db);
    results.params = [&dw].into_iter().chain(bias).chain(norms.iter().flatten()).map(read_floats).collect();
    results
}

fn run_part<T: Half>(
    device: &Device,
    batch: &Batch<'_>,
    part: Part,
    clips: usize,
    [dw, db]: [&Slice; 2],
    norms: &[[Slice; 2]; 2],
    results: &mut Results,
) {
    let (layer, stream) = (batch.layer, device.stream().unwrap());
    let op = layer.op(clips, part);
    let (input, output, splits) = (op.input, op.output(), part.splits_of(clips));
    let (c_in, c_out) = (input.c, output.c);
    let half = |what: &str, shape| held::<T>(device, shape, &batch.clips::<T>(what, part, shape), 0);
    let (x, g, y) = (half("x", input), half("g", output), half("y", output));
    let scratch = |direction| workspace(device, conv3d::workspace_bytes_fused(&stream, &op, direction, splits));
    let filter = slice::<T>(device, &batch.values("w", op.filter_len()));

    let table = batch.table(device, "scale_shift", part, splits, 2 * c_in);
    let prologue = (!layer.is_plain).then_some(Prologue { scale_shift: &table, splits, join: None });
    let [gamma, beta] = ["gamma", "beta"].map(|what| floats(device, &batch.values(what, c_out)));
    let (stats, scale_shift) =
        (floats(device, &vec![0.0; splits * 3 * c_out]), floats(device, &vec![0.0; splits * 2 * c_out]));
    let statistics = Statistics {
        splits,
        eps: 1e-5,
        gamma: &gamma,
        beta: &beta,
        running: None,
        stats: &stats,
        scale_shift: &scale_shift,
        skip: None,
    };
    let (to, memory) = (garbage::<T>(device, output, 0), scratch(Direction::Forward));
    let epilogue = Epilogue::Statistics(statistics);
    conv3d::forward_fused(&stream, &op, &x.tensor, prologue.as_ref(), &filter, &epilogue, &to.tensor, &memory).unwrap();
    results.output.extend(to.read::<T>());
    results.stats[0].extend(read_floats(&stats));
    results.stats[1].extend(read_floats(&scale_shift));

    let table = batch.table(device, "grad_table", part, splits, 3 * c_out);
    let grad_table = GradTable { table: &table, y: &y.tensor, splits, store_dy: None };
    let grad_table = (!layer.is_plain).then_some(grad_table);
    let ys = ["y0", "y1"].map(|what| half(what, input));
    let stats = ["stats0", "stats1"].map(|what| batch.table(device, what, part, splits, 3 * c_in));
    let gamma = floats(device, &batch.values("gamma of the input", c_in));
    let tables = [0, 1].map(|_| floats(device, &vec![0.0; splits * 3 * c_in]));
    let of_norm = |k: usize| GradNorm {
        y: &ys[k].tensor,
        stats: &stats[k],
        gamma: &gamma,
        grad_table: &tables[k],
        grad_gamma: &norms[k][0],
        grad_beta: &norms[k][1],
    };
    let epilogue = GradEpilogue { add: None, mask: Mask::Output(&x.tensor), splits, norms: &[of_norm(0), of_norm(1)] };
    let (to, memory) = (garbage::<T>(device, input, 0), scratch(Direction::GradInput));
    conv3d::grad_input_fused(&stream, &op, &g.tensor, grad_table.as_ref(), &filter, &epilogue, &to.tensor, &memory)
        .unwrap();
    results.grad_input.extend(to.read::<T>());
    results.grad_tables.iter_mut().zip(&tables).for_each(|(all, table)| all.extend(read_floats(table)));

    let from = GradFilterSources { input: &x.tensor, prologue, grad_output: &g.tensor, grad_table, pool: None };
    let memory = Buffer::zeroed(device, conv3d::workspace_bytes_fused(&stream, &op, Direction::GradFilter, splits));
    let memory = memory.and_then(|b| b.slice::<f32>(0, b.len_bytes() / 4)).unwrap();
    conv3d::grad_filter_fused(&stream, &op, &from, dw, layer.is_plain.then_some(db), &memory).unwrap();
}

fn check<T: Half>(device: &Device, layer: &Layer, how: &str) {
    let [whole, parts @ ..] = layer.cuts();
    let want = run::<T>(device, layer, &whole);
    assert!(want.params.iter().flatten().all(|v| v.is_finite()), "{}", layer.name);
    for cut in parts {
        let got = run::<T>(device, layer, &cut);
        let what = format!("{} {} {how} in {cut:?} splits", layer.name, T::NAME);
        assert!(got.output == want.output && got.stats == want.stats, "{what}: forward");
        assert!(got.grad_input == want.grad_input && got.grad_tables == want.grad_tables, "{what}: grad_input");
        assert!(got.params == want.params, "{what}: gradients of parameters");
    }
}

#[test]
fn splits_one_after_the_other_have_the_bits_of_all() {
    for device in executors::with_kernels() {
        for layer in &LAYERS {
            check::<half::bf16>(&device, layer, "as planned");
        }
        check::<half::f16>(&device, &LAYERS[0], "as planned");
    }
}

/// grad_filter in one part, which goes on from split to split, and in parts of each split; every variant; few and many rows a tile.
#[test]
fn grad_filter_has_the_bits_of_all_in_every_form() {
    for device in executors::with_kernels() {
        for (num_sms, max_rows, variant, shifts_grad) in [
            (1, 16, None, Some(true)),
            (1, 512, Some(0), None),
            (2, 32, Some(1), Some(false)),
            (64, 16, Some(2), Some(true)),
            (64, 64, Some(0), None),
        ] {
            let limits = GradFilterLimits { max_rows, variant, shifts_grad, ..GradFilterLimits::of(num_sms, 99 << 10) };
            conv3d::with_grad_filter_limits(limits, || {
                for layer in &LAYERS {
                    check::<half::bf16>(&device, layer, &format!("{limits:?}"));
                }
            });
        }
    }
}

/// The form on wgmma, with tiles of each width, one of which is a part's and not the batch's.
#[test]
fn wgmma_has_the_bits_of_all() {
    let layer = Layer { name: "wide", input: [5, 1, 5, 6, 64], c_out: 72, filter: [1, 3, 3], ..POINTWISE };
    for device in executors::with_kernels() {
        if device == Device::Simt || device.to_string().contains("sm_90") {
            for tile_n in [None, Some(64), Some(128)] {
                with_method(Method::Wgmma { tile_n }, || check::<half::bf16>(&device, &layer, "on wgmma"));
            }
        }
    }
}

/// Filter and bias gradients on the CPU: one range of positions, several ranges a split, groups.
#[test]
fn the_cpu_has_the_bits_of_all() {
    for (name, input, c_out, filter, groups, splits) in [
        ("small", [5, 2, 5, 5, 24], 16, [1; 3], 1, 3),
        ("ranges", [7, 4, 40, 40, 8], 16, [1, 3, 3], 1, 3),
        ("one split", [4, 4, 40, 40, 8], 16, [1, 3, 3], 1, 4),
        ("large filter", [5, 2, 9, 9, 96], 200, [3, 1, 1], 1, 3),
        ("groups", [5, 2, 9, 9, 32], 32, [1, 3, 3], 4, 3),
    ] {
        let batch_layer = Layer { name, input, c_out, filter, splits, is_plain: true, ..POINTWISE };
        let run = |cut: &[usize]| {
            let stream = Device::Cpu.stream().unwrap();
            let whole = Part::whole(input[0], splits);
            let of_batch = Conv3d { groups, ..batch_layer.op(input[0], whole) };
            let values = |what: &str, n: usize| fill::f32(&format!("{name}/{what}"), n, 0.7, 0.1);
            let all = [values("x", of_batch.input.num_elements()), values("g", of_batch.output().num_elements())];
            let overwritten = |n: usize| Buffer::from_host(&Device::Cpu, &vec![f32::NAN; n]).unwrap();
            let (dw, db) = (overwritten(of_batch.filter_len()), overwritten(c_out));
            let mut part = whole;
            for &count in cut {
                let clips = (count * part.clips_per_split()).min(part.batch_clips - part.first_clip);
                let op = Conv3d { groups, ..batch_layer.op(clips, part) };
                let [x, g] = [(op.input, &all[0]), (op.output(), &all[1])].map(|(shape, all)| {
                    let of_clip = shape.num_elements() / shape.n;
                    let values = &all[part.first_clip * of_clip..][..clips * of_clip];
                    vcycle::device::Tensor::new(Buffer::from_host(&Device::Cpu, values).unwrap(), shape, shape.c)
                        .unwrap()
                });
                let memory = overwritten(conv3d::workspace_bytes(&stream, &op, Direction::GradFilter) / 4);
                conv3d::grad_filter(&stream, &op, &x, &g, &dw, Some(&db), &memory).unwrap();
                part.first_clip += clips;
            }
            [dw.read::<f32>().unwrap(), db.read::<f32>().unwrap()]
        };
        let [whole, parts @ ..] = batch_layer.cuts();
        let want = run(&whole);
        assert!(want.iter().flatten().all(|v| v.is_finite()), "{name}");
        for cut in parts {
            assert!(run(&cut) == want, "{name} in {cut:?} splits");
        }
    }
}

#[test]
fn parts_that_cut_a_split_are_refused() {
    let part = |first_clip| Part { batch_clips: 7, batch_splits: 3, first_clip };
    for (clips, first_clip) in [(2, 0), (3, 1), (7, 3), (2, 5)] {
        let error = LAYERS[0].op(clips, part(first_clip)).check().unwrap_err().to_string();
        assert!(error.contains("7 clips in 3 splits") && error.contains(&format!("from clip {first_clip}")), "{error}");
    }
    for (clips, first_clip) in [(7, 0), (3, 3), (1, 6), (4, 3)] {
        LAYERS[0].op(clips, part(first_clip)).check().unwrap();
    }
}
