//! A training step whose memory does not suffice runs its batch in micro-batches: whole batch-norm splits, one after the other in the same
//! arena, gradients added up. It has the bits of the step that runs as a whole: docs/decisions/split_order.md says why.

use super::{Lowering, Memory, Mode, Plan, Request};
use crate::device::Stream;
use crate::error::{Error, Result};
use crate::model::layers::{Model, NormId};
use crate::ops::batch_norm::BatchNorm;
use crate::shape::Part;

const GIB: f64 = (1u64 << 30) as f64;

/// Where an input begins: vectors and tensor maps of the kernels want it, and the choice of a kernel must not depend on it.
const INPUT_ALIGNMENT_BYTES: usize = 16;

/// How many of `splits` batch-norm splits run at once in the fewest micro-batches, two at least, that need at most `room_bytes`. `None` where
/// a single split needs more. `bytes_of` tells what so many splits need.
///
/// # Errors
/// Those of `bytes_of`.
pub fn splits_at_once(
    splits: usize,
    room_bytes: usize,
    mut bytes_of: impl FnMut(usize) -> Result<usize>,
) -> Result<Option<usize>> {
    let mut tried = splits;
    for micro_batches in 2..=splits {
        let at_once = splits.div_ceil(micro_batches);
        if at_once == tried {
            continue; // One micro-batch more, and none smaller.
        }
        tried = at_once;
        if bytes_of(at_once)? <= room_bytes {
            return Ok(Some(at_once));
        }
    }
    Ok(None)
}

/// `plans`, of `model` on the device of `stream`, as they fit into `limit_bytes`: in place of a training step that does not fit whole, the plans
/// of its micro-batches, in order.
///
/// # Errors
/// An evaluation that does not fit, and a step of which not even one split does.
pub fn fit_memory(stream: &Stream, model: &Model, plans: Vec<Plan>, limit_bytes: usize) -> Result<Vec<Plan>> {
    let memory = Memory::of(model, &plans.iter().collect::<Vec<_>>());
    if memory.total() <= limit_bytes {
        return Ok(plans);
    }
    let statistics = plans.iter().map(Plan::statistics_bytes).max().unwrap_or(0);
    let beside = memory.total() - memory.arena - memory.workspace + statistics;
    let mut room = Room { beside, limit: limit_bytes };
    loop {
        let mut fitting = vec![];
        for plan in &plans {
            fitting.extend(plan.fit(stream, model, room)?);
        }
        // The largest arena and the largest scratch memory may be those of different plans.
        let total = Memory::of(model, &fitting.iter().collect::<Vec<_>>()).total();
        if total <= limit_bytes {
            return Ok(fitting);
        }
        room.beside += total - limit_bytes;
    }
}

/// What is given, and what all but arena and scratch memory takes of it.
#[derive(Clone, Copy)]
struct Room {
    beside: usize,
    limit: usize,
}

impl Room {
    fn of_plan(self) -> usize {
        self.limit.saturating_sub(self.beside)
    }
}

impl Plan {
    /// Whether it is that of a micro-batch.
    pub fn is_micro_batch(&self) -> bool {
        self.clips < self.shape.clips
    }

    /// Of the first micro-batch of a step, what there is to tell: how many there are, and of what size.
    pub fn micro_batches_line(&self) -> Option<String> {
        let part = self.part.filter(|part| self.is_micro_batch() && part.first_clip == 0)?;
        let (count, clips, splits) = (self.shape.clips.div_ceil(self.clips), self.clips, self.splits());
        let of = part.splits_of(part.batch_clips);
        Some(format!(
            "{} runs in {count} micro-batches of {clips} clips, {splits} of {of} batch-norm splits",
            self.shape
        ))
    }

    /// Every batch norm of the whole step whose statistics are formed, and where its own begin among those of all, in f32: micro-batches
    /// leave theirs at their splits.
    pub fn statistics_of_batch(&self) -> Vec<(BatchNorm, NormId, usize)> {
        let Some(part) = self.part else { return vec![] };
        let (whole, mut end) = (Part { first_clip: 0, ..part }, 0usize);
        let of_batch = |(op, norm, _): (&BatchNorm, NormId, usize)| {
            let mut op = BatchNorm { splits: whole.splits_of(whole.batch_clips), part: Some(whole), ..*op };
            op.shape.n = whole.batch_clips;
            let start = end.next_multiple_of(64);
            end = start + op.stats_len();
            (op, norm, start)
        };
        self.statistics().map(of_batch).collect()
    }

    /// Memory of all of them.
    pub fn statistics_bytes(&self) -> usize {
        self.statistics_of_batch().last().map_or(0, |(op, _, start)| 4 * (start + op.stats_len()))
    }

    /// Arena and scratch memory.
    fn bytes(&self) -> usize {
        self.arena_bytes + self.workspace_bytes
    }

    /// The plan as it is where there is room, or those of its micro-batches.
    fn fit(&self, stream: &Stream, model: &Model, room: Room) -> Result<Vec<Plan>> {
        if self.bytes() <= room.of_plan() {
            return Ok(vec![self.clone()]);
        }
        let Some(batch) = self.part else { return Err(self.too_large(room, "; choose a smaller batch or crop")) };
        let (clips, splits) = (batch.batch_clips, batch.splits_of(batch.batch_clips));
        let request = Request::whole(self.shape, Mode::Train, self.tensors[self.inputs[0]].shape.c, self.lowering);
        let of = |first_clip: usize, at_once: usize| {
            let part = Some(Part { first_clip, ..batch });
            let clips = (at_once * batch.clips_per_split()).min(clips - first_clip);
            Plan::of(stream, model, &Request { part, clips, ..request })
        };
        let mut smallest = self.clone();
        let bytes_of = |at_once: usize| {
            if !self.keeps_alignment(at_once * batch.clips_per_split()) {
                return Ok(usize::MAX);
            }
            smallest = of(0, at_once)?;
            Ok(smallest.bytes())
        };
        match splits_at_once(splits, room.of_plan(), bytes_of)? {
            Some(at_once) => {
                (0..clips).step_by(at_once * batch.clips_per_split()).map(|first| of(first, at_once)).collect()
            }
            None if splits == 1 => Err(self.too_large(
                room,
                ". Its batch is one batch-norm split, which cannot be cut without other statistics: set BN.NORM_TYPE sub_batchnorm with \
                 BN.NUM_SPLITS, or choose a smaller batch, crop or clip length",
            )),
            None => Err(smallest.too_large(room, "; choose more splits, or a smaller batch, crop or clip length")),
        }
    }

    fn too_large(&self, room: Room, what_to_do: &str) -> Error {
        let what = match self.mode {
            Mode::Train => "a training step",
            Mode::Eval => "an evaluation",
        };
        let part = match self.is_micro_batch() {
            true => format!(" even in micro-batches of {} clips ({} batch-norm splits)", self.clips, self.splits()),
            false => String::new(),
        };
        let message = format!(
            "{what} at {} (clips x frames x crop) needs {:.3} GiB{part}, {:.3} of them for activations and scratch memory; \
             VCYCLE.MEMORY_FRACTION of the device gives {:.3} GiB{what_to_do}",
            self.shape,
            (room.beside + self.bytes()) as f64 / GIB,
            self.bytes() as f64 / GIB,
            room.limit as f64 / GIB
        );
        Error::Driver { op: "network".into(), message }
    }

    /// Whether the input of every clip that is a multiple of `clips` begins as the first one's does.
    fn keeps_alignment(&self, clips: usize) -> bool {
        let bytes_of = |pathway: usize| self.input_bytes(pathway) / self.shape.clips * clips;
        self.lowering == Lowering::Plain
            || (0..self.inputs.len()).all(|pathway| bytes_of(pathway).is_multiple_of(INPUT_ALIGNMENT_BYTES))
    }
}
