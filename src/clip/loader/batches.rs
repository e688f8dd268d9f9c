//! The batches of one epoch: a bounded queue between the threads that decode and the step that consumes.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{HostBatch, HostClip, LoadedClip, LoaderConfig, LoaderShared, lock};
use crate::clip::Views;
use crate::error::Result;
use crate::labels::Labels;
use crate::shape::StepShape;

/// Which clips a slot gives.
#[derive(Clone, Copy, Debug)]
pub(super) enum Clips {
    /// One at random, of this epoch.
    Train(u64),
    /// The middle one.
    Eval,
    /// All views of a test.
    Test(Views),
}

/// What an epoch is made of. Slot `i` is the i-th clip of the epoch, over all its batches.
pub(super) struct Epoch {
    pub clips: Clips,
    pub steps: Vec<StepShape>,
    /// The clip of each slot.
    pub order: Vec<usize>,
}

/// The batches of an epoch, in order; an iterator. Dropping it stops the threads.
pub struct Batches {
    queue: Arc<Queue>,
    workers: Vec<JoinHandle<()>>,
    next_step: usize,
}

struct Queue {
    loader: Arc<LoaderShared>,
    epoch: Epoch,
    /// First slot of each step, and the number of slots.
    step_starts: Vec<usize>,
    max_batches: usize,
    max_bytes: usize,
    state: Mutex<QueueState>,
    /// Workers wait here for room.
    room: Condvar,
    /// The consumer waits here for clips.
    ready: Condvar,
}

#[derive(Default)]
struct QueueState {
    next_slot: usize,
    current_step: usize,
    done: BTreeMap<usize, SlotResult>,
    done_bytes: usize,
    stop: bool,
}

/// The clips of a slot: one, in a test all views of a video; none for a bad video of an evaluation or a test.
type SlotResult = Result<Vec<LoadedClip>>;

impl Batches {
    pub(super) fn start(loader: &Arc<LoaderShared>, config: &LoaderConfig, epoch: Epoch, first_step: usize) -> Batches {
        let mut step_starts = vec![0];
        for step in &epoch.steps {
            step_starts.push(step_starts[step_starts.len() - 1] + step.clips);
        }
        let first_step = first_step.min(epoch.steps.len());
        let state = QueueState { next_slot: step_starts[first_step], current_step: first_step, ..Default::default() };
        let queue = Arc::new(Queue {
            loader: loader.clone(),
            epoch,
            step_starts,
            max_batches: config.max_batches.max(1),
            max_bytes: config.max_bytes,
            state: Mutex::new(state),
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let workers = (0..config.threads.max(1)).map(|_| {
            let queue = queue.clone();
            std::thread::spawn(move || queue.work())
        });
        Batches { workers: workers.collect(), queue, next_step: first_step }
    }

    /// Batches left.
    pub fn remaining(&self) -> usize {
        self.queue.epoch.steps.len() - self.next_step
    }

    fn next_batch(&mut self) -> Option<Result<HostBatch>> {
        let shape = *self.queue.epoch.steps.get(self.next_step)?;
        let begin = Instant::now();
        let slots = self.queue.take_step(self.next_step);
        self.next_step += 1;
        let mut batch = HostBatch {
            shape,
            clips: Vec::with_capacity(shape.clips),
            labels: Labels::Classes(vec![]),
            names: Vec::with_capacity(shape.clips),
            indices: Vec::with_capacity(shape.clips),
            data_wait_s: begin.elapsed().as_secs_f64(),
        };
        let source = &self.queue.loader.source;
        let mut label_sets = Vec::with_capacity(shape.clips);
        for slot in slots {
            match slot {
                Ok(clips) => {
                    for LoadedClip { idx, clip, labels } in clips {
                        batch.clips.push(clip);
                        batch.names.push(source.name(idx));
                        batch.indices.push(idx);
                        label_sets.push(labels);
                    }
                }
                Err(error) => {
                    self.next_step = self.queue.epoch.steps.len();
                    return Some(Err(error));
                }
            }
        }
        batch.labels = match source.is_multi_label() {
            true => Labels::Sets(label_sets),
            false => Labels::Classes(batch.indices.iter().map(|&idx| source.label(idx)).collect()),
        };
        batch.shape.clips = batch.clips.len();
        Some(Ok(batch))
    }
}

impl Iterator for Batches {
    type Item = Result<HostBatch>;

    fn next(&mut self) -> Option<Result<HostBatch>> {
        loop {
            // An evaluation batch of bad clips alone is passed over.
            match self.next_batch()? {
                Ok(batch) if batch.clips.is_empty() => {}
                result => return Some(result),
            }
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        lock(&self.queue.state).stop = true;
        self.queue.room.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its clips; there is nothing to learn from one that died.
            let _ = worker.join();
        }
    }
}

impl Queue {
    /// A worker: claims the next slot when there is room, fills it, until none is left.
    fn work(&self) {
        while let Some(slot) = self.claim() {
            let result = self.fill(slot);
            let mut state = lock(&self.state);
            state.done_bytes += bytes_of(&result);
            state.done.insert(slot, result);
            self.ready.notify_one();
        }
    }

    fn claim(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        loop {
            let slot = state.next_slot;
            if state.stop || slot >= self.epoch.order.len() {
                return None;
            }
            let step = self.step_of(slot);
            let in_bounds = step < state.current_step + self.max_batches && state.done_bytes < self.max_bytes;
            if step <= state.current_step || in_bounds {
                state.next_slot += 1;
                return Some(slot);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn step_of(&self, slot: usize) -> usize {
        self.step_starts.partition_point(|&start| start <= slot) - 1
    }

    fn fill(&self, slot: usize) -> SlotResult {
        let (loader, idx, shape) = (&self.loader, self.epoch.order[slot], &self.epoch.steps[self.step_of(slot)]);
        let clips = match self.epoch.clips {
            Clips::Train(epoch) => return Ok(vec![loader.train_clip(epoch, slot, idx, shape)?]),
            Clips::Eval => loader.try_clips(idx, false, &mut |info| vec![loader.sampling.eval(info, shape)]),
            Clips::Test(views) => loader.try_clips(idx, false, &mut |info| {
                (0..views.count()).map(|view| loader.sampling.test(info, shape, views, view)).collect()
            }),
        };
        Ok(clips.unwrap_or_default())
    }

    /// Waits for all slots of `step` and takes them out, in order.
    fn take_step(&self, step: usize) -> Vec<SlotResult> {
        let (begin, end) = (self.step_starts[step], self.step_starts[step + 1]);
        let mut state = lock(&self.state);
        state.current_step = step;
        self.room.notify_all();
        while state.done.range(begin..end).count() < end - begin {
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let slots: Vec<SlotResult> = (begin..end).filter_map(|slot| state.done.remove(&slot)).collect();
        state.done_bytes -= slots.iter().map(bytes_of).sum::<usize>();
        // The batch leaves with the caller: work on the one after it.
        state.current_step = step + 1;
        self.room.notify_all();
        slots
    }
}

fn bytes_of(result: &SlotResult) -> usize {
    let clips: Vec<&HostClip> = result.iter().flatten().map(|loaded| &loaded.clip).collect();
    let is_shared = |k: usize| k > 0 && clips[k].shares_frames_with(clips[k - 1]);
    (0..clips.len()).filter(|&k| !is_shared(k)).map(|k| clips[k].bytes.len()).sum()
}
