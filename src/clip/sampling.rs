//! Which frames and which crop: PySlowFast's rules as pure functions of the video's size and of uniform draws in [0, 1).
//! Sources: `slowfast/datasets/decoder.py`, `kinetics.py`, `ssv2.py`, `charades.py`, `transform.py`, `utils.py` and the use
//! of `random` therein.

/// `n` evenly spaced values from `start` to `end`, both included, with torch's f32 arithmetic: counted from the start in
/// the first half and from the end in the second. (In f64 some truncated frame indices would differ.)
pub fn linspace_f32(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    let value = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(value).collect()
}

/// Length of a clip in frames of the video (a real number, at least 1): `num_frames` samples, `sampling_rate` frames
/// apart at `target_fps`, in a video of `fps`.
pub fn clip_size_frames(sampling_rate: u32, num_frames: usize, target_fps: f64, fps: f64) -> f64 {
    // The order of the operations is the peer's.
    (f64::from(sampling_rate) * num_frames as f64 / target_fps * fps).max(1.0)
}

/// First frame (a real number) of a clip for training: uniform over the positions at which it fits; `u` in [0, 1).
pub fn train_start(video_frames: usize, clip_size_frames: f64, u: f64) -> f64 {
    u * (video_frames as f64 - clip_size_frames).max(0.0)
}

/// First frame of view `clip_idx` of `num_clips` for evaluation. With `use_offset` the views reach from the very start
/// to the very end and a single view stands in the middle; without it view k starts at k / `num_clips` of the room.
pub fn test_start(
    video_frames: usize,
    clip_size_frames: f64,
    clip_idx: usize,
    num_clips: usize,
    use_offset: bool,
) -> f64 {
    let room = (video_frames as f64 - clip_size_frames).max(0.0);
    match (use_offset, num_clips) {
        (false, _) => room * clip_idx as f64 / num_clips.max(1) as f64,
        (true, 0 | 1) => (room / 2.0).floor(),
        (true, _) => clip_idx as f64 * (room / (num_clips - 1) as f64).floor(),
    }
}

/// The frames of a clip: `num_frames` positions from `start` to `start + clip_size_frames - 1`, clamped to the video and
/// truncated.
pub fn frame_indices(start: f64, clip_size_frames: f64, num_frames: usize, video_frames: usize) -> Vec<u32> {
    let last = video_frames.saturating_sub(1) as f32;
    let end = start + clip_size_frames - 1.0;
    linspace_f32(start as f32, end as f32, num_frames).into_iter().map(|p| p.clamp(0.0, last) as u32).collect()
}

/// Segment `k` of the `num_frames` that a video is cut into for Something-Something V2: its first and last frame, both
/// included. Neighbours share a frame.
pub fn segment(video_frames: usize, num_frames: usize, k: usize) -> (u32, u32) {
    let length = video_frames.saturating_sub(1) as f64 / num_frames as f64;
    let bound = |k: usize| (length * k as f64).round_ties_even() as u32;
    (bound(k), bound(k + 1))
}

/// One frame out of each segment for training; `draw` gives uniform numbers in [0, 1), one a segment.
pub fn segment_train_indices(video_frames: usize, num_frames: usize, draw: &mut dyn FnMut() -> f64) -> Vec<u32> {
    let pick = |(first, last): (u32, u32), u: f64| first + ((u * f64::from(last - first + 1)) as u32).min(last - first);
    (0..num_frames).map(|k| pick(segment(video_frames, num_frames, k), draw())).collect()
}

/// The middle frame of each segment, rounded down: validation, and every view of a test.
pub fn segment_middle_indices(video_frames: usize, num_frames: usize) -> Vec<u32> {
    let middle = |(first, last): (u32, u32)| (first + last) / 2;
    (0..num_frames).map(|k| middle(segment(video_frames, num_frames, k))).collect()
}

/// First frame of a clip of every `rate`-th frame for training on Charades: uniform over the whole frames at which it
/// fits; where the video is shorter than the clip, over those at which it covers the video (negative). `u` in [0, 1).
pub fn stride_train_start(video_frames: usize, num_frames: usize, rate: u32, u: f64) -> i64 {
    let room = stride_room(video_frames, num_frames, rate);
    let (low, high) = (room.min(0), room.max(0));
    low + ((u * (high - low + 1) as f64) as i64).min(high - low)
}

/// First frame of view `clip_idx` of `num_clips` of a test on Charades: from the very start to the very end, by whole
/// frames. A single view stands in the middle (PySlowFast divides by zero there).
pub fn stride_test_start(video_frames: usize, num_frames: usize, rate: u32, clip_idx: usize, num_clips: usize) -> i64 {
    let room = stride_room(video_frames, num_frames, rate).max(0) as f64;
    let start = match num_clips {
        0 | 1 => room / 2.0,
        _ => room / (num_clips - 1) as f64 * clip_idx as f64,
    };
    start.round_ties_even() as i64
}

/// Every `rate`-th frame from `start` on; before and behind the video its first and last frame.
pub fn stride_indices(start: i64, rate: u32, num_frames: usize, video_frames: usize) -> Vec<u32> {
    let last = video_frames.saturating_sub(1) as i64;
    (0..num_frames as i64).map(|i| (start + i * i64::from(rate)).clamp(0, last) as u32).collect()
}

/// Frames of the video beyond those that a clip spans; negative where the video is shorter.
fn stride_room(video_frames: usize, num_frames: usize, rate: u32) -> i64 {
    let clip = num_frames.saturating_sub(1) as i64 * i64::from(rate) + 1;
    video_frames as i64 - clip
}

/// Which of the T frames the slow pathway sees. Not every `alpha`-th frame: T / alpha positions from the first to the
/// last, truncated.
pub fn slow_pathway_indices(num_frames: usize, alpha: usize) -> Vec<u32> {
    let last = num_frames.saturating_sub(1) as f32;
    linspace_f32(0.0, last, num_frames / alpha.max(1)).into_iter().map(|p| p as u32).collect()
}

/// Largest sampling rate of the long cycle: as many times the usual rate as T is smaller than the default T, so that
/// some clips keep the full span.
pub fn long_cycle_max_rate(sampling_rate: u32, default_frames: usize, num_frames: usize) -> u32 {
    sampling_rate * (default_frames / num_frames.max(1)).max(1) as u32
}

/// A rate drawn uniformly from the integers `sampling_rate ..= max_rate`; `u` in [0, 1).
pub fn random_rate(sampling_rate: u32, max_rate: u32, u: f64) -> u32 {
    let count = max_rate.max(sampling_rate) - sampling_rate + 1;
    sampling_rate + ((u * f64::from(count)) as u32).min(count - 1)
}

/// Lower jitter scale at a crop of `crop_px`: it shrinks with the crop, the upper scale stays (a wider span for coarser
/// grids).
pub fn multigrid_min_scale(min_scale_px: u32, crop_px: usize, default_crop_px: usize) -> u32 {
    (f64::from(min_scale_px) * crop_px as f64 / default_crop_px as f64).round_ties_even() as u32
}

/// Length of the short side after the random scaling; uniform, or uniform in 1 / length (`inverse_uniform`).
pub fn jitter_short_side_px(min_scale_px: u32, max_scale_px: u32, inverse_uniform: bool, u: f64) -> u32 {
    let (min, max) = (f64::from(min_scale_px), f64::from(max_scale_px));
    let side = if inverse_uniform { 1.0 / (1.0 / max + u * (1.0 / min - 1.0 / max)) } else { min + u * (max - min) };
    side.round_ties_even() as u32
}

/// (height, width) of the image scaled so that its short side is `short_side_px`; the long side is rounded down. An
/// image whose short side has that length already is left alone.
pub fn scaled_size_px(height_px: usize, width_px: usize, short_side_px: u32) -> (usize, usize) {
    let size = short_side_px as usize;
    let long = |long: usize, short: usize| (long as f64 / short as f64 * size as f64).floor() as usize;
    if height_px.min(width_px) == size {
        (height_px, width_px)
    } else if width_px < height_px {
        (long(height_px, width_px), size)
    } else {
        (size, long(width_px, height_px))
    }
}

/// A crop of a scaled image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// (height, width) of the scaled image.
    pub scaled_px: (usize, usize),
    /// (row, column) of the crop's first pixel in the scaled image.
    pub offset_px: (usize, usize),
    /// Whether the crop is mirrored.
    pub flip: bool,
}

/// What the random crop of training may choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropJitter {
    /// Shortest short side.
    pub min_scale_px: u32,
    /// Longest short side.
    pub max_scale_px: u32,
    /// (height, width) of the crop.
    pub crop_px: (usize, usize),
    /// Draw uniformly in 1 / length.
    pub inverse_uniform: bool,
    /// Mirror half of the clips.
    pub random_flip: bool,
}

/// The random scale, crop and flip of training. Draws in this order: scale, row, column, flip; a draw that is not
/// needed (nowhere to move, no flip) is not made. The last possible offset never comes up: the peer draws with an
/// exclusive upper bound.
pub fn train_crop(height_px: usize, width_px: usize, jitter: &CropJitter, draw: &mut dyn FnMut() -> f64) -> Crop {
    let side = jitter_short_side_px(jitter.min_scale_px, jitter.max_scale_px, jitter.inverse_uniform, draw());
    let scaled_px = scaled_size_px(height_px, width_px, side);
    let mut offset = |dim: usize, crop: usize| match dim.saturating_sub(crop) {
        0 => 0,
        room => ((draw() * room as f64) as usize).min(room - 1),
    };
    let offset_px = (offset(scaled_px.0, jitter.crop_px.0), offset(scaled_px.1, jitter.crop_px.1));
    Crop { scaled_px, offset_px, flip: jitter.random_flip && draw() < 0.5 }
}

/// The crop of evaluation: short side `scale_px`, crop in the middle (`spatial_idx` 1) or at the start (0) or end (2) of
/// the longer side.
pub fn test_crop(
    height_px: usize,
    width_px: usize,
    scale_px: u32,
    crop_px: (usize, usize),
    spatial_idx: usize,
) -> Crop {
    let scaled_px = scaled_size_px(height_px, width_px, scale_px);
    let room = (scaled_px.0.saturating_sub(crop_px.0), scaled_px.1.saturating_sub(crop_px.1));
    let mut offset_px = (room.0.div_ceil(2), room.1.div_ceil(2));
    let longer = if scaled_px.0 > scaled_px.1 { (&mut offset_px.0, room.0) } else { (&mut offset_px.1, room.1) };
    match spatial_idx {
        0 => *longer.0 = 0,
        2 => *longer.0 = longer.1,
        _ => {}
    }
    Crop { scaled_px, offset_px, flip: false }
}
