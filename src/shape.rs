//! Sizes, as small values that are passed down; nothing here knows of devices or models.

use std::fmt;

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
