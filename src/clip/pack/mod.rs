//! Packed data sets: every clip decoded once, its frames stored one by one at the size that training needs, so that any
//! frame can be read without decoding those before it (`vcycle pack`, `DATA.DECODING_BACKEND packed`).
//!
//! ```text
//! DIR/index.json               labels, names and order of the original lists; where each clip lies; written last
//! DIR/shard-00000.safetensors  of each clip `K.frames`, its frames one behind the other, and `K.cells`, a table
//! ```
//!
//! A *cell* is what is read and checked at once: a JPEG frame, or some rows of a raw one. Its line of the table is
//! four u32: offset in `K.frames` (low and high half), length in bytes, CRC-32. The index holds the CRC-32 of each table, and
//! its own: damage anywhere is found before a pixel is used, and is an error of the clip that it hits.
//!
//! Files are read with ordinary reads at an offset. A memory map would save a copy of some kilobytes a frame, and is unsafe: a file
//! that another program cuts off under it ends the run.
//!
//! A shard also says which files it was made of. That is what an interrupted pack goes on from, and what a lost index
//! is made from again.
//!
//! | file | holds |
//! |---|---|
//! | `picture.rs` | a frame to bytes and back |
//! | `jpeg_box.rs` | the part of a JPEG picture that a box needs |
//! | `shrink.rs` | a frame to a smaller one |
//! | `shard.rs` | clips to a file and back |
//! | `index.rs` | the index |
//! | `write.rs` | [`pack`] |
//! | `source.rs` | [`PackedClips`] |
//! | `check.rs` | what `vcycle verify` looks at |

mod check;
mod index;
mod jpeg_box;
mod picture;
mod shard;
mod shrink;
mod source;
mod write;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use source::PackedClips;
pub use write::{PackOptions, PackReport, pack};

use crate::error::{Error, Result};

/// Version of the format that is read and written.
pub const FORMAT_VERSION: u32 = 1;

/// The codec's quality where none is given: of real clips, 45 dB and 15 kB for 320x240 pixels.
pub const DEFAULT_QUALITY: u8 = 90;

/// How a frame is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Baseline JPEG, chroma at half size, a restart marker after every block of 16 x 16 pixels.
    Jpeg {
        /// From 1 to 100, as libjpeg counts.
        quality: u8,
    },
    /// The decoded bytes: 230 kB for 320x240 pixels, for small sets.
    Raw,
}

/// All that decides the bytes of a packed frame, beside the frame itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoding {
    /// How a frame is stored.
    pub codec: Codec,
    /// Frames with a longer short side are shrunk to this one (a triangle filter as wide as the stride); `None`: none is.
    pub short_side_px: Option<u32>,
}

impl Encoding {
    /// # Errors
    /// [`Error::Config`] for a quality or a short side that no picture has.
    pub fn check(&self) -> Result<()> {
        if let Codec::Jpeg { quality } = self.codec
            && !(1..=100).contains(&quality)
        {
            return Err(Error::Config(format!("pack: expected a quality from 1 to 100, got {quality}")));
        }
        match self.short_side_px {
            Some(side) if !(1..=1 << 15).contains(&side) => {
                Err(Error::Config(format!("pack: expected a short side from 1 to {}, got {side}", 1 << 15)))
            }
            _ => Ok(()),
        }
    }

    /// Whether frames come back as the original files give them.
    pub fn is_exact(&self) -> bool {
        *self == Encoding { codec: Codec::Raw, short_side_px: None }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec {
            Codec::Jpeg { quality } => write!(f, "jpeg quality {quality}, ")?,
            Codec::Raw => write!(f, "raw, ")?,
        }
        match self.short_side_px {
            Some(side) => write!(f, "short side at most {side} px"),
            None => write!(f, "source size"),
        }
    }
}

/// The error of a file of a pack.
fn damaged(path: &Path, message: impl fmt::Display) -> Error {
    Error::Data(format!("{}: {message}", path.display()))
}
