//! Tests of `clip::sampling` and of the grids made from it.

use proptest::prelude::*;
use serde_json::Value;
use vcycle::clip::sampling::{self, CropJitter};
use vcycle::clip::{Draws, FrameRule, ResampleMode, Sampling, TestCrops, VideoInfo, Views};
use vcycle::shape::StepShape;

use crate::golden;

fn number(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("{key} in {case}"))
}

fn count(case: &Value, key: &str) -> usize {
    case[key].as_u64().unwrap_or_else(|| panic!("{key} in {case}")) as usize
}

fn pair(value: &Value) -> (usize, usize) {
    let v = golden::dims(value);
    (v[0], v[1])
}

#[test]
fn golden_temporal_decoder() {
    let Some(file) = golden::open("sampling/temporal_decoder.json") else { return };
    let cases = file.json.as_array().expect("cases");
    for case in cases {
        let (frames, num_frames) = (count(case, "video_frames"), count(case, "num_frames"));
        let size = sampling::clip_size_frames(
            count(case, "sampling_rate") as u32,
            num_frames,
            number(case, "target_fps"),
            number(case, "fps"),
        );
        assert!((size - number(case, "clip_size")).abs() <= 1e-9, "{case}: clip size {size}");
        let start = if case["mode"] == "train" {
            sampling::train_start(frames, size, number(case, "u"))
        } else {
            let use_offset = case["use_offset"].as_bool().expect("use_offset");
            sampling::test_start(frames, size, count(case, "clip_idx"), count(case, "num_clips"), use_offset)
        };
        assert!((start - number(case, "start")).abs() <= 1e-9, "{case}: start {start}");
        let indices: Vec<usize> =
            sampling::frame_indices(start, size, num_frames, frames).iter().map(|&i| i as usize).collect();
        assert_eq!(indices, golden::dims(&case["indices"]), "{case}");
    }
    file.passed(cases.len());
}

fn as_counts(indices: &[u32]) -> Vec<usize> {
    indices.iter().map(|&i| i as usize).collect()
}

#[test]
fn golden_temporal_ssv2() {
    let Some(file) = golden::open("sampling/temporal_ssv2.json") else { return };
    let cases = file.json.as_array().expect("cases");
    for case in cases {
        let (frames, num_frames) = (count(case, "video_frames"), count(case, "num_frames"));
        let got = if case["mode"] == "train" {
            let name = case["u_name"].as_str().expect("u_name");
            let mut k = 0;
            sampling::segment_train_indices(frames, num_frames, &mut || {
                k += 1;
                (golden::fill::unit(name, k - 1) + 1.0) / 2.0
            })
        } else {
            sampling::segment_middle_indices(frames, num_frames)
        };
        assert_eq!(as_counts(&got), golden::dims(&case["indices"]), "{case}");
    }
    file.passed(cases.len());
}

#[test]
fn golden_temporal_charades() {
    let Some(file) = golden::open("sampling/temporal_charades.json") else { return };
    let cases = file.json.as_array().expect("cases");
    for case in cases {
        let (frames, num_frames) = (count(case, "video_frames"), count(case, "num_frames"));
        let mut rate = count(case, "sampling_rate") as u32;
        let start = if case["mode"] == "train" {
            // 0: not set, nothing is drawn.
            if let max_rate @ 1.. = count(case, "long_cycle_sampling_rate") as u32 {
                rate = sampling::random_rate(rate, max_rate, number(case, "u_rate"));
            }
            assert_eq!(rate as usize, count(case, "picked_rate"), "{case}");
            sampling::stride_train_start(frames, num_frames, rate, number(case, "u_start"))
        } else {
            sampling::stride_test_start(frames, num_frames, rate, count(case, "view"), count(case, "num_views"))
        };
        let got = sampling::stride_indices(start, rate, num_frames, frames);
        assert_eq!(as_counts(&got), golden::dims(&case["indices"]), "{case}");
    }
    file.passed(cases.len());
}

#[test]
fn golden_slow_pathway_indices() {
    let Some(file) = golden::open("sampling/slow_pathway_indices.json") else { return };
    let cases = file.json.as_array().expect("cases");
    for case in cases {
        let indices = sampling::slow_pathway_indices(count(case, "T_fast"), count(case, "alpha"));
        let indices: Vec<usize> = indices.iter().map(|&i| i as usize).collect();
        assert_eq!(indices, golden::dims(&case["slow_indices"]), "{case}");
    }
    file.passed(cases.len());
}

#[test]
fn golden_spatial_geometry() {
    let Some(file) = golden::open("sampling/spatial_geometry.json") else { return };
    let cases = file.json.as_array().expect("cases");
    for case in cases {
        let (height, width, crop) = (count(case, "H"), count(case, "W"), count(case, "crop"));
        let got = if case["mode"] == "train" {
            let jitter = CropJitter {
                min_scale_px: count(case, "min_scale") as u32,
                max_scale_px: count(case, "max_scale") as u32,
                crop_px: (crop, crop),
                inverse_uniform: case["inverse_uniform"].as_bool().expect("bool"),
                random_flip: case["random_flip"].as_bool().expect("bool"),
            };
            let draws: Vec<f64> = case["u"].as_array().expect("u").iter().map(|u| u.as_f64().expect("u")).collect();
            let mut used = 0;
            let got = sampling::train_crop(height, width, &jitter, &mut || {
                used += 1;
                draws[used - 1]
            });
            assert_eq!(used, count(case, "u_consumed"), "{case}");
            assert_eq!(got.flip, case["flipped"].as_bool().expect("bool"), "{case}");
            got
        } else {
            let scale = count(case, "scale") as u32;
            sampling::test_crop(height, width, scale, (crop, crop), count(case, "spatial_idx"))
        };
        assert_eq!(got.scaled_px, pair(&case["scaled"]), "{case}");
        assert_eq!(got.offset_px, pair(&case["offset_yx"]), "{case}");
    }
    file.passed(cases.len());
}

#[test]
fn the_rate_of_the_long_cycle_is_uniform_up_to_its_maximum() {
    assert_eq!(sampling::long_cycle_max_rate(2, 32, 8), 8);
    assert_eq!(sampling::long_cycle_max_rate(2, 32, 32), 2);
    let n = 700;
    let mut seen = [0; 9];
    for i in 0..n {
        seen[sampling::random_rate(2, 8, f64::from(i) / f64::from(n)) as usize] += 1;
    }
    assert_eq!(seen, [0, 0, 100, 100, 100, 100, 100, 100, 100]);
    assert_eq!(sampling::random_rate(3, 3, 0.999), 3);
}

fn info(num_frames: usize, height_px: usize, width_px: usize) -> VideoInfo {
    VideoInfo { codec: "none".into(), decoder: "none".into(), num_frames, fps: 30.0, width_px, height_px }
}

fn sampling_of(mode: ResampleMode) -> Sampling {
    Sampling { mode, sampling_rate: 2, multigrid_base: Some((32, 224)), ..Sampling::default() }
}

#[test]
fn the_evaluation_grid_fills_the_centre() {
    // A crop of 64 of a short side scaled to 128, in a video of 256 x 512: 128 source pixels in the middle.
    let mut sampling = sampling_of(ResampleMode::Trilinear);
    (sampling.eval_scale_px, sampling.sampling_rate) = (128, 1);
    let choice = sampling.eval(&info(100, 256, 512), &StepShape::square(1, 8, 64, 1));
    assert_eq!((choice.grid.y.start, choice.grid.y.step), (64.5, 2.0));
    assert_eq!((choice.grid.y.lo, choice.grid.y.hi), (64, 191));
    assert_eq!((choice.grid.x.lo, choice.grid.x.hi), (192, 319));
    assert_eq!(choice.frame_indices.len() as u32, choice.grid.t.hi + 1);
    // 8 of 100 frames, in the middle: sample k lies on frame 46 + k, which is frame 1 + k of those decoded.
    let first = f64::from(choice.frame_indices[0]) + f64::from(choice.grid.t.start);
    assert_eq!((first, choice.grid.t.step), (46.0, 1.0));
    assert!(!choice.grid.flip);
}

#[test]
fn samples_two_frames_apart_decode_one_frame_each() {
    let choice = sampling_of(ResampleMode::Trilinear).eval(&info(300, 256, 340), &StepShape::square(1, 32, 224, 1));
    assert_eq!(choice.frame_indices.len(), 32);
    assert!(choice.frame_indices.windows(2).all(|w| w[1] - w[0] == 2), "{:?}", choice.frame_indices);
    assert_eq!((choice.grid.t.start, choice.grid.t.step), (0.0, 1.0));
    // The widened filter needs all frames between.
    let choice =
        sampling_of(ResampleMode::TrilinearAntialias).eval(&info(300, 256, 340), &StepShape::square(1, 32, 224, 1));
    assert!(choice.frame_indices.len() > 64 && choice.grid.t.step == 2.0);
}

#[test]
fn the_peer_grid_is_a_crop_of_the_scaled_image() {
    let sampling = sampling_of(ResampleMode::Peer);
    let choice = sampling.eval(&info(64, 240, 320), &StepShape::square(1, 32, 224, 1));
    // Short side 240 -> 256, long side 341; rows from 16, columns from ceil(117 / 2) = 59.
    let ratio = (240.0 / 256.0, 320.0 / 341.0);
    let start = |offset: f64, ratio: f64| ((offset + 0.5) * ratio - 0.5) as f32;
    assert_eq!(choice.grid.y.start, start(16.0, ratio.0));
    assert_eq!(choice.grid.x.start, start(59.0, ratio.1));
    assert_eq!((choice.grid.y.step, choice.grid.x.step), (ratio.0 as f32, ratio.1 as f32));
    // No more of the image need be there than the samples read.
    let last = |start: f64, ratio: f64| (start + 223.0 * ratio).ceil() as u32;
    let (y, x) = (choice.grid.y, choice.grid.x);
    assert_eq!((y.lo, y.hi), (y.start as u32, last(f64::from(y.start), ratio.0)));
    assert_eq!((x.lo, x.hi), (x.start as u32, last(f64::from(x.start), ratio.1)));
    assert_eq!(choice.frame_indices, sampling::frame_indices(0.0, 64.0, 32, 64));
}

/// The views of a test are those of the formulas: clip by clip, in each the crops from start to end.
#[test]
fn test_views_are_pyslowfasts() {
    let views = Views { num_clips: 10, num_crops: 3 };
    let (video, shape) = (info(300, 256, 340), StepShape::square(1, 16, 224, 1));
    for (frames, use_offset) in [
        (FrameRule::Window, false),
        (FrameRule::Window, true),
        (FrameRule::Segments, false),
        (FrameRule::Stride, false),
    ] {
        let sampling = Sampling { frames, use_offset, ..sampling_of(ResampleMode::Peer) };
        for view in 0..views.count() {
            let (clip, crop) = (view / 3, view % 3);
            let got = sampling.test(&video, &shape, views, view);
            let want = match frames {
                FrameRule::Window => {
                    let start = sampling::test_start(300, 32.0, clip, 10, use_offset);
                    sampling::frame_indices(start, 32.0, 16, 300)
                }
                FrameRule::Segments => sampling::segment_middle_indices(300, 16),
                FrameRule::Stride => {
                    sampling::stride_indices(sampling::stride_test_start(300, 16, 2, clip, 10), 2, 16, 300)
                }
            };
            assert_eq!(got.frame_indices, want, "{frames:?} view {view}");
            // 256 x 340 stays: the crop moves from column 0 by 58 to 116; rows from 16 on.
            assert_eq!((got.grid.y.start, got.grid.x.start), (16.0, [0.0, 58.0, 116.0][crop]));
            assert!(!got.grid.flip);
        }
    }
}

#[test]
fn a_single_crop_lies_where_the_data_set_has_it() {
    let (video, shape) = (info(300, 340, 256), StepShape::square(1, 16, 224, 1));
    let one = Views { num_clips: 1, num_crops: 1 };
    let crops = |single_scale_px, single_crop_idx| TestCrops { scale_px: 300, single_scale_px, single_crop_idx };
    for mode in [ResampleMode::Peer, ResampleMode::Trilinear] {
        let centre = Sampling { test_crops: crops(256, 1), ..sampling_of(mode) }.test(&video, &shape, one, 0);
        let start = Sampling { test_crops: crops(256, 0), ..sampling_of(mode) }.test(&video, &shape, one, 0);
        assert_eq!((centre.grid.y.start, centre.grid.x.start), (58.0, 16.0), "{mode:?}");
        assert_eq!((start.grid.y.start, start.grid.x.start), (0.0, 16.0), "{mode:?}");
    }
}

proptest! {
    /// Whatever the video and the step: frames exist and ascend, samples lie inside their interval, which lies inside
    /// the video.
    #[test]
    fn grids_stay_inside_the_video(
        frames in 1usize..400, height in 1usize..500, width in 1usize..500, t in 1usize..33,
        crop in prop::sample::select(vec![16usize, 64, 112, 158, 224]), mode in 0usize..3, rule in 0usize..3,
        view in 0usize..6, seed in any::<u64>(),
    ) {
        let mode = [ResampleMode::Trilinear, ResampleMode::TrilinearAntialias, ResampleMode::Peer][mode];
        let shape = StepShape::square(1, t, crop, 1);
        let video = info(frames, height, width);
        let frame_rule = [FrameRule::Window, FrameRule::Segments, FrameRule::Stride][rule];
        let sampling = Sampling { frames: frame_rule, ..sampling_of(mode) };
        let views = Views { num_clips: 2, num_crops: 3 };
        for choice in [
            sampling.train(&video, &shape, &mut Draws::new(seed, 0, 0)),
            sampling.eval(&video, &shape),
            sampling.test(&video, &shape, views, view),
        ] {
            let indices = &choice.frame_indices;
            prop_assert!(!indices.is_empty() && indices.windows(2).all(|w| w[0] <= w[1]));
            prop_assert!((indices[indices.len() - 1] as usize) < frames);
            let grid = choice.grid;
            for (axis, dim) in [(grid.t, indices.len()), (grid.y, height), (grid.x, width)] {
                prop_assert!(axis.lo <= axis.hi && (axis.hi as usize) < dim, "{axis:?} of {dim}");
                prop_assert!(axis.step > 0.0 && axis.start.is_finite());
            }
            for axis in [grid.y, grid.x] {
                let last = axis.start + axis.step * (crop - 1) as f32;
                prop_assert!(axis.start >= axis.lo as f32 - 0.51, "{axis:?}");
                prop_assert!(last <= axis.hi as f32 + 0.51, "{axis:?}: last {last}");
            }
        }
    }
}
