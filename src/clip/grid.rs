//! From the rules of [`sampling`] to what one clip of one step needs: the frames to decode, and the
//! [`ClipGrid`] that the resampling kernel lays over them.

use super::sampling::{self, Crop, CropJitter};
use super::{Draws, VideoInfo};
use crate::ops::resample::{Axis, ClipGrid, Filter, taps};
use crate::shape::StepShape;

/// How a clip is brought to the step's grid (`VCYCLE.RESAMPLE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResampleMode {
    /// Samples at pixel centres of equal cells that fill the crop box; linear in t, y and x, taps inside the box.
    Trilinear,
    /// The same positions, the filter widened by the stride where the source is finer than the grid.
    TrilinearAntialias,
    /// PySlowFast's rounding exactly: truncated frame indices, image scaled to whole pixels, then cropped at whole pixels.
    Peer,
}

impl ResampleMode {
    /// The filter that [`ops::resample`](crate::ops::resample) is to use.
    pub fn filter(self) -> Filter {
        match self {
            ResampleMode::Trilinear => Filter::Trilinear,
            ResampleMode::TrilinearAntialias => Filter::TrilinearAntialias,
            ResampleMode::Peer => Filter::NearestInTime,
        }
    }
}

/// Which frames of a video make a clip; PySlowFast has one rule a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameRule {
    /// Kinetics: evenly spaced in a window whose length in seconds is fixed by rate and frame rate.
    Window,
    /// Something-Something V2: one frame out of each of T equal segments of the whole video. Whole frames in every
    /// [`ResampleMode`]: their distances differ, so nothing is interpolated between them.
    Segments,
    /// Charades: every `sampling_rate`-th frame, whatever the frame rate. Whole frames in every [`ResampleMode`].
    Stride,
}

/// The views of one video in a test: `num_clips` in time, each with `num_crops` in space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Views {
    /// `TEST.NUM_ENSEMBLE_VIEWS`.
    pub num_clips: usize,
    /// `TEST.NUM_SPATIAL_CROPS`.
    pub num_crops: usize,
}

impl Views {
    /// Views in all.
    pub fn count(&self) -> usize {
        self.num_clips * self.num_crops
    }
}

/// Where the single crop lies when a test takes one a clip, and how large the picture is then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestCrops {
    /// Short side before the crop (`DATA.TEST_CROP_SIZE`).
    pub scale_px: u32,
    /// The same with one crop a clip; Kinetics takes the smaller jitter scale.
    pub single_scale_px: u32,
    /// Which of start, centre and end (0, 1, 2) the single crop is: Kinetics takes the centre, PySlowFast's other data
    /// sets the start.
    pub single_crop_idx: usize,
}

/// What a run samples from its videos; the same for all steps, a step adds its [`StepShape`].
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// How a clip is brought to the grid.
    pub mode: ResampleMode,
    /// Which frames make a clip.
    pub frames: FrameRule,
    /// Distance of two samples in frames at `target_fps` (`DATA.SAMPLING_RATE`); of the video's own with
    /// [`FrameRule::Stride`].
    pub sampling_rate: u32,
    /// Frame rate that `sampling_rate` is meant at (`DATA.TARGET_FPS`).
    pub target_fps: f64,
    /// Shortest and longest short side of the random scaling (`DATA.TRAIN_JITTER_SCALES`).
    pub jitter_scales_px: (u32, u32),
    /// Draw the scale uniformly in 1 / length (`DATA.INV_UNIFORM_SAMPLE`).
    pub inverse_uniform: bool,
    /// Mirror half of the training clips (`DATA.RANDOM_FLIP`).
    pub random_flip: bool,
    /// Short side for evaluation, before the centre crop.
    pub eval_scale_px: u32,
    /// Crops of a test.
    pub test_crops: TestCrops,
    /// Views of a test begin at whole frames, from the very start to the very end (`DATA.USE_OFFSET_SAMPLING`).
    pub use_offset: bool,
    /// (T, crop) of the base shape when a multigrid schedule runs: coarser shapes then span more of the source, in time
    /// by a random rate up to `rate * T_base / T`, in space by a lower minimal scale. `None`: neither.
    pub multigrid_base: Option<(usize, usize)>,
    /// Hand the frames on as blue, green, red.
    pub bgr: bool,
}

impl Default for Sampling {
    /// PySlowFast's defaults, for Kinetics.
    fn default() -> Sampling {
        Sampling {
            mode: ResampleMode::Trilinear,
            frames: FrameRule::Window,
            sampling_rate: 8,
            target_fps: 30.0,
            jitter_scales_px: (256, 320),
            inverse_uniform: false,
            random_flip: true,
            eval_scale_px: 256,
            test_crops: TestCrops { scale_px: 256, single_scale_px: 256, single_crop_idx: 1 },
            use_offset: false,
            multigrid_base: None,
            bgr: false,
        }
    }
}

/// What one clip of one step needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipChoice {
    /// Frames to decode, ascending, an index may repeat.
    pub frame_indices: Vec<u32>,
    /// Where the step's samples lie in those frames; the t axis counts them as they are listed.
    pub grid: ClipGrid,
}

/// The frames of a clip before the picture is cropped: which to decode, and the t axis over them.
type FrameChoice = (Vec<u32>, Axis);

impl Sampling {
    /// A random clip for training. Draws rate, start, scale, row, column, flip in this order; with
    /// [`FrameRule::Segments`] a frame of each segment takes the place of rate and start.
    pub fn train(&self, info: &VideoInfo, shape: &StepShape, draws: &mut Draws) -> ClipChoice {
        let mut max_rate = self.sampling_rate;
        let (mut min_scale_px, max_scale_px) = self.jitter_scales_px;
        if let Some((base_frames, base_crop_px)) = self.multigrid_base {
            max_rate = sampling::long_cycle_max_rate(max_rate, base_frames, shape.frames);
            let crop_px = shape.height_px.min(shape.width_px);
            min_scale_px = sampling::multigrid_min_scale(min_scale_px, crop_px, base_crop_px);
        }
        let frames = self.train_frames(info, shape, max_rate, draws);
        let jitter = CropJitter {
            min_scale_px,
            max_scale_px,
            crop_px: (shape.height_px, shape.width_px),
            inverse_uniform: self.inverse_uniform,
            random_flip: self.random_flip,
        };
        let crop = match self.mode {
            ResampleMode::Peer => {
                let crop = sampling::train_crop(info.height_px, info.width_px, &jitter, &mut || draws.unit());
                peer_axes(info, shape, &crop)
            }
            _ => {
                let side =
                    sampling::jitter_short_side_px(min_scale_px, max_scale_px, self.inverse_uniform, draws.unit());
                let (y, x) = box_axes(info, shape, side, (draws.unit(), draws.unit()));
                (y, x, self.random_flip && draws.unit() < 0.5)
            }
        };
        choice(frames, crop)
    }

    fn train_frames(&self, info: &VideoInfo, shape: &StepShape, max_rate: u32, draws: &mut Draws) -> FrameChoice {
        let (video_frames, num_frames) = (info.num_frames, shape.frames);
        if self.frames == FrameRule::Segments {
            return whole(sampling::segment_train_indices(video_frames, num_frames, &mut || draws.unit()));
        }
        let rate = match self.multigrid_base {
            Some(_) => sampling::random_rate(self.sampling_rate, max_rate, draws.unit()),
            None => self.sampling_rate,
        };
        if self.frames == FrameRule::Stride {
            let start = sampling::stride_train_start(video_frames, num_frames, rate, draws.unit());
            return whole(sampling::stride_indices(start, rate, num_frames, video_frames));
        }
        let size = sampling::clip_size_frames(rate, num_frames, self.target_fps, info.fps);
        self.window(info, shape, sampling::train_start(video_frames, size, draws.unit()), size)
    }

    /// The clip of evaluation: the middle of the video, the centre of the image, no flip.
    pub fn eval(&self, info: &VideoInfo, shape: &StepShape) -> ClipChoice {
        let frames = self.test_frames(info, shape, (0, 1), true);
        choice(frames, self.test_crop(info, shape, self.eval_scale_px, 1))
    }

    /// View `view` of a test, `view = clip * num_crops + crop` as PySlowFast counts them: clip `clip` of `num_clips` in time,
    /// crop `crop` along the longer side (start, centre, end of three).
    pub fn test(&self, info: &VideoInfo, shape: &StepShape, views: Views, view: usize) -> ClipChoice {
        let num_crops = views.num_crops.max(1);
        let (clip_idx, crop_idx) = (view / num_crops, view % num_crops);
        let (scale_px, crop_idx) = match num_crops {
            1 => (self.test_crops.single_scale_px, self.test_crops.single_crop_idx),
            _ => (self.test_crops.scale_px, crop_idx),
        };
        let frames = self.test_frames(info, shape, (clip_idx, views.num_clips), self.use_offset);
        choice(frames, self.test_crop(info, shape, scale_px, crop_idx))
    }

    fn test_frames(
        &self,
        info: &VideoInfo,
        shape: &StepShape,
        (clip_idx, num_clips): (usize, usize),
        use_offset: bool,
    ) -> FrameChoice {
        let (rate, num_frames, video_frames) = (self.sampling_rate, shape.frames, info.num_frames);
        match self.frames {
            FrameRule::Segments => whole(sampling::segment_middle_indices(video_frames, num_frames)),
            FrameRule::Stride => {
                let start = sampling::stride_test_start(video_frames, num_frames, rate, clip_idx, num_clips);
                whole(sampling::stride_indices(start, rate, num_frames, video_frames))
            }
            FrameRule::Window => {
                let size = sampling::clip_size_frames(rate, num_frames, self.target_fps, info.fps);
                let start = sampling::test_start(video_frames, size, clip_idx, num_clips, use_offset);
                self.window(info, shape, start, size)
            }
        }
    }

    fn test_crop(&self, info: &VideoInfo, shape: &StepShape, scale_px: u32, crop_idx: usize) -> (Axis, Axis, bool) {
        if self.mode == ResampleMode::Peer {
            let crop_px = (shape.height_px, shape.width_px);
            let crop = sampling::test_crop(info.height_px, info.width_px, scale_px, crop_px, crop_idx);
            return peer_axes(info, shape, &crop);
        }
        let along = [0.0, 0.5, 1.0][crop_idx.min(2)];
        let place = if info.height_px > info.width_px { (along, 0.5) } else { (0.5, along) };
        let (y, x) = box_axes(info, shape, scale_px, place);
        (y, x, false)
    }

    /// `size` frames from frame `start` on.
    fn window(&self, info: &VideoInfo, shape: &StepShape, start: f64, size: f64) -> FrameChoice {
        match self.mode {
            ResampleMode::Peer => whole(sampling::frame_indices(start, size, shape.frames, info.num_frames)),
            mode => time_axis(start, size / shape.frames as f64, shape.frames, info.num_frames, mode),
        }
    }
}

/// One decoded frame a sample.
fn whole(indices: Vec<u32>) -> FrameChoice {
    let t = Axis::identity(indices.len());
    (indices, t)
}

fn choice((frame_indices, t): FrameChoice, (y, x, flip): (Axis, Axis, bool)) -> ClipChoice {
    ClipChoice { frame_indices, grid: ClipGrid { t, y, x, flip } }
}

/// `num_samples` cells of `step` frames from frame `start` on, a sample in the centre of each.
///
/// Where samples are less than 2 frames apart, or the filter covers all frames between them, the whole run of frames is
/// decoded and positions stay fractional. Farther apart only one frame a sample is decoded, the nearest: that moves a
/// sample by half a frame, a quarter of the stride at most, and halves what is decoded, copied and uploaded.
fn time_axis(start: f64, step: f64, num_samples: usize, video_frames: usize, mode: ResampleMode) -> (Vec<u32>, Axis) {
    let last = video_frames.saturating_sub(1) as f64;
    let first = start + 0.5 * step - 0.5;
    if step >= 2.0 && mode == ResampleMode::Trilinear {
        let nearest = |i: usize| (first + i as f64 * step).round().clamp(0.0, last) as u32;
        return ((0..num_samples).map(nearest).collect(), Axis::identity(num_samples));
    }
    let support = if mode == ResampleMode::TrilinearAntialias { step.max(1.0) } else { 1.0 };
    let final_position = first + step * num_samples.saturating_sub(1) as f64;
    let lo = (first - support).ceil().max(0.0).min(last);
    let hi = (final_position + support).floor().min(last).max(lo);
    let axis = Axis { start: (first - lo) as f32, step: step as f32, lo: 0, hi: (hi - lo) as u32 };
    ((lo as u32..=hi as u32).collect(), axis)
}

/// Crop-then-resize without rounding: the box is `crop * short side / short_side_px` source pixels, placed at the
/// fraction `place` of the room it has, filled by equal cells. Taps stay inside the box. A crop that does not fit
/// is scaled to fit.
fn box_axes(info: &VideoInfo, shape: &StepShape, short_side_px: u32, place: (f64, f64)) -> (Axis, Axis) {
    let (height, width) = (info.height_px as f64, info.width_px as f64);
    let cell = (height.min(width) / f64::from(short_side_px.max(1)))
        .min(height / shape.height_px as f64)
        .min(width / shape.width_px as f64);
    let axis = |dim: f64, samples: usize, place: f64| {
        let length = cell * samples as f64;
        let low = place * (dim - length).max(0.0);
        let hi = (low + length - 1e-9).ceil().min(dim) - 1.0;
        Axis {
            start: (low + 0.5 * cell - 0.5) as f32,
            step: cell as f32,
            lo: low.floor() as u32,
            hi: hi.max(low.floor()) as u32,
        }
    };
    (axis(height, shape.height_px, place.0), axis(width, shape.width_px, place.1))
}

/// Resize-then-crop as the peer does it: the scaled image has whole pixels, the crop starts at one; taps may reach over
/// the whole image.
fn peer_axes(info: &VideoInfo, shape: &StepShape, crop: &Crop) -> (Axis, Axis, bool) {
    let axis = |size: usize, scaled: usize, offset: usize, samples: usize| {
        let axis = Axis::resize_then_crop(size, scaled, offset);
        // What is read of the image: the positions are where they were, and no more of it need be decoded.
        let (first, last) =
            (taps(Filter::Trilinear, &axis, 0, false), taps(Filter::Trilinear, &axis, samples as u32 - 1, false));
        Axis { lo: first.first as u32, hi: (last.first + last.weights.len() - 1) as u32, ..axis }
    };
    (
        axis(info.height_px, crop.scaled_px.0, crop.offset_px.0, shape.height_px.max(1)),
        axis(info.width_px, crop.scaled_px.1, crop.offset_px.1, shape.width_px.max(1)),
        crop.flip,
    )
}
