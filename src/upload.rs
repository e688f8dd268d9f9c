//! Brings the decoded clips of a batch to the device through a ring of two slots: while a step computes on the clips in
//! one, those of the next step are copied to the other on a stream of its own. Must not know what is done with the clips.

use std::time::Instant;

use crate::clip::HostClip;
use crate::device::{Buffer, Device, Event, Pinned, Slice, Stream};
use crate::error::Result;
use crate::ops::resample::SourceClip;

/// Each clip begins at a multiple of this, so that wide loads of the kernel are aligned.
const ALIGNMENT_BYTES: usize = 256;

/// The ring. A slot grows to the largest batch, so its memory is bounded by twice that on the device and on the host.
#[derive(Debug)]
pub struct Upload {
    device: Device,
    /// Copies run beside the work of other streams.
    copies: Stream,
    slots: Vec<Slot>,
    /// The slot of the last batch.
    current: usize,
}

/// A batch on its way.
#[derive(Debug)]
struct Slot {
    pinned: Pinned,
    memory: Buffer,
    /// The end of the work that reads the batch which is there.
    last_read: Option<Event>,
}

/// What is on its way to the device.
#[derive(Debug)]
pub struct Batch {
    /// The clips, in order.
    pub clips: Vec<SourceClip>,
    /// The bytes that go with them.
    pub table: Slice,
    /// What it cost.
    pub cost: Cost,
}

/// What bringing a batch up cost the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Copied to the device.
    pub bytes: u64,
    /// Seconds that the slot was still being copied from: the bus is the limit.
    pub ring_wait_s: f64,
    /// Seconds that it took to fill the slot.
    pub fill_s: f64,
}

impl Upload {
    /// Without memory yet.
    pub fn new(device: &Device) -> Result<Upload> {
        // Where a copy is done when the call returns there is nothing to overlap: one slot is enough.
        let num_slots = if *device == Device::Cpu { 1 } else { 2 };
        let slot = || {
            let (pinned, memory) = (Pinned::zeroed(device, 0)?, Buffer::zeroed(device, 0)?);
            Ok(Slot { pinned, memory, last_read: None })
        };
        let slots = (0..num_slots).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Upload { device: device.clone(), copies: device.stream()?, slots, current: 0 })
    }

    /// Begins to copy `from`, frames that several share once, and before them `table_bytes` bytes that `fill_table` writes when
    /// it is told where the clips will lie. Work that is queued on `stream` from now on finds them there; when the last
    /// of it that reads them is queued, call [`Upload::is_read`]. The batch before the one before must no longer be in use
    /// elsewhere.
    ///
    /// `largest` is how many times as much as this batch the largest one may hold: what is allocated is enough for that.
    pub fn batch(
        &mut self,
        stream: &Stream,
        from: &[HostClip],
        largest: f64,
        table_bytes: usize,
        fill_table: impl FnOnce(&[SourceClip], &mut [u8]) -> Result<()>,
    ) -> Result<Batch> {
        self.current = (self.current + 1) % self.slots.len();
        let (offsets, len_bytes) = layout(from, table_bytes);
        self.reserve(len_bytes, largest)?;
        let slot = &mut self.slots[self.current];
        let clips = from.iter().zip(&offsets).map(|(clip, &offset)| {
            let memory = slot.memory.slice::<u8>(offset, clip.bytes.len())?;
            let HostClip { frames, height_px, width_px, origin_px, grid, .. } = *clip;
            Ok(SourceClip { memory, frames, height_px, width_px, origin_px, grid })
        });
        let clips = clips.collect::<Result<Vec<_>>>()?;

        let start = Instant::now();
        let bytes = slot.pinned.bytes_mut()?;
        let ring_wait_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        fill_table(&clips, &mut bytes[..table_bytes])?;
        for (k, clip) in from.iter().enumerate().filter(|&(k, _)| k == 0 || offsets[k] != offsets[k - 1]) {
            bytes[offsets[k]..][..clip.bytes.len()].copy_from_slice(&clip.bytes);
        }
        let fill_s = start.elapsed().as_secs_f64();

        // The slot's former batch may still be read on the device.
        slot.last_read.take().map_or(Ok(()), |event| self.copies.wait(&event))?;
        self.copies.upload(&mut slot.pinned, &slot.memory.slice::<u8>(0, len_bytes)?)?;
        stream.wait(&self.copies.record()?)?;
        let table = slot.memory.slice::<u8>(0, table_bytes)?;
        Ok(Batch { clips, table, cost: Cost { bytes: len_bytes as u64, ring_wait_s, fill_s } })
    }

    /// All work that reads the last batch is queued on `stream`.
    pub fn is_read(&mut self, stream: &Stream) -> Result<()> {
        self.slots[self.current].last_read = Some(stream.record()?);
        Ok(())
    }

    /// Bytes of device memory held.
    pub fn len_bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.memory.len_bytes()).sum()
    }

    fn reserve(&mut self, len_bytes: usize, largest: f64) -> Result<()> {
        let slot = &mut self.slots[self.current];
        if slot.memory.len_bytes() < len_bytes {
            let room = len_bytes.max((len_bytes as f64 * largest) as usize).next_multiple_of(ALIGNMENT_BYTES);
            // The old memory goes first, so that both are never held at once; its copies and readers are waited for.
            slot.last_read.take().map_or(Ok(()), |event| event.synchronize())?;
            (slot.pinned, slot.memory) = (Pinned::zeroed(&self.device, 0)?, Buffer::zeroed(&self.device, 0)?);
            (slot.pinned, slot.memory) = (Pinned::zeroed(&self.device, room)?, Buffer::zeroed(&self.device, room)?);
        }
        Ok(())
    }
}

/// Where each clip begins behind the table, and the end of the last.
fn layout(clips: &[HostClip], table_bytes: usize) -> (Vec<usize>, usize) {
    let (mut offsets, mut end) = (Vec::with_capacity(clips.len()), table_bytes);
    for (k, clip) in clips.iter().enumerate() {
        match offsets.last() {
            Some(&before) if clip.shares_frames_with(&clips[k - 1]) => offsets.push(before),
            _ => {
                let offset = end.next_multiple_of(ALIGNMENT_BYTES);
                end = offset + clip.bytes.len();
                offsets.push(offset);
            }
        }
    }
    (offsets, end)
}
