//! Brings the decoded clips of a batch to the device: one copy a batch into memory that is used again and again. Must not
//! know what is done with the clips.

use crate::clip::HostClip;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::ops::resample::SourceClip;

/// Each clip begins at a multiple of this, so that wide loads of the kernel are aligned.
const CLIP_ALIGNMENT_BYTES: usize = 256;

/// Memory for one batch of clips; grows to the largest batch seen (the first shapes of a schedule hold most clips).
#[derive(Debug)]
pub struct Upload {
    device: Device,
    memory: Buffer,
}

impl Upload {
    /// Without memory yet.
    pub fn new(device: &Device) -> Result<Upload> {
        Ok(Upload { device: device.clone(), memory: Buffer::zeroed(device, 0)? })
    }

    /// Copies `from`, frames that several share once; what the call before returned must no longer be in use.
    pub fn clips(&mut self, from: &[HostClip]) -> Result<Vec<SourceClip>> {
        let room = |clip: &HostClip| clip.bytes.len().next_multiple_of(CLIP_ALIGNMENT_BYTES);
        let shared = |k: usize| k > 0 && from[k].shares_frames_with(&from[k - 1]);
        let copied = from.iter().enumerate().filter(|(k, _)| !shared(*k));
        self.reserve(copied.map(|(_, clip)| room(clip)).sum())?;
        let mut clips: Vec<SourceClip> = Vec::with_capacity(from.len());
        let mut offset_bytes = 0;
        for (k, clip) in from.iter().enumerate() {
            let memory = match clips.last() {
                Some(before) if shared(k) => before.memory.clone(),
                _ => {
                    let memory = self.memory.slice::<u8>(offset_bytes, clip.bytes.len())?;
                    memory.write(&clip.bytes)?;
                    offset_bytes += room(clip);
                    memory
                }
            };
            let (frames, height_px, width_px) = (clip.frames, clip.height_px, clip.width_px);
            clips.push(SourceClip { memory, frames, height_px, width_px, grid: clip.grid });
        }
        Ok(clips)
    }

    /// Bytes of device memory held.
    pub fn len_bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    fn reserve(&mut self, len_bytes: usize) -> Result<()> {
        if self.memory.len_bytes() < len_bytes {
            self.memory = Buffer::zeroed(&self.device, len_bytes)?;
        }
        Ok(())
    }
}
