//! The eight shapes of Kinetics-400: clips of 64 frames of 256 x 340, of which a box of 240 x 240 is resampled to SlowFast's
//! two pathways (alpha 4). Bytes are the source bytes that taps touch, once each, and the bytes written.

use std::collections::BTreeSet;

use criterion::{Criterion, Throughput};
use vcycle::device::{Buffer, DType, Device, Tensor};
use vcycle::ops::resample::{self, Axis, ClipGrid, Filter, Pathway, Resample, SourceClip};
use vcycle::shape::ActivationShape;

use crate::device::{cases, device, is_smoke, time};

const SOURCE: [usize; 3] = [64, 256, 340];
const BOX: usize = 240;
const ALPHA: usize = 4;
/// Clips on the CPU, whose speed does not depend on the batch.
const CPU_CLIPS: usize = 2;

#[derive(serde::Deserialize)]
struct Cases {
    grid: Vec<Grid>,
}

#[derive(serde::Deserialize)]
struct Grid {
    name: String,
    clips: usize,
    frames: usize,
    crop: usize,
}

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let all: Cases = toml::from_str(&cases("resample")).expect("tests/cases/resample.toml");
    for filter in [Filter::Trilinear, Filter::TrilinearAntialias, Filter::NearestInTime] {
        for grid in &all.grid {
            bench_grid(c, filter, grid);
        }
    }
}

fn bench_grid(c: &mut Criterion, filter: Filter, grid: &Grid) {
    let device = device();
    let stream = device.stream().expect("stream");
    let (num_clips, dtype) = match device {
        Device::Cpu => (grid.clips.min(CPU_CLIPS), DType::F32),
        _ => (grid.clips, DType::Bf16),
    };
    let num_clips = if is_smoke() { 1 } else { num_clips };
    let clips = clips(device, num_clips, grid);
    let fast_frames: Vec<u32> = (0..grid.frames as u32).collect();
    let slow_frames: Vec<u32> = (0..grid.frames as u32).step_by(ALPHA).collect();
    let tensor = |frames: usize| {
        let shape = ActivationShape::new(num_clips, frames, grid.crop, grid.crop, 4);
        Tensor::zeroed(device, dtype, shape).expect("output")
    };
    let (fast, slow) = (tensor(fast_frames.len()), tensor(slow_frames.len()));
    let pathways = [
        Pathway { output: &fast, frame_indices: &fast_frames },
        Pathway { output: &slow, frame_indices: &slow_frames },
    ];
    let op = Resample { filter, mean: [0.45; 3], std: [0.225; 3] };
    let scratch = resample::workspace_bytes(num_clips, fast_frames.len() + slow_frames.len());
    let workspace = Buffer::zeroed(device, scratch).and_then(|b| b.slice::<u8>(0, scratch)).expect("workspace");

    let written = (fast.memory().len_bytes() + slow.memory().len_bytes()) as u64;
    let read = num_clips as u64 * touched_bytes(filter, grid);
    let mut group = c.benchmark_group("resample_forward");
    group.throughput(Throughput::Bytes(read + written));
    let method = match filter {
        Filter::Trilinear => "linear",
        Filter::TrilinearAntialias => "antialias",
        Filter::NearestInTime => "nearest",
    };
    let executor = if *device == Device::Cpu { "cpu_f32" } else { "cuda_bf16" };
    group.bench_function(format!("{}/{method}_{executor}_n{num_clips}", grid.name), |b| {
        b.iter_custom(|rounds| {
            time(&stream, rounds, || resample::forward(&stream, &op, &clips, &pathways, &workspace).expect("resample"))
        });
    });
    group.finish();
}

/// Clips of random bytes, each with a box and memory of its own.
fn clips(device: &Device, num_clips: usize, grid: &Grid) -> Vec<SourceClip> {
    let [frames, height, width] = SOURCE;
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let pixels: Vec<u8> = (0..frames * height * width * 3).map(|_| random() as u8).collect();
    let clip = |i: usize| {
        let (y, x) = (random() % (height - BOX + 1), random() % (width - BOX + 1));
        SourceClip {
            memory: Buffer::from_host(device, &pixels).expect("clip"),
            frames,
            height_px: height,
            width_px: width,
            origin_px: (0, 0),
            grid: ClipGrid {
                t: Axis::crop_then_resize(0, frames, grid.frames),
                y: Axis::crop_then_resize(y, y + BOX, grid.crop),
                x: Axis::crop_then_resize(x, x + BOX, grid.crop),
                flip: i % 2 == 1,
            },
        }
    };
    (0..num_clips).map(clip).collect()
}

/// Source bytes of a clip that are read at all: rows in the taps of t and y, over the box.
fn touched_bytes(filter: Filter, grid: &Grid) -> u64 {
    let touched = |axis: &Axis, samples: usize, is_time: bool| {
        let all = (0..samples).flat_map(|i| {
            let taps = resample::taps(filter, axis, i as u32, is_time);
            taps.first..taps.first + taps.weights.len()
        });
        all.collect::<BTreeSet<usize>>().len()
    };
    let t = touched(&Axis::crop_then_resize(0, SOURCE[0], grid.frames), grid.frames, true);
    let y = touched(&Axis::crop_then_resize(0, BOX, grid.crop), grid.crop, false);
    (t * y * BOX * 3) as u64
}
