//! `ops::resample` against its f64 reference, PySlowFast and PyTorch.

use serde_json::Value;
use vcycle::device::{Buffer, DType, Device, Element, Slice, Tensor};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip, reference};
use vcycle::shape::ActivationShape;

use crate::golden::{self, fill};

const STD: [f32; 3] = [0.225, 0.229, 0.224];
const MEAN: [f32; 3] = [0.45, 0.5, 0.4];

fn clip(device: &Device, name: &str, size: [usize; 3], grid: ClipGrid) -> (Vec<u8>, SourceClip) {
    let bytes = fill::u8(name, size.iter().product::<usize>() * 3);
    let memory = Buffer::from_host(device, &bytes).unwrap();
    (bytes, SourceClip { memory, frames: size[0], height_px: size[1], width_px: size[2], grid })
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
        let device = Device::Cpu;
        let (_, source) = clip(&device, input["fill_u8"].as_str().unwrap(), size, grid);
        let output = Tensor::zeroed(&device, DType::F32, ActivationShape::new(1, frames, height, width, 3)).unwrap();
        let frame_indices: Vec<u32> = (0..frames as u32).collect();
        let pathways = [Pathway { output: &output, frame_indices: &frame_indices }];
        resample::forward(
            &device.stream().unwrap(),
            &op,
            &[source],
            &pathways,
            &workspace(&device, 1, frame_indices.len()),
        )
        .unwrap();
        let got = golden::channels_first(&[1, 3, frames, height, width], &output.read::<f32>().unwrap());
        golden.assert_close(name, &case["outputs"]["y_cthw"], &got, 2e-5);
    }
    golden::passed("resample_u8", cases.len());
}

/// Grids that reach every edge: outside the image on both sides, backwards in time, widened on some axes only.
fn grids(size: [usize; 3]) -> Vec<ClipGrid> {
    let [frames, height, width] = size;
    let t = Axis::crop_then_resize(0, frames, 4);
    let y = Axis::crop_then_resize(1, height - 1, 6);
    let x = Axis::resize_then_crop(width, width / 2, 3);
    let outside = Axis { start: -2.5, step: 1.7, lo: 0, hi: width as u32 - 1 };
    let backwards = Axis { start: frames as f32, step: -1.3, lo: 1, hi: frames as u32 - 2 };
    vec![
        ClipGrid { t, y, x, flip: false },
        ClipGrid { t, y, x, flip: true },
        ClipGrid { t: backwards, y: Axis::identity(height), x: outside, flip: true },
        ClipGrid { t: Axis::identity(frames), y: Axis { lo: 2, hi: 2, ..y }, x: Axis::identity(width), flip: false },
    ]
}

/// A batch of clips of different sizes into two pathways, against the reference.
fn random_batch<T: Element>(device: &Device, filter: Filter, c: usize, to_f64: fn(T) -> f64, rounding: f64) {
    let op = Resample { filter, mean: MEAN, std: STD };
    let (height, width, fast) = (7, 9, [0u32, 1, 2, 3]);
    let slow = [0u32, 3];
    let sizes = [[6, 11, 14], [9, 8, 31], [5, 20, 10], [8, 9, 13]];
    let batch: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| (*size, clip(device, &format!("resample/{i}"), *size, grids(*size)[i])))
        .collect();
    let clips: Vec<SourceClip> = batch.iter().map(|(_, (_, c))| c.clone()).collect();
    let outputs = [fast.len(), slow.len()].map(|t| {
        let shape = ActivationShape::new(clips.len(), t, height, width, c);
        let dirty = Tensor::from_host(device, shape, &vec![T::zeroed(); shape.num_elements()]).unwrap();
        assert_eq!(dirty.dtype(), T::DTYPE);
        dirty
    });
    let pathways =
        [Pathway { output: &outputs[0], frame_indices: &fast }, Pathway { output: &outputs[1], frame_indices: &slow }];
    resample::forward(
        &device.stream().unwrap(),
        &op,
        &clips,
        &pathways,
        &workspace(device, clips.len(), fast.len() + slow.len()),
    )
    .unwrap();
    for pathway in &pathways {
        let got = pathway.output.read::<T>().unwrap();
        let per_clip = got.len() / clips.len();
        for (n, (size, (bytes, clip))) in batch.iter().enumerate() {
            let host = reference::HostClip { bytes, size: *size };
            let want = reference::forward(&op, host, &clip.grid, pathway.frame_indices, height, width);
            for (p, (got, want)) in got[n * per_clip..].chunks(c).zip(want.chunks(3)).enumerate() {
                for ch in 0..c {
                    let (got, want) = (to_f64(got[ch]), if ch < 3 { want[ch] } else { 0.0 });
                    // f32 arithmetic on values of at most 2.5 whose slope is at most 5 a pixel, then one rounding.
                    let allowed = if ch < 3 { 3e-5 + want.abs() * rounding } else { 0.0 };
                    assert!(
                        (got - want).abs() <= allowed,
                        "{filter:?} {device:?} {:?}: clip {n} position {p} channel {ch}: got {got}, want {want}",
                        T::DTYPE
                    );
                }
            }
        }
    }
}

#[test]
fn random_clips_agree_with_the_reference() {
    for device in crate::executors::all() {
        for filter in [Filter::Trilinear, Filter::TrilinearAntialias, Filter::NearestInTime] {
            for c in [3, 4, 8] {
                random_batch::<f32>(&device, filter, c, f64::from, 2f64.powi(-24));
                random_batch::<half::bf16>(&device, filter, c, f64::from, 2f64.powi(-8));
                random_batch::<half::f16>(&device, filter, c, f64::from, 2f64.powi(-11));
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
