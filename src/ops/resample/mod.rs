//! Resampling of decoded clips to the grid of a training step: crop, trilinear in (t, y, x), flip, normalise, cast, for
//! all clips of a batch and all pathways in one launch.

use crate::device::{Slice, Stream, Tensor};
use crate::error::{Error, Result};

/// Filter along the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Linear in t, y and x.
    Trilinear,
    /// Linear with its support widened by the stride: no aliasing when shrinking.
    TrilinearAntialias,
    /// Nearest frame in t (the position truncated, as PySlowFast), linear in y and x.
    NearestInTime,
}

/// One axis of a sampling grid: sample `i` lies at `start + i * step` source pixels (pixel centres at integers), and taps
/// are clamped to `lo ..= hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Position of sample 0.
    pub start: f32,
    /// Distance of two samples.
    pub step: f32,
    /// First pixel that may be read.
    pub lo: u32,
    /// Last pixel that may be read, inclusive.
    pub hi: u32,
}

/// The sampling grid of one clip: where its samples lie in the source video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipGrid {
    /// Frames.
    pub t: Axis,
    /// Rows.
    pub y: Axis,
    /// Columns.
    pub x: Axis,
    /// Mirror the columns of the output.
    pub flip: bool,
}

/// One decoded clip in device memory: `[frames][height][width][3]` uint8.
#[derive(Clone, Debug)]
pub struct SourceClip {
    /// The bytes.
    pub memory: Slice,
    /// Frames.
    pub frames: usize,
    /// Rows.
    pub height_px: usize,
    /// Columns.
    pub width_px: usize,
    /// Where it is sampled.
    pub grid: ClipGrid,
}

/// How values are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Resample {
    /// Filter along the axes.
    pub filter: Filter,
    /// Subtracted, per channel, in units of 0..1.
    pub mean: [f32; 3],
    /// Divided by, per channel.
    pub std: [f32; 3],
}

/// A pathway: the output `[n][frames][h][w][c]` (3 channels used, any further stored channels become 0), and which of the
/// grid's T samples its frames are.
#[derive(Clone, Debug)]
pub struct Pathway<'a> {
    /// Output, f32, bf16 or f16.
    pub output: &'a Tensor,
    /// Sample index in t of each output frame.
    pub frame_indices: &'a [u32],
}

/// Resamples all clips into all pathways.
pub fn forward(stream: &Stream, op: &Resample, clips: &[SourceClip], pathways: &[Pathway<'_>]) -> Result<()> {
    let _ = (stream, op, clips, pathways);
    Err(Error::unsupported("resample", "stub"))
}
