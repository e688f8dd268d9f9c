//! What `vcycle verify` looks at.

use super::PackedClips;
use super::index::Content;
use super::shard::{CELL_BYTES, Reader};
use crate::clip::list::Checked;
use crate::clip::{ClipSource, Fault, FaultKind};
use crate::error::Result;

impl PackedClips {
    /// Reads clip `idx` and compares all checksums; decodes its first and its last frame, or `all`.
    pub(crate) fn check(&self, idx: usize, all: bool) -> Checked {
        let mut checked = Checked::default();
        if let Err(error) = self.try_check(idx, all, &mut checked) {
            checked.faults.push(Fault::new(FaultKind::Undecodable, self.id(idx), error.to_string()));
        }
        checked
    }

    fn try_check(&self, idx: usize, all: bool, checked: &mut Checked) -> Result<()> {
        if let (folder, Content::Stored(stored)) = self.content(idx) {
            checked.num_frames = stored.num_frames;
            checked.seconds = Some(stored.num_frames as f64 / stored.fps);
            checked.bytes = stored.frames.1 + stored.cells.1;
            let mut shard = Reader::open(folder, stored.shard)?;
            let (cells, mut bytes) = (shard.cells(stored)?, vec![]);
            for lines in cells.chunks_exact(CELL_BYTES) {
                shard.frame(stored, lines, &mut bytes)?;
            }
        }
        let mut one = |frame: Option<u32>| {
            self.frames(idx, &mut |info| {
                checked.decoder = Some(info.decoder.clone());
                vec![frame.unwrap_or(info.num_frames as u32 - 1)]
            })
        };
        one(Some(0))?;
        one(None)?;
        let inner = if all { 1..checked.num_frames.saturating_sub(1) as u32 } else { 0..0 };
        for frame in inner {
            self.frames(idx, &mut |_| vec![frame])?;
        }
        Ok(())
    }
}
