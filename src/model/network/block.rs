//! What a training step is told and what it tells, in one small piece of device memory: one copy up before the step, one copy down
//! after it. All else that a step reads lies in device memory already, so its launches have the same arguments every time.
//!
//! ```text
//! labels or targets | step index, learning rate, skip flag, counters | optimizer state | losses | logits
//! [-------------------------- up: a step's inputs ----------]
//!                                             [--- down: its results -----------------------------------]
//! ```
//! The step's own part comes first and ends where the rest begins, so that the rest has one place for all shapes. Going up, the skip flag
//! and the counters are zeros: that is how a step begins with them cleared.

use crate::device::{Buffer, DType, Device, Pinned, Slice, Stream, Tensor};
use crate::error::Result;
use crate::ops::sgd::State;
use crate::shape::ActivationShape;

/// Words of step index (2), learning rate, skip flag and counters (4).
const INPUT_WORDS: usize = 8;
const COUNTERS: usize = 4;
/// From the counters to the end of the optimizer's state, of which losses begin at a multiple of 16 bytes.
const RESULT_WORDS: usize = 4 + State::NUM_WORDS.next_multiple_of(4);
/// Copies that may be under way: a step is queued before the results of the one before are read.
pub(super) const RING: usize = 2;

/// The memory, its parts, and pinned memory for the copies.
pub(super) struct StepBlock {
    memory: Buffer,
    /// Words before the step index.
    origin: usize,
    /// Two u32, the lower word first.
    pub step_idx: Slice,
    /// One f32.
    pub lr: Slice,
    /// One u32: not 0 where a statistic (bit 0) or a loss (bit 1) of the step was not finite; the optimizer clears it.
    pub skip: Slice,
    /// As `softmax_loss` adds to them.
    pub counters: Slice,
    /// [`State`]: lives as long as the network.
    pub state: Slice,
    ups: [Pinned; RING],
    downs: [Pinned; RING],
    num_ups: usize,
    num_downs: usize,
}

impl StepBlock {
    /// For steps of at most `clips` clips; the optimizer's state begins as `state`.
    pub fn new(device: &Device, clips: usize, classes: usize, state: &State) -> Result<StepBlock> {
        let origin = (clips * classes.max(1)).next_multiple_of(64);
        let results = RESULT_WORDS + clips.next_multiple_of(4) + clips * classes;
        let memory = Buffer::zeroed(device, 4 * (origin + COUNTERS + results))?;
        let words = |first, len| memory.slice::<u32>(4 * (origin + first), len);
        let pinned = |len| -> Result<[Pinned; RING]> {
            Ok([Pinned::zeroed(device, 4 * len)?, Pinned::zeroed(device, 4 * len)?])
        };
        let block = StepBlock {
            origin,
            step_idx: words(0, 2)?,
            lr: memory.slice::<f32>(4 * (origin + 2), 1)?,
            skip: words(3, 1)?,
            counters: words(COUNTERS, 4)?,
            state: words(INPUT_WORDS, State::NUM_WORDS)?,
            ups: pinned(origin + INPUT_WORDS)?,
            downs: pinned(results)?,
            memory,
            num_ups: 0,
            num_downs: 0,
        };
        block.state.write(bytemuck::cast_slice::<State, u32>(&[*state]))?;
        Ok(block)
    }

    /// Where a step of `clips` clips has its labels, u32.
    pub fn labels(&self, clips: usize) -> Result<Slice> {
        self.memory.slice_of(DType::U32, 4 * (self.origin - clips), clips)
    }

    /// Where a step of `clips` clips has its targets, f32 `[clips][1][1][1][classes]`: the same place.
    pub fn targets(&self, clips: usize, classes: usize) -> Result<Tensor> {
        let shape = ActivationShape::new(clips, 1, 1, 1, classes);
        let len = shape.num_elements();
        Tensor::new(self.memory.slice_of(DType::F32, 4 * (self.origin - len), len)?, shape, classes)
    }

    /// Where a step of `clips` clips leaves their losses, f32, and their logits, f32 `[clips][classes]`.
    pub fn losses_and_logits(&self, clips: usize, classes: usize) -> Result<[Slice; 2]> {
        let losses = 4 * (self.origin + COUNTERS + RESULT_WORDS);
        let logits = losses + 4 * clips.next_multiple_of(4);
        Ok([self.memory.slice::<f32>(losses, clips)?, self.memory.slice::<f32>(logits, clips * classes)?])
    }

    /// Queues the copy of a step's inputs. `own` are its labels or targets, all of them.
    pub fn upload(&mut self, stream: &Stream, own: &[u32], step_idx: u64, lr: f32) -> Result<()> {
        let words = own.len() + INPUT_WORDS;
        let to = self.memory.slice::<u32>(4 * (self.origin - own.len()), words)?;
        let up = &mut self.ups[self.num_ups % RING];
        self.num_ups += 1;
        let from: &mut [u32] = bytemuck::cast_slice_mut(&mut up.bytes_mut()?[..4 * words]);
        let (first, rest) = from.split_at_mut(own.len());
        first.copy_from_slice(own);
        rest.copy_from_slice(&[step_idx as u32, (step_idx >> 32) as u32, lr.to_bits(), 0, 0, 0, 0, 0]);
        stream.upload(up, &to)
    }

    /// Queues the copy of the results of a step of `clips` clips; its logits, if it has `classes`. Returns what
    /// [`StepBlock::results`] takes; good until the next but one.
    pub fn download(&mut self, stream: &Stream, clips: usize, classes: Option<usize>) -> Result<Download> {
        let len = RESULT_WORDS + classes.map_or(clips, |classes| clips.next_multiple_of(4) + clips * classes);
        let from = self.memory.slice::<u32>(4 * (self.origin + COUNTERS), len)?;
        let slot = self.num_downs % RING;
        self.num_downs += 1;
        stream.download(&from, &mut self.downs[slot])?;
        Ok(Download { slot, clips, classes })
    }

    /// Waits for that copy.
    pub fn results(&self, of: &Download) -> Result<Results<'_>> {
        let Download { slot, clips, classes } = *of;
        let words: &[u32] = bytemuck::cast_slice(self.downs[slot].bytes()?);
        let (head, rest) = words.split_at(RESULT_WORDS);
        let (counters, state) = ([head[0], head[1], head[2], head[3]], &head[4..4 + State::NUM_WORDS]);
        let rest: &[f32] = bytemuck::cast_slice(rest);
        let logits = classes.map_or(&[][..], |classes| &rest[clips.next_multiple_of(4)..][..clips * classes]);
        let state = bytemuck::pod_read_unaligned(bytemuck::cast_slice(state));
        Ok(Results { counters, state, losses: &rest[..clips], logits })
    }
}

/// A copy of results that was queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Download {
    slot: usize,
    clips: usize,
    classes: Option<usize>,
}

/// What a step told.
pub(super) struct Results<'a> {
    pub counters: [u32; 4],
    pub state: State,
    /// One a clip.
    pub losses: &'a [f32],
    /// `[clips][classes]`; empty where they were not asked for.
    pub logits: &'a [f32],
}
