//! A packed data set as a source of clips.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::index::{Content, Index, SplitIndex, Stored};
use super::shard::{CELL_BYTES, Reader};
use super::{Codec, Encoding, damaged, shard};
use crate::clip::list::{classes_of, first_class};
use crate::clip::{Area, ClipSource, Crops, Frames, ListFormat, Split, VideoInfo, Wanted};
use crate::error::{Error, Result};

/// The clips of one list of a pack: the labels, the order and the names of the list that it was made of.
pub struct PackedClips {
    folder: PathBuf,
    index: Index,
    split: SplitIndex,
    num_classes: usize,
}

impl PackedClips {
    /// Opens the list of `split` in the pack in `folder`. A pack without a list for the test takes that of validation.
    ///
    /// # Errors
    /// No index, one that is damaged or of another version, a data set with other lists than `format`, no such list.
    pub fn open(folder: &Path, format: ListFormat, split: Split, num_classes: usize) -> Result<PackedClips> {
        let path = Index::path(folder);
        if !path.exists() {
            return Err(damaged(
                &path,
                "there is none: with DATA.DECODING_BACKEND packed, DATA.PATH_TO_DATA_DIR must name a folder that `vcycle pack` \
                 has finished",
            ));
        }
        let mut index = Index::read(folder)?;
        if index.dataset != format {
            let (packed, asked) = (index.dataset, format);
            return Err(damaged(
                &path,
                format!("was packed from lists of {packed:?}, but TRAIN.DATASET asks for {asked:?}"),
            ));
        }
        let list = index.splits.remove(split.name());
        let val = || {
            index.splits.remove(Split::Val.name()).filter(|_| split == Split::Test && format != ListFormat::Kinetics)
        };
        let Some(list) = list.or_else(val) else {
            return Err(damaged(&path, format!("the pack was made without a list for {}", split.name())));
        };
        Ok(PackedClips { folder: folder.into(), index, split: list, num_classes })
    }

    /// How its frames are stored.
    pub fn encoding(&self) -> &Encoding {
        &self.index.encoding
    }

    /// The shards' folder, and what the index says of clip `idx`.
    pub(super) fn content(&self, idx: usize) -> (&Path, &Content) {
        (&self.folder, &self.index.clips[self.split.videos[idx].clip].content)
    }

    /// What tells video `idx` from others.
    pub(crate) fn id(&self, idx: usize) -> &str {
        &self.split.videos[idx].name
    }

    fn stored(&self, idx: usize) -> Result<&Stored> {
        match self.content(idx).1 {
            Content::Stored(stored) => Ok(stored),
            Content::LeftOut(why) => Err(self.refuse(idx, format!("left out of the pack: {why}"))),
        }
    }

    fn refuse(&self, idx: usize, message: String) -> Error {
        Error::Decode { path: self.name(idx), message }
    }

    /// Reads the table of a clip, asks what is wanted, and reads that.
    fn read(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Wanted) -> Result<Crops> {
        let stored = self.stored(idx)?;
        let refuse = |e: Error| self.refuse(idx, e.to_string());
        let mut shard = Reader::open(&self.folder, stored.shard).map_err(refuse)?;
        let cells = shard.cells(stored).map_err(refuse)?;
        let codec = self.index.encoding.codec;
        let Wanted { indices, area } = choose(&describe(stored, codec));
        let is_inside = |of: &Range<usize>, size: usize| of.start < of.end && of.end <= size;
        if !is_inside(&area.rows, stored.height_px) || !is_inside(&area.columns, stored.width_px) {
            let message = format!("{area:?} of a frame of {}x{} was asked for", stored.width_px, stored.height_px);
            return Err(Error::shape("packed clip", message));
        }
        let (height_px, width_px) = (area.rows.len(), area.columns.len());
        let frame_bytes = height_px * width_px * 3;
        let (a_frame, wanted) = (codec.cells_a_frame(stored.height_px), codec.cells_of(&area));
        let (mut bytes, mut encoded) = (Vec::with_capacity(indices.len() * frame_bytes), vec![]);
        for (k, &index) in indices.iter().enumerate() {
            if k > 0 && indices[k - 1] == index {
                bytes.extend_from_within(bytes.len() - frame_bytes..);
                continue;
            }
            let lines = index as usize * a_frame + wanted.start..index as usize * a_frame + wanted.end;
            let lines = cells.get(lines.start * CELL_BYTES..lines.end * CELL_BYTES).ok_or_else(|| {
                Error::shape("packed clip", format!("frame {index} of {} was asked for", stored.num_frames))
            })?;
            let size = (stored.height_px, stored.width_px);
            shard.frame(stored, lines, &mut encoded).map_err(refuse)?;
            let decoded = codec.decode(&encoded, size, &area, &mut bytes);
            decoded.map_err(|message| self.refuse(idx, format!("frame {index}: {message}")))?;
        }
        let origin_px = (area.rows.start, area.columns.start);
        Ok(Crops { frames: Frames { bytes, indices, height_px, width_px }, origin_px })
    }
}

fn describe(stored: &Stored, codec: Codec) -> VideoInfo {
    let codec = match codec {
        Codec::Jpeg { .. } => "jpeg",
        Codec::Raw => "raw",
    };
    VideoInfo {
        codec: codec.into(),
        decoder: format!("packed {codec}"),
        num_frames: stored.num_frames,
        fps: stored.fps,
        width_px: stored.width_px,
        height_px: stored.height_px,
    }
}

impl ClipSource for PackedClips {
    fn len(&self) -> usize {
        self.split.videos.len()
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn label(&self, idx: usize) -> u32 {
        first_class(&self.split.videos[idx].classes)
    }

    fn is_multi_label(&self) -> bool {
        self.index.dataset == ListFormat::Charades
    }

    fn label_set(&self, idx: usize, frames: Option<(u32, u32)>) -> Vec<u32> {
        classes_of(&self.split.videos[idx].classes, frames)
    }

    /// That of the original list where frames come back as its files give them; otherwise it says how they are stored.
    fn fingerprint(&self) -> Option<String> {
        let (original, encoding) = (&self.split.fingerprint, self.encoding());
        Some(if encoding.is_exact() { original.clone() } else { format!("{original} packed as {encoding}") })
    }

    fn name(&self, idx: usize) -> String {
        match self.content(idx).1 {
            Content::Stored(stored) => {
                format!("{} ({})", self.id(idx), shard::path(&self.folder, stored.shard).display())
            }
            Content::LeftOut(_) => self.id(idx).into(),
        }
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        let whole = |info: &VideoInfo| Area { rows: 0..info.height_px, columns: 0..info.width_px };
        let crops = self.read(idx, &mut |info| Wanted { indices: choose(info), area: whole(info) })?;
        Ok(crops.frames)
    }

    fn crops(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Wanted) -> Result<Crops> {
        self.read(idx, choose)
    }
}
