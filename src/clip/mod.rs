//! Clips on the host: where they come from ([`ClipSource`]), which frames and which sampling grid a training step wants
//! of them ([`Sampling`]), and threads that prepare whole batches ahead of the step ([`Loader`]).
//!
//! A clip stays uint8 RGB as it was decoded. Crop, scale, flip and normalisation are only *described* here, by a
//! [`ClipGrid`](crate::ops::resample::ClipGrid); [`ops::resample`](crate::ops::resample) carries them out on the device.
//! Must not know of models, devices or schedules: a step's shape comes in as a
//! [`StepShape`].
//!
//! | concept | type |
//! |---|---|
//! | any set of labelled videos | [`ClipSource`] |
//! | list files as PySlowFast reads them | [`VideoList`], over [`decode::Video`] and JPEG files |
//! | synthetic videos | [`MovingShapes`] |
//! | a data set decoded once, by `vcycle pack` | [`pack::PackedClips`] |
//! | decoded clips kept in memory | [`Cached`] |
//! | which frames, which crop | [`Sampling`], over the pure functions of [`sampling`] |
//! | batches, in order, prepared ahead | [`Loader`] -> [`Batches`] -> [`HostBatch`] |

mod cache;
pub mod decode;
mod fingerprint;
mod grid;
mod list;
mod loader;
mod moving_shapes;
pub mod pack;
mod random;
pub mod sampling;
pub mod verify;

pub use cache::Cached;
pub use grid::{ClipChoice, FrameRule, ResampleMode, Sampling, TestCrops, Views};
pub use list::{Fault, FaultKind, ListConfig, ListFormat, VideoList};
pub use loader::{BadClip, Batches, HostBatch, HostClip, Loader, LoaderConfig};
pub use moving_shapes::{MOTIONS, MovingShapes, MovingShapesConfig};
pub use random::Draws;

use std::ops::Range;

use crate::error::Result;
#[allow(unused_imports, reason = "for the links of the module doc")]
use crate::shape::StepShape;

/// Which clips of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Training.
    Train,
    /// Validation.
    Val,
    /// The multi-view test: the clips of validation, but for Kinetics, which has a list of its own.
    Test,
}

impl Split {
    /// `train`, `val` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        }
    }
}

/// What is known of a video before its frames are decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoInfo {
    /// Name of the codec, such as `h264`; `synthetic` where nothing was coded.
    pub codec: String,
    /// Who decodes it, such as `built-in h264` or `ffmpeg`.
    pub decoder: String,
    /// Frames. Where a file's header promises more than it holds, the last frame that exists stands for the rest.
    pub num_frames: usize,
    /// Frames a second, the average.
    pub fps: f64,
    /// Columns, after the file's rotation was applied.
    pub width_px: usize,
    /// Rows, after the file's rotation was applied.
    pub height_px: usize,
}

/// Decoded frames, uint8 RGB `[frame][row][column][3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// `indices.len() * height_px * width_px * 3` bytes.
    pub bytes: Vec<u8>,
    /// Which frame of the video each one is.
    pub indices: Vec<u32>,
    /// Rows.
    pub height_px: usize,
    /// Columns.
    pub width_px: usize,
}

/// Some pixels of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Rows.
    pub rows: Range<usize>,
    /// Columns.
    pub columns: Range<usize>,
}

/// What a clip needs of a video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Frames, as for [`ClipSource::frames`].
    pub indices: Vec<u32>,
    /// Pixels of each of them, not empty. Others are not looked at.
    pub area: Area,
}

/// Frames, or one box of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crops {
    /// The box; its rows and columns count from its own first pixel.
    pub frames: Frames,
    /// (row, column) of that pixel in the video's frames: (0, 0) where they are whole.
    pub origin_px: (usize, usize),
}

/// A set of labelled videos. Implement it to train on data of your own (`examples/03_own_clip_source.rs`); a [`Loader`]
/// calls it from several threads at once.
pub trait ClipSource: Send + Sync {
    /// Number of videos.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of classes; every label is below it.
    fn num_classes(&self) -> usize;

    /// Class of video `idx`. Where videos have several, [`ClipSource::label_set`] is asked instead.
    fn label(&self, idx: usize) -> u32;

    /// Whether a video may have several classes, or none.
    fn is_multi_label(&self) -> bool {
        false
    }

    /// The classes of video `idx`, ascending: with `frames` (first and last) those seen there, which training learns from;
    /// without, those of the whole video, which evaluation asks for.
    fn label_set(&self, idx: usize, frames: Option<(u32, u32)>) -> Vec<u32> {
        let _ = frames;
        vec![self.label(idx)]
    }

    /// Whether a mirrored video has another label (left becomes right): a [`Loader`] then refuses random flips.
    fn mirror_changes_label(&self) -> bool {
        false
    }

    /// What the data set is, for a run to notice that it has changed: names, labels, sizes of files. `None` where it does not
    /// come from files.
    fn fingerprint(&self) -> Option<String> {
        None
    }

    /// How messages call video `idx`, such as its path.
    fn name(&self, idx: usize) -> String;

    /// Decodes some frames of video `idx`: learns what the video is, asks `choose` (once) which frames are wanted, and
    /// returns exactly those, in that order. `choose` returns indices below `num_frames` in ascending order; an index
    /// may repeat.
    ///
    /// The same call must give the same bytes every time. An error before `choose` was called means that the video is
    /// of no use at all: it is not tried again in this run.
    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames>;

    /// As [`ClipSource::frames`], for a source that can decode a part of a frame: at least `area` of each. Whole frames are
    /// always right; the bytes of a box must be those of the whole frames.
    fn crops(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Wanted) -> Result<Crops> {
        let frames = self.frames(idx, &mut |info| choose(info).indices)?;
        Ok(Crops { frames, origin_px: (0, 0) })
    }
}
