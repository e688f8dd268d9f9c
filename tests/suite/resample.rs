//! `ops::resample` against its f64 reference, PySlowFast and PyTorch.

use serde_json::Value;
use vcycle::device::{Buffer, DType, Device, Element, Slice, Tensor};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip, reference};
use vcycle::shape::ActivationShape;

use crate::executors;
use crate::golden::{self, Golden, fill};

const STD: [f32; 3] = [0.225, 0.229, 0.224];
const MEAN: [f32; 3] = [0.45, 0.5, 0.4];

fn clip(device: &Device, name: &str, size: [usize; 3], grid: ClipGrid) -> (Vec<u8>, SourceClip) {
    let bytes = fill::u8(name, size.iter().product::<usize>() * 3);
    // Clips begin at any byte of a buffer, and here end with it.
    let offset = size[2] % 4;
    let memory = Buffer::zeroed(device, offset + bytes.len()).unwrap().slice::<u8>(offset, bytes.len()).unwrap();
    memory.write(&bytes).unwrap();
    (bytes, SourceClip { memory, frames: size[0], height_px: size[1], width_px: size[2], origin_px: (0, 0), grid })
}

fn workspace(device: &Device, clips: usize, frames: usize) -> Slice {
    Buffer::from_host(device, &vec![0u8; resample::workspace_bytes(clips, frames)]).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("integer") as usize
}

fn triple(value: &Value) -> [f32; 3] {
    std::array::from_fn(|i| value[i].as_f64().expect("number") as f32)
}

/// The grid that PySlowFast's `spatial_sampling` draws: resize the short side, crop, flip (golden/README, section 4).
fn peer_grid(params: &Value, size: [usize; 3]) -> ClipGrid {
    let (lo, hi) = (params["min_scale"].as_f64().unwrap(), params["max_scale"].as_f64().unwrap());
    let crop = number(&params["crop"]);
    let mut draws = params["u"].as_array().unwrap().iter().map(|u| u.as_f64().unwrap());
    let mut draw = || draws.next().unwrap();
    let u = draw();
    let short = match params["inverse_uniform"].as_bool().unwrap() {
        false => (lo + u * (hi - lo)).round_ties_even(),
        true => (1.0 / (1.0 / hi + u * (1.0 / lo - 1.0 / hi))).round_ties_even(),
    } as usize;
    let [frames, height, width] = size;
    let long = |side: usize, other: usize| (side as f64 / other as f64 * short as f64).floor() as usize;
    let (new_height, new_width) =
        if width < height { (long(height, width), short) } else { (short, long(width, height)) };
    let mut offset = |dim: usize| if dim > crop { (draw() * (dim - crop) as f64) as usize } else { 0 };
    let y_offset = offset(new_height);
    let x_offset = offset(new_width);
    let flip = params["random_flip"].as_bool().unwrap() && draw() < 0.5;
    ClipGrid {
        t: Axis::identity(frames),
        y: Axis::resize_then_crop(height, new_height, y_offset),
        x: Axis::resize_then_crop(width, new_width, x_offset),
        flip,
    }
}

#[test]
fn golden_resample_u8() {
    let Some(golden) = golden::open("ops/resample_u8.json") else { return };
    executors::all().iter().for_each(|device| compare(&golden, device));
}

fn compare(golden: &Golden, device: &Device) {
    let cases = golden.json.as_array().unwrap();
    for case in cases {
        let (name, params) = (case["case"].as_str().unwrap(), &case["params"]);
        let input = &case["inputs"]["clip_thwc_u8"];
        let size = golden::dims(&input["shape"]);
        let size = [size[0], size[1], size[2]];
        let out_cthw = golden::dims(&case["outputs"]["y_cthw"]["shape"]);
        let [frames, height, width] = [out_cthw[1], out_cthw[2], out_cthw[3]];
        let grid = match params["peer"].is_string() {
            true => peer_grid(params, size),
            false => {
                let at: Vec<usize> = golden::dims(&params["box_t0t1y0y1x0x1"]);
                ClipGrid {
                    t: Axis::crop_then_resize(at[0], at[1], frames),
                    y: Axis::crop_then_resize(at[2], at[3], height),
                    x: Axis::crop_then_resize(at[4], at[5], width),
                    flip: params["flip_w"].as_bool().unwrap(),
                }
            }
        };
        let filter = if params["peer"].is_string() { Filter::NearestInTime } else { Filter::Trilinear };
        let op = Resample { filter, mean: triple(&params["mean"]), std: triple(&params["std"]) };
        let (_, source) = clip(device, input["fill_u8"].as_str().unwrap(), size, grid);
        let output = Tensor::zeroed(device, DType::F32, ActivationShape::new(1, frames, height, width, 3)).unwrap();
        let frame_indices: Vec<u32> = (0..frames as u32).collect();
        let pathways = [Pathway { output: &output, frame_indices: &frame_indices }];
        resample::forward(
            &device.stream().unwrap(),
            &op,
            &[source],
            &pathways,
            &workspace(device, 1, frame_indices.len()),
        )
        .unwrap();
        let got = golden::channels_first(&[1, 3, frames, height, width], &output.read::<f32>().unwrap());
        golden.assert_close(name, &case["outputs"]["y_cthw"], &got, 2e-5);
    }
    golden.passed_on(device, cases.len());
}

/// A row of tests/cases/resample.toml.
#[derive(serde::Deserialize)]
struct Case {
    name: String,
    clips: Vec<CaseClip>,
    output: [usize; 3],
    frames: Vec<Vec<u32>>,
}

#[derive(serde::Deserialize)]
struct CaseClip {
    size: [usize; 3],
    t: [f32; 4],
    y: [f32; 4],
    x: [f32; 4],
    flip: bool,
}

#[derive(serde::Deserialize)]
struct Cases {
    case: Vec<Case>,
}

impl CaseClip {
    fn grid(&self) -> ClipGrid {
        let axis = |a: &[f32; 4]| Axis { start: a[0], step: a[1], lo: a[2] as u32, hi: a[3] as u32 };
        ClipGrid { t: axis(&self.t), y: axis(&self.y), x: axis(&self.x), flip: self.flip }
    }
}

fn cases() -> Vec<Case> {
    toml::from_str::<Cases>(&crate::executors::cases("resample")).expect("tests/cases/resample.toml").case
}

/// Runs a case; all stored channels of all pathways, pathway after pathway.
fn run<T: Element + Into<f64>>(device: &Device, op: &Resample, case: &Case) -> Vec<Vec<f64>> {
    let [height, width, c] = case.output;
    let clips: Vec<SourceClip> =
        case.clips.iter().enumerate().map(|(i, one)| clip(device, &clip_name(i), one.size, one.grid()).1).collect();
    let outputs: Vec<Tensor> = case
        .frames
        .iter()
        .map(|frames| {
            let shape = ActivationShape::new(clips.len(), frames.len(), height, width, c);
            Tensor::from_host(device, shape, &vec![T::zeroed(); shape.num_elements()]).unwrap()
        })
        .collect();
    let pathways: Vec<Pathway<'_>> =
        outputs.iter().zip(&case.frames).map(|(output, frame_indices)| Pathway { output, frame_indices }).collect();
    let scratch = workspace(device, clips.len(), case.frames.iter().map(Vec::len).sum());
    resample::forward(&device.stream().unwrap(), op, &clips, &pathways, &scratch).unwrap();
    outputs.iter().map(|o| o.read::<T>().unwrap().into_iter().map(Into::into).collect()).collect()
}

fn clip_name(i: usize) -> String {
    format!("resample/{i}")
}

/// What [`run`] must give, with every arithmetic result rounded by `round`.
fn expected(op: &Resample, case: &Case, round: fn(f64) -> f64) -> Vec<Vec<f64>> {
    let [height, width, c] = case.output;
    let pathway = |frames: &Vec<u32>| {
        let clips = case.clips.iter().enumerate().flat_map(|(i, one)| {
            let bytes = fill::u8(&clip_name(i), one.size.iter().product::<usize>() * 3);
            let host = reference::HostClip { bytes: &bytes, size: one.size };
            reference::forward(op, host, &one.grid(), frames, [height, width], round)
        });
        let rgb: Vec<f64> = clips.collect();
        rgb.chunks(3).flat_map(|rgb| rgb.iter().copied().chain(std::iter::repeat_n(0.0, c - 3))).collect()
    };
    case.frames.iter().map(pathway).collect()
}

fn to_f32(value: f64) -> f64 {
    f64::from(value as f32)
}

/// A case with a filter: no further from f64 than twice what plain f32 is, and one rounding to the stored type.
fn check<T: Element + Into<f64>>(device: &Device, filter: Filter, case: &Case, rounding: f64) {
    let op = Resample { filter, mean: MEAN, std: STD };
    let want = expected(&op, case, |v| v);
    let plain = expected(&op, case, to_f32);
    let error = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.iter().flatten().zip(b.iter().flatten()).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()))
    };
    let allowed = 2.0 * error(&plain, &want);
    crate::executors::in_all_modes(device, |mode| {
        let got = run::<T>(device, &op, case);
        for (pathway, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let [height, width, c] = case.output;
                let at = [i / c / width / height, i / c / width % height, i / c % width, i % c];
                assert!(
                    (got - want).abs() <= allowed + want.abs() * rounding,
                    "{} {filter:?} {:?} on {mode}: pathway {pathway}, [frame, y, x, c] = {at:?}: got {got}, want {want}",
                    case.name,
                    T::DTYPE,
                );
            }
        }
        assert_eq!(got, run::<T>(device, &op, case), "{} {filter:?} on {mode}: two runs differ", case.name);
    });
}

#[test]
fn cases_agree_with_the_reference_on_every_executor() {
    for device in crate::executors::all() {
        for case in cases() {
            for filter in [Filter::Trilinear, Filter::TrilinearAntialias, Filter::NearestInTime] {
                check::<f32>(&device, filter, &case, 2f64.powi(-24));
                check::<half::bf16>(&device, filter, &case, 2f64.powi(-8));
                check::<half::f16>(&device, filter, &case, 2f64.powi(-11));
            }
        }
    }
}

/// An output of more channels than it is asked to write, at an address that vector stores cannot use.
#[test]
fn keeps_what_lies_between_the_channels() {
    let case = &cases()[1];
    let op = Resample { filter: Filter::Trilinear, mean: MEAN, std: STD };
    let want = run::<f32>(&Device::Cpu, &op, case);
    for device in crate::executors::all() {
        let [height, width, c] = case.output;
        let clips: Vec<SourceClip> = case
            .clips
            .iter()
            .enumerate()
            .map(|(i, one)| clip(&device, &clip_name(i), one.size, one.grid()).1)
            .collect();
        let shape = ActivationShape::new(clips.len(), case.frames[0].len(), height, width, c + 3);
        let wide = Tensor::from_host(&device, shape, &vec![7f32; shape.num_elements()]).unwrap();
        let output = wide.channels(1, c).unwrap();
        let pathways = [Pathway { output: &output, frame_indices: &case.frames[0] }];
        let scratch = workspace(&device, clips.len(), case.frames[0].len());
        resample::forward(&device.stream().unwrap(), &op, &clips, &pathways, &scratch).unwrap();
        for (i, row) in wide.read::<f32>().unwrap().chunks(c + 3).enumerate() {
            assert_eq!((row[0], row[c + 1], row[c + 2]), (7.0, 7.0, 7.0), "{device}: around position {i}");
            for ch in 0..c {
                let (got, want) = (f64::from(row[1 + ch]), want[0][i * c + ch]);
                assert!((got - want).abs() < 1e-4, "{device}: position {i} channel {ch}: got {got}, cpu {want}");
            }
        }
    }
}

/// A box that holds all pixels between the clamps gives the bits of the whole frames.
#[test]
fn boxes_give_the_samples_of_whole_frames() {
    let (size, (frames, height, width)) = ([3, 21, 37], (3, 6, 11));
    let y = Axis { start: 4.3, step: 1.7, lo: 4, hi: 13 };
    let x = Axis { start: 20.25, step: -1.1, lo: 8, hi: 30 };
    let grid = ClipGrid { t: Axis { start: 0.2, step: 0.9, lo: 0, hi: 2 }, y, x, flip: true };
    for device in executors::all() {
        for filter in [Filter::Trilinear, Filter::TrilinearAntialias, Filter::NearestInTime] {
            let sample = |source: &SourceClip| {
                let shape = ActivationShape::new(1, frames, height, width, 4);
                let output = Tensor::zeroed(&device, DType::F32, shape).unwrap();
                let pathways = [Pathway { output: &output, frame_indices: &[0, 1, 2] }];
                let op = Resample { filter, mean: MEAN, std: STD };
                let scratch = workspace(&device, 1, frames);
                let result = resample::forward(
                    &device.stream().unwrap(),
                    &op,
                    std::slice::from_ref(source),
                    &pathways,
                    &scratch,
                );
                result.map(|()| output.read::<f32>().unwrap())
            };
            let (bytes, whole) = clip(&device, "boxes", size, grid);
            let expected = sample(&whole).unwrap();
            for (rows, columns) in [(4..14, 8..31), (0..14, 8..37), (3..21, 0..31), (1..15, 5..34)] {
                let row = |i: usize| &bytes[(i * size[2] + columns.start) * 3..(i * size[2] + columns.end) * 3];
                let kept: Vec<u8> =
                    (0..3).flat_map(|t| rows.clone().flat_map(move |y| row(t * size[1] + y))).copied().collect();
                let source = SourceClip {
                    memory: Buffer::from_host(&device, &kept).unwrap(),
                    height_px: rows.len(),
                    width_px: columns.len(),
                    origin_px: (rows.start, columns.start),
                    ..whole.clone()
                };
                assert_eq!(sample(&source).unwrap(), expected, "{device} {filter:?} {rows:?} {columns:?}");
                let message = |origin_px| sample(&SourceClip { origin_px, ..source.clone() }).unwrap_err().to_string();
                assert!(message((rows.start, 9)).contains("x axis must be finite and lie in 9.."));
                assert!(message((usize::MAX, 0)).contains("origin"));
            }
        }
    }
}

#[test]
fn whole_pixels_are_exact() {
    let op = Resample { filter: Filter::Trilinear, mean: [0.0; 3], std: [0.5; 3] };
    let multiply = (1.0 / 127.5) as f32; // rounded as the op does
    for device in crate::executors::all() {
        let size = [4, 5, 6];
        let axis = |size: usize, start: f32| Axis { start, ..Axis::identity(size) };
        let grid = ClipGrid { t: axis(4, 1.0), y: axis(5, 2.0), x: axis(6, -1.0), flip: true };
        let (bytes, source) = clip(&device, "whole", size, grid);
        let output = Tensor::zeroed(&device, DType::F32, ActivationShape::new(1, 2, 4, 6, 4)).unwrap();
        let pathways = [Pathway { output: &output, frame_indices: &[2, 0] }];
        resample::forward(&device.stream().unwrap(), &op, &[source], &pathways, &workspace(&device, 1, 2)).unwrap();
        let got = output.read::<f32>().unwrap();
        for (f, t) in [(0, 3), (1, 1)] {
            for y in 0..4 {
                for x in 0..6usize {
                    let source_x = (5 - x).saturating_sub(1);
                    let at = ((t * 5 + (y + 2usize).min(4)) * 6 + source_x) * 3;
                    let want: Vec<f32> =
                        bytes[at..at + 3].iter().map(|b| f32::from(*b) * multiply).chain([0.0]).collect();
                    assert_eq!(got[((f * 4 + y) * 6 + x) * 4..][..4], want, "{device:?} frame {f} row {y} column {x}");
                }
            }
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Device::Cpu;
    let stream = device.stream().unwrap();
    let op = Resample { filter: Filter::Trilinear, mean: MEAN, std: STD };
    let size = [4, 5, 6];
    let grid = ClipGrid { t: Axis::identity(4), y: Axis::identity(5), x: Axis::identity(6), flip: false };
    let (_, good) = clip(&device, "bad", size, grid);
    let output = Tensor::zeroed(&device, DType::F32, ActivationShape::new(1, 2, 4, 6, 4)).unwrap();
    let run = |op: &Resample, clip: SourceClip, frame_indices: &[u32]| {
        let scratch = workspace(&device, 1, frame_indices.len());
        resample::forward(&stream, op, &[clip], &[Pathway { output: &output, frame_indices }], &scratch)
            .unwrap_err()
            .to_string()
    };
    let message = run(&op, good.clone(), &[0]);
    assert!(message.contains("expected an output [1,1,h,w,c]") && message.contains("[1,2,4,6,4]"), "{message}");
    let message = run(&op, SourceClip { frames: 5, ..good.clone() }, &[0, 1]);
    assert!(message.contains("clip 0: [5,5,6,3] uint8"), "{message}");
    let beyond = ClipGrid { x: Axis { hi: 6, ..grid.x }, ..grid };
    let message = run(&op, SourceClip { grid: beyond, ..good.clone() }, &[0, 1]);
    assert!(message.contains("x axis") && message.contains("0..6"), "{message}");
    let nan = ClipGrid { t: Axis { start: f32::NAN, ..grid.t }, ..grid };
    let message = run(&op, SourceClip { grid: nan, ..good.clone() }, &[0, 1]);
    assert!(message.contains("t axis must be finite"), "{message}");
    let message = run(&Resample { std: [0.0; 3], ..op.clone() }, good, &[0, 1]);
    assert!(message.contains("std"), "{message}");
}
