//! Resampling of decoded clips to the grid of a training step: crop, trilinear in (t, y, x), flip, normalise, cast, for
//! all clips of a batch and all pathways in one launch.
//!
//! Output element `[n][f][y][x][c]` of a pathway is `(v / 255 - mean[c]) / std[c]`, where `v` is clip `n` filtered at
//! sample `frame_indices[f]` of its t axis, `y` of its y axis and `x` of its x axis (`w - 1 - x` with flip).
//! What the two ways of cropping look like:
//!
//! | wanted | t, y, x axis |
//! |---|---|
//! | crop a box, then resize it | [`Axis::crop_then_resize`]: taps stay inside the box |
//! | resize the image, then crop (PySlowFast, `datasets/utils.py::spatial_sampling`) | [`Axis::resize_then_crop`]: taps stay inside the image |
//! | one sample a source frame | [`Axis::identity`] |
//!
//! PySlowFast's frames (`datasets/decoder.py::temporal_sampling`) are truncated positions of an f32 `linspace`, which
//! `start + i * step` does not reproduce to the last bit: pick those frames first (no others need to be decoded) and let
//! the t axis be [`Axis::identity`].

mod cpu;
mod launch;
mod params;
mod plan;
pub mod reference;
mod taps;

pub use taps::{Taps, taps};

use crate::device::{DType, Device, Slice, Stream, Tensor};
use crate::error::{Error, Result};

const OP: &str = "resample forward";
/// Size of a clip's entry in the table.
const CLIP_ENTRY_BYTES: usize = size_of::<params::ClipEntry>();
/// Size of a frame's entry in the table.
const FRAME_ENTRY_BYTES: usize = size_of::<params::FrameEntry>();

/// Filter along the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Linear in t, y and x.
    Trilinear,
    /// Linear with its support widened by the stride: no aliasing when shrinking. As PyTorch's and PIL's: taps outside
    /// the clamp interval are dropped, and the weights add up to 1.
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

impl Axis {
    /// Sample `i` is pixel `i` of `size`.
    pub fn identity(size: usize) -> Axis {
        Axis { start: 0.0, step: 1.0, lo: 0, hi: size.saturating_sub(1) as u32 }
    }

    /// The pixels `begin .. end` resized to `samples` samples (half-pixel centres); nothing outside of them is read.
    pub fn crop_then_resize(begin: usize, end: usize, samples: usize) -> Axis {
        let step = end.saturating_sub(begin) as f64 / samples as f64;
        let start = begin as f64 + 0.5 * step - 0.5;
        Axis { start: start as f32, step: step as f32, lo: begin as u32, hi: end.saturating_sub(1) as u32 }
    }

    /// An image of `size` pixels resized to `resized` (half-pixel centres, as PyTorch with `align_corners=False`), of
    /// which the samples from `offset` on are kept.
    pub fn resize_then_crop(size: usize, resized: usize, offset: usize) -> Axis {
        let step = size as f64 / resized as f64;
        let start = (offset as f64 + 0.5) * step - 0.5;
        Axis { start: start as f32, step: step as f32, lo: 0, hi: size.saturating_sub(1) as u32 }
    }
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

/// One decoded clip in device memory: `[frames][height][width][3]` uint8, whole frames or one box of all of them.
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
    /// (row, column) of its first pixel in the frames that the grid counts in: (0, 0) for whole frames. The samples of a box
    /// are to the bit those of its frames.
    pub origin_px: (usize, usize),
    /// Where it is sampled.
    pub grid: ClipGrid,
}

impl SourceClip {
    /// Where its memory would begin if pixel (0, 0) of the frames were in it, in bytes before its first one.
    fn origin_bytes(&self) -> Option<usize> {
        let (top, left) = self.origin_px;
        top.checked_mul(self.width_px)?.checked_add(left)?.checked_mul(3)
    }
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

impl Resample {
    /// `value = byte * multiply[c] + add[c]`, rounded once to f32.
    pub(crate) fn multiply_add(&self) -> ([f32; 3], [f32; 3]) {
        let multiply = self.std.map(|s| (1.0 / (255.0 * f64::from(s))) as f32);
        let add = std::array::from_fn(|c| (-f64::from(self.mean[c]) / f64::from(self.std[c])) as f32);
        (multiply, add)
    }
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

/// Size of the table of clips and frames that the kernel reads, for that many clips, and frames in all pathways together.
pub const fn workspace_bytes(num_clips: usize, num_frames: usize) -> usize {
    num_clips * CLIP_ENTRY_BYTES + num_frames * FRAME_ENTRY_BYTES
}

/// Resamples all clips into all pathways. Outputs are overwritten; channels beyond the third become 0.
///
/// All outputs have `clips.len()` clips and the same height, width, channels and element type. `workspace` is uint8 and
/// holds at least [`workspace_bytes`]; it must not be in use by work still queued on another stream. The table is copied
/// into it by the call; see [`forward_with_table`] for steps in which nothing waits.
///
/// # Errors
/// Shapes that do not fit together, clips of another size than their memory, clamp intervals outside a clip, grids that
/// are not finite, a `std` that is zero, a workspace that is too small.
pub fn forward(
    stream: &Stream,
    op: &Resample,
    clips: &[SourceClip],
    pathways: &[Pathway<'_>],
    workspace: &Slice,
) -> Result<()> {
    run(stream, op, clips, pathways, workspace, || {
        let mut table = vec![0; table_bytes(clips, pathways)];
        launch::write_table(clips, pathways, &mut table);
        stream.write_small(&table, workspace)
    })
}

/// The table for [`forward_with_table`], written to the start of `to`, which holds at least [`workspace_bytes`]. Clips say where
/// they will lie; they need not be there yet.
///
/// # Errors
/// A `to` that is too small.
pub fn write_table(clips: &[SourceClip], pathways: &[Pathway<'_>], to: &mut [u8]) -> Result<()> {
    let needed = table_bytes(clips, pathways);
    if to.len() < needed {
        return Err(Error::shape(OP, format!("the table has {needed} bytes, got room for {}", to.len())));
    }
    launch::write_table(clips, pathways, to);
    Ok(())
}

/// [`forward`] with the table of [`write_table`] for the same clips and pathways already on the device (it goes up with the
/// clips): one launch and nothing else. On `Cpu` the table is not looked at.
///
/// # Errors
/// As [`forward`].
pub fn forward_with_table(
    stream: &Stream,
    op: &Resample,
    clips: &[SourceClip],
    pathways: &[Pathway<'_>],
    table: &Slice,
) -> Result<()> {
    run(stream, op, clips, pathways, table, || Ok(()))
}

/// `fill` brings the table to a device that reads it.
fn run(
    stream: &Stream,
    op: &Resample,
    clips: &[SourceClip],
    pathways: &[Pathway<'_>],
    table: &Slice,
    fill: impl FnOnce() -> Result<()>,
) -> Result<()> {
    check(op, clips, pathways)?;
    check_table(clips, pathways, table)?;
    if *stream.device() == Device::Cpu {
        return cpu::forward(op, clips, pathways);
    }
    fill()?;
    launch::forward(stream, op, clips, pathways, table)
}

fn table_bytes(clips: &[SourceClip], pathways: &[Pathway<'_>]) -> usize {
    workspace_bytes(clips.len(), pathways.iter().map(|p| p.frame_indices.len()).sum())
}

fn check_table(clips: &[SourceClip], pathways: &[Pathway<'_>], table: &Slice) -> Result<()> {
    let needed = table_bytes(clips, pathways);
    if table.dtype() == DType::U8 && table.len() >= needed {
        return Ok(());
    }
    let (len, dtype) = (table.len(), table.dtype());
    Err(Error::shape(OP, format!("the workspace must hold {needed} x U8, got {len} x {dtype:?}")))
}

fn check(op: &Resample, clips: &[SourceClip], pathways: &[Pathway<'_>]) -> Result<()> {
    let fail = |message: String| Err(Error::shape(OP, message));
    if op.std.iter().any(|s| !s.is_normal()) || op.mean.iter().any(|m| !m.is_finite()) {
        return fail(format!("mean must be finite and std neither 0 nor infinite, got {:?} and {:?}", op.mean, op.std));
    }
    for (i, clip) in clips.iter().enumerate() {
        check_clip(clip).or_else(|message| fail(format!("clip {i}: {message}")))?;
    }
    let Some(first) = pathways.first() else { return Ok(()) };
    if pathways.len() > params::MAX_PATHWAYS {
        return fail(format!("at most {} pathways, got {}", params::MAX_PATHWAYS, pathways.len()));
    }
    for (i, pathway) in pathways.iter().enumerate() {
        let (shape, expected) = (pathway.output.shape(), first.output.shape());
        if [shape.t, shape.h, shape.w, pathway.output.pitch_c()].iter().any(|size| *size > i32::MAX as usize)
            || pathway.frame_indices.iter().any(|i| *i > i32::MAX as u32)
        {
            return fail(format!("pathway {i}: sizes, pitch and sample indices must be below 2^31, got {shape}"));
        }
        if shape.n != clips.len() || shape.t != pathway.frame_indices.len() || shape.c < 3 {
            return fail(format!(
                "pathway {i}: expected an output [{},{},h,w,c] with c >= 3, got {shape}",
                clips.len(),
                pathway.frame_indices.len()
            ));
        }
        if (shape.h, shape.w, shape.c) != (expected.h, expected.w, expected.c)
            || pathway.output.dtype() != first.output.dtype()
        {
            return fail(format!(
                "pathway {i}: height, width, channels and type must be those of pathway 0 ({expected} {:?}), got {shape} {:?}",
                first.output.dtype(),
                pathway.output.dtype()
            ));
        }
    }
    match first.output.dtype() {
        DType::F32 | DType::Bf16 | DType::F16 => Ok(()),
        other => fail(format!("output must be f32, bf16 or f16, got {other:?}")),
    }
}

fn check_clip(clip: &SourceClip) -> Result<(), String> {
    let SourceClip { memory, frames, height_px, width_px, origin_px, grid } = clip;
    let bytes = frames.checked_mul(*height_px).and_then(|v| v.checked_mul(*width_px)).and_then(|v| v.checked_mul(3));
    if memory.dtype() != DType::U8 || bytes != Some(memory.len()) || memory.is_empty() {
        return Err(format!(
            "[{frames},{height_px},{width_px},3] uint8 is not what its memory holds ({} x {:?})",
            memory.len(),
            memory.dtype()
        ));
    }
    if [frames, height_px, width_px].iter().any(|size| **size > i32::MAX as usize) {
        return Err("frames, height and width must be below 2^31".into());
    }
    if clip.origin_bytes().is_none_or(|bytes| bytes > i32::MAX as usize) {
        return Err(format!("the origin {origin_px:?} must lie within 2^31 bytes of the first frame's first pixel"));
    }
    let (top, left) = *origin_px;
    for (name, axis, first, size) in
        [("t", &grid.t, 0, *frames), ("y", &grid.y, top, *height_px), ("x", &grid.x, left, *width_px)]
    {
        let inside = first <= axis.lo as usize && axis.lo <= axis.hi && (axis.hi as usize) < first + size;
        if !inside || !axis.start.is_finite() || !axis.step.is_finite() {
            return Err(format!("{name} axis must be finite and lie in {first}..{}, got {axis:?}", first + size));
        }
    }
    Ok(())
}
