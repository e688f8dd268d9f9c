//! Sizes, as small values that are passed down; nothing here knows of devices or models.

use std::fmt;

use crate::error::{Error, Result};

/// Sizes of a batch of activations `[n][t][h][w][c]`, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivationShape {
    /// Clips.
    pub n: usize,
    /// Frames.
    pub t: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl ActivationShape {
    /// `[n][t][h][w][c]`.
    pub const fn new(n: usize, t: usize, h: usize, w: usize, c: usize) -> Self {
        ActivationShape { n, t, h, w, c }
    }

    /// Positions, `n * t * h * w`; `usize::MAX` where that is too large to count, so that no memory seems to suffice.
    pub const fn num_positions(&self) -> usize {
        self.n.saturating_mul(self.t).saturating_mul(self.h).saturating_mul(self.w)
    }

    /// Elements, `n * t * h * w * c`; likewise.
    pub const fn num_elements(&self) -> usize {
        self.num_positions().saturating_mul(self.c)
    }

    /// The same positions with `c` channels.
    pub const fn with_channels(self, c: usize) -> Self {
        ActivationShape { c, ..self }
    }
}

impl fmt::Display for ActivationShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{},{},{},{},{}]", self.n, self.t, self.h, self.w, self.c)
    }
}

/// Where the clips at hand lie in their batch: whole batch-norm splits, one after the other. What an op does with them, and the
/// order of every sum over clips, follow from the batch; so a step that takes its batch part by part gives the bits of one that
/// takes it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Clips of the batch.
    pub batch_clips: usize,
    /// Its batch-norm splits: contiguous blocks of `ceil(clips / splits)` clips, the last may be smaller.
    pub batch_splits: usize,
    /// The first clip at hand, which begins a split. Where it is not 0, gradients of parameters hold the sums over the clips
    /// before it, and are added to.
    pub first_clip: usize,
}

impl Part {
    /// A whole batch.
    pub const fn whole(clips: usize, splits: usize) -> Part {
        Part { batch_clips: clips, batch_splits: splits, first_clip: 0 }
    }

    /// Clips of each split but the last.
    pub const fn clips_per_split(&self) -> usize {
        if self.batch_splits == 0 { self.batch_clips } else { self.batch_clips.div_ceil(self.batch_splits) }
    }

    /// Splits that `clips` clips fill.
    pub const fn splits_of(&self, clips: usize) -> usize {
        if self.batch_clips == 0 { 0 } else { clips.div_ceil(self.clips_per_split()) }
    }

    /// Whether gradients of parameters are added to.
    pub const fn accumulates(&self) -> bool {
        self.first_clip > 0
    }

    /// Checks that `clips` clips are such a part.
    ///
    /// # Errors
    /// [`Error::Shape`] where a split is cut, or clips lie outside of the batch.
    pub fn check(&self, op: &'static str, clips: usize) -> Result<()> {
        let (per_split, end) = (self.clips_per_split(), self.first_clip.saturating_add(clips));
        let is_whole = |clip: usize| clip.is_multiple_of(per_split);
        if self.batch_splits > 0
            && end <= self.batch_clips
            && is_whole(self.first_clip)
            && (is_whole(end) || end == self.batch_clips)
        {
            return Ok(());
        }
        let Part { batch_clips, batch_splits, first_clip } = self;
        let message = format!(
            "a part must be whole splits of its batch: {batch_clips} clips in {batch_splits} splits, got {clips} clips from \
             clip {first_clip} on"
        );
        Err(Error::shape(op, message))
    }
}

/// The shape of one training step: what a multigrid schedule decides and everything below obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepShape {
    /// Clips in the batch, B.
    pub clips: usize,
    /// Frames of the (fast) input, T.
    pub frames: usize,
    /// Rows of the crop, H.
    pub height_px: usize,
    /// Columns of the crop, W.
    pub width_px: usize,
    /// Contiguous groups of clips with batch-norm statistics of their own.
    pub splits: usize,
}

impl StepShape {
    /// A square crop of `crop_px`.
    pub const fn square(clips: usize, frames: usize, crop_px: usize, splits: usize) -> Self {
        StepShape { clips, frames, height_px: crop_px, width_px: crop_px, splits }
    }
}

impl fmt::Display for StepShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.clips, self.frames, self.height_px)?;
        if self.width_px != self.height_px {
            write!(f, "x{}", self.width_px)?;
        }
        Ok(())
    }
}
