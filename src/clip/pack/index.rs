//! The index of a pack: what its lists said, and where each clip lies. Written last, whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::shard::CELL_BYTES;
use super::{Encoding, FORMAT_VERSION, damaged};
use crate::clip::ListFormat;
use crate::clip::decode::MAX_PIXELS;
use crate::clip::list::ClassRuns;
use crate::error::{Error, Result};

const FILE: &str = "index.json";

/// The index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub format: u32,
    /// CRC-32 of the index as this program writes it, with 0 in this place.
    pub checksum: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// How the lists were written: which frames make a clip depends on it.
    pub dataset: ListFormat,
    pub encoding: Encoding,
    /// Size of each shard, in bytes.
    pub shards: Vec<u64>,
    /// `train`, `val`, `test`.
    pub splits: BTreeMap<String, SplitIndex>,
    pub clips: Vec<Clip>,
}

/// A list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SplitIndex {
    /// Of the original list and its files.
    pub fingerprint: String,
    pub videos: Vec<ListedVideo>,
}

/// A video of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedVideo {
    pub name: String,
    pub classes: ClassRuns,
    /// Position in [`Index::clips`]; several lists may name one clip.
    pub clip: usize,
}

/// A clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clip {
    pub name: String,
    /// Fingerprint of its files.
    pub files: String,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    Stored(Stored),
    /// Could not be decoded, and why.
    LeftOut(String),
}

/// Where a clip lies, and what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub shard: usize,
    /// Its frames, as first byte in the file and length.
    pub frames: (u64, u64),
    /// Its table of cells, likewise.
    pub cells: (u64, u64),
    /// CRC-32 of that table.
    pub cells_crc32: u32,
    pub num_frames: usize,
    pub fps: f64,
    pub height_px: usize,
    pub width_px: usize,
}

impl Index {
    pub fn path(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// Reads the index of the pack in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none, [`Error::Data`] for one of another version, and for one that is damaged in any way.
    pub fn read(folder: &Path) -> Result<Index> {
        let path = Index::path(folder);
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, &e))?;
        Index::parse(&bytes).map_err(|message| damaged(&path, message))
    }

    pub fn parse(bytes: &[u8]) -> Result<Index, String> {
        /// Any version has it.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let no_index = |e: serde_json::Error| format!("no index of a pack, or damaged: {e}");
        let Version { format } = serde_json::from_slice(bytes).map_err(no_index)?;
        if format != FORMAT_VERSION {
            return Err(format!(
                "expected format version {FORMAT_VERSION}, got {format}: pack again, or use the version of this program that wrote it"
            ));
        }
        let index: Index = serde_json::from_slice(bytes).map_err(no_index)?;
        if index.checksum != index.sum()? {
            return Err("damaged: its checksum is wrong; `vcycle pack` makes it again from the shards".into());
        }
        index.check()?;
        Ok(index)
    }

    /// Writes the index whole.
    pub fn write(mut self, folder: &Path) -> Result<()> {
        let path = Index::path(folder);
        self.checksum = self.sum().map_err(|message| damaged(&path, message))?;
        replace(&path, &mut |file| {
            serde_json::to_writer(&mut *file, &self)?;
            file.write_all(b"\n")
        })
    }

    fn sum(&self) -> Result<u32, String> {
        struct Sum(crc32fast::Hasher);
        impl Write for Sum {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut sum = Sum(crc32fast::Hasher::new());
        serde_json::to_writer(&mut sum, &Index { checksum: 0, ..self.clone() }).map_err(|e| e.to_string())?;
        Ok(sum.0.finalize())
    }

    /// Positions that point nowhere, and sizes that no clip has: arithmetic on them must not overflow.
    fn check(&self) -> Result<(), String> {
        for (name, split) in &self.splits {
            if let Some(video) = split.videos.iter().find(|video| video.clip >= self.clips.len()) {
                return Err(format!("{name}: {} is clip {} of {}", video.name, video.clip, self.clips.len()));
            }
            if let Some(video) = split.videos.iter().find(|video| video.classes.is_empty()) {
                return Err(format!("{name}: {} has no line of labels", video.name));
            }
        }
        for clip in &self.clips {
            let Content::Stored(stored) = &clip.content else { continue };
            let bytes = self.shards.get(stored.shard).copied();
            let bytes = bytes
                .ok_or_else(|| format!("{}: lies in shard {} of {}", clip.name, stored.shard, self.shards.len()))?;
            stored.check(&self.encoding, bytes).map_err(|message| format!("{}: {message}", clip.name))?;
        }
        Ok(())
    }
}

impl Stored {
    /// Whether the numbers go together, in a shard of this size.
    pub fn check(&self, encoding: &Encoding, shard_bytes: u64) -> Result<(), String> {
        let (height_px, width_px) = (self.height_px, self.width_px);
        let pixels = height_px.checked_mul(width_px).filter(|pixels| (1..=MAX_PIXELS).contains(pixels));
        if pixels.is_none() || !(self.fps.is_finite() && self.fps > 0.0) {
            return Err(format!("{width_px}x{height_px} pixels at {} frames a second are no clip", self.fps));
        }
        for (begin, length) in [self.frames, self.cells] {
            if begin.checked_add(length).is_none_or(|end| end > shard_bytes) {
                return Err(format!("bytes {begin} + {length} lie beyond the {shard_bytes} of shard {}", self.shard));
            }
        }
        let cells = self.num_frames.checked_mul(encoding.codec.cells_a_frame(height_px));
        let bytes = cells.and_then(|cells| cells.checked_mul(CELL_BYTES));
        if self.num_frames == 0 || bytes.map(|bytes| bytes as u64) != Some(self.cells.1) {
            return Err(format!("a table of {} bytes is not that of {} frames", self.cells.1, self.num_frames));
        }
        Ok(())
    }
}

/// Writes a file under another name, makes sure that it is on the disk, and renames it: it is whole or not there.
pub(super) fn replace(path: &Path, write: &mut dyn FnMut(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    let mut all = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
        write(&mut file)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&unfinished, path)
    };
    all().map_err(|e| {
        let _ = fs::remove_file(&unfinished);
        Error::io(path, &e)
    })
}
