//! Batches of clips, prepared ahead of the step by a few threads, in order, with a bound on memory.
//!
//! What slot `i` of an epoch holds is a pure function of (seed, epoch, i, what that slot's videos decode to): neither the
//! number of threads nor where a resumed run starts can change it. That is why a video that fails in its middle, which
//! may depend on the frames drawn, is tried again in later epochs, and only a video that cannot even be opened is
//! left alone from then on.

mod batches;

pub use batches::Batches;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use batches::{Clips, Epoch};

use super::random::Purpose;
use super::{Area, ClipChoice, ClipSource, Crops, Draws, Frames, Sampling, VideoInfo, Views, Wanted};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::ops::resample::{Axis, ClipGrid};
use crate::shape::StepShape;

/// Bad videos that are named in the log; more are only counted.
const MAX_REPORTED: usize = 100;

/// How batches are prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Key of all random choices.
    pub seed: u64,
    /// Threads that decode.
    pub threads: usize,
    /// Batches prepared ahead of the one being consumed.
    pub max_batches: usize,
    /// Decoded bytes that may wait; the batch that is wanted next is prepared whatever its size, and each thread may
    /// finish the clip it is at.
    pub max_bytes: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        LoaderConfig { seed: 0, threads, max_batches: 4, max_bytes: 1 << 30 }
    }
}

/// One clip of a batch: the frames it needs, and where the step's samples lie in them.
#[derive(Clone, Debug, PartialEq)]
pub struct HostClip {
    /// uint8 RGB, `[frames][height_px][width_px][3]`. The crops of one clip of a test share them.
    pub bytes: Arc<Vec<u8>>,
    /// Frames held (not the frames of the whole video).
    pub frames: usize,
    /// Rows.
    pub height_px: usize,
    /// Columns.
    pub width_px: usize,
    /// (row, column) of the first pixel in the video's frames, in which the grid counts.
    pub origin_px: (usize, usize),
    /// The step's grid; its t axis counts the frames held.
    pub grid: ClipGrid,
}

impl HostClip {
    /// Whether both lie in the same memory: crops of one clip.
    pub fn shares_frames_with(&self, other: &HostClip) -> bool {
        Arc::ptr_eq(&self.bytes, &other.bytes)
    }
}

/// The clips of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct HostBatch {
    /// The step's shape. `clips` is the true number, smaller in the last batch of an evaluation.
    pub shape: StepShape,
    /// The clips, ragged.
    pub clips: Vec<HostClip>,
    /// Labels of each clip.
    pub labels: Labels,
    /// Name of each clip.
    pub names: Vec<String>,
    /// Position of each clip in its source.
    pub indices: Vec<usize>,
    /// Seconds that the consumer waited for this batch.
    pub data_wait_s: f64,
}

/// A video that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadClip {
    /// Its position in the source.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What was wrong when it was first met.
    pub message: String,
    /// Whether it failed before a frame was chosen, and is therefore not tried again.
    pub quarantined: bool,
}

/// Prepares batches from a source; lives as long as the run and remembers which videos are bad.
pub struct Loader {
    shared: Arc<LoaderShared>,
    config: LoaderConfig,
}

struct LoaderShared {
    source: Arc<dyn ClipSource>,
    sampling: Sampling,
    seed: u64,
    bad: Mutex<HashMap<usize, BadClip>>,
}

impl Loader {
    /// A loader over `source`. Error: a source without clips, with labels out of range, or whose labels a random flip
    /// would change.
    pub fn new(source: Arc<dyn ClipSource>, sampling: Sampling, config: &LoaderConfig) -> Result<Loader> {
        if source.is_empty() {
            return Err(Error::Data("the data set holds no clip".into()));
        }
        if sampling.random_flip && source.mirror_changes_label() {
            return Err(Error::Config(
                "DATA.RANDOM_FLIP must be False for this data set: a mirrored clip has another label".into(),
            ));
        }
        let classes = source.num_classes();
        let too_large = |idx| source.label_set(idx, None).into_iter().find(|&label| label as usize >= classes);
        if let Some((idx, label)) = (0..source.len()).find_map(|idx| Some((idx, too_large(idx)?))) {
            let name = source.name(idx);
            return Err(Error::Data(format!("{name}: label {label}, but there are {classes} classes (0..{classes})")));
        }
        let shared = LoaderShared { source, sampling, seed: config.seed, bad: Mutex::default() };
        Ok(Loader { shared: Arc::new(shared), config: config.clone() })
    }

    /// The source.
    pub fn source(&self) -> &Arc<dyn ClipSource> {
        &self.shared.source
    }

    /// Threads that decode.
    pub fn threads(&self) -> usize {
        self.config.threads
    }

    /// The training batches `first_step..` of `epoch`, one for each of `steps` (the list is the whole epoch's, so that a
    /// resumed run gets the same clips). The clips come in a random order of (seed, epoch); when the steps ask for more
    /// clips than there are, a further random order follows.
    pub fn train_epoch(&self, epoch: u64, steps: &[StepShape], first_step: usize) -> Batches {
        let order = self.shared.train_order(epoch, steps.iter().map(|s| s.clips).sum());
        Batches::start(
            &self.shared,
            &self.config,
            Epoch { clips: Clips::Train(epoch), steps: steps.into(), order },
            first_step,
        )
    }

    /// The batches of an evaluation: every clip exactly once, in the source's order; the last batch may be smaller. A
    /// bad clip is left out.
    pub fn eval_epoch(&self, shape: StepShape) -> Batches {
        let num_clips = self.shared.source.len();
        let size = shape.clips.max(1);
        let steps = (0..num_clips.div_ceil(size)).map(|k| {
            let clips = size.min(num_clips - k * size);
            StepShape { clips, ..shape }
        });
        let epoch = Epoch { clips: Clips::Eval, steps: steps.collect(), order: (0..num_clips).collect() };
        Batches::start(&self.shared, &self.config, epoch, 0)
    }

    /// The batches of a multi-view test: one a video, in the source's order, with all `views` of it as its clips (view
    /// `clip * num_crops + crop`), whatever `shape.clips` is: the caller runs them in portions. A video is decoded once, for
    /// all its views. A bad video is left out.
    pub fn test_epoch(&self, shape: StepShape, views: Views) -> Batches {
        let num_videos = self.shared.source.len();
        let steps = vec![StepShape { clips: 1, ..shape }; num_videos];
        let epoch = Epoch { clips: Clips::Test(views), steps, order: (0..num_videos).collect() };
        Batches::start(&self.shared, &self.config, epoch, 0)
    }

    /// The videos that turned out bad so far, sorted by position.
    pub fn bad_clips(&self) -> Vec<BadClip> {
        let mut list: Vec<BadClip> = lock(&self.shared.bad).values().cloned().collect();
        list.sort_by_key(|b| b.index);
        list
    }
}

impl LoaderShared {
    fn train_order(&self, epoch: u64, num_slots: usize) -> Vec<usize> {
        let mut order = Vec::with_capacity(num_slots);
        for pass in 0u64.. {
            if order.len() >= num_slots {
                break;
            }
            order.extend(Draws::for_purpose(Purpose::Order, self.seed, epoch, pass).permutation(self.source.len()));
        }
        order.truncate(num_slots);
        order
    }

    /// The clip of a training slot: the one whose turn it is, or else the first good one of a walk through all others.
    fn train_clip(&self, epoch: u64, slot: usize, idx: usize, shape: &StepShape) -> Result<LoadedClip> {
        let train = |idx| {
            let mut draws = Draws::new(self.seed, epoch, slot as u64);
            let clips = self.try_clips(idx, true, &mut |info| vec![self.sampling.train(info, shape, &mut draws)]);
            clips.and_then(|clips| clips.into_iter().next())
        };
        if let Some(clip) = train(idx) {
            return Ok(clip);
        }
        let mut replacement = Draws::for_purpose(Purpose::Replacement, self.seed, epoch, slot as u64);
        let (num_clips, start) = (self.source.len(), replacement.below(self.source.len()));
        for other in (0..num_clips).map(|k| (start + k) % num_clips).filter(|&other| other != idx) {
            if let Some(clip) = train(other) {
                return Ok(clip);
            }
        }
        let bad = lock(&self.bad);
        let first = bad.values().min_by_key(|b| b.index).map_or(String::new(), |b| format!(" ({})", b.message));
        Err(Error::Data(format!("none of the {num_clips} clips can be decoded{first}")))
    }

    /// Decodes video `idx` once for all clips that `choose` wants of it; `None` if it is bad, which is then noted and, the
    /// first time, reported. Labels are those of a clip's frames or of the whole video.
    fn try_clips(
        &self,
        idx: usize,
        labels_of_frames: bool,
        choose: &mut dyn FnMut(&VideoInfo) -> Vec<ClipChoice>,
    ) -> Option<Vec<LoadedClip>> {
        if lock(&self.bad).get(&idx).is_some_and(|b| b.quarantined) {
            return None;
        }
        let mut choices = None;
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            self.source.crops(idx, &mut |info| {
                let chosen = choose(info);
                let all = Wanted { indices: union(&chosen), area: area_of(&chosen) };
                choices = Some(chosen);
                all
            })
        }));
        let result = attempt.unwrap_or_else(|panic| Err(Error::Data(format!("panicked: {}", panic_message(&panic)))));
        match (result, choices) {
            (Ok(mut crops), Some(choices)) => {
                if self.sampling.bgr {
                    crops.frames.bytes.chunks_exact_mut(3).for_each(|pixel| pixel.swap(0, 2));
                }
                let label_set = |choice: &ClipChoice| {
                    let ends = choice.frame_indices.first().zip(choice.frame_indices.last());
                    let span = ends.map(|(&first, &last)| (first, last)).filter(|_| labels_of_frames);
                    self.source.label_set(idx, span)
                };
                let labels: Vec<Vec<u32>> = choices.iter().map(label_set).collect();
                let clips = host_clips(crops, choices).into_iter().zip(labels);
                Some(clips.map(|(clip, labels)| LoadedClip { idx, clip, labels }).collect())
            }
            (Ok(_), None) => {
                self.note_bad(idx, "returned frames without asking which".into(), true);
                None
            }
            (Err(error), choices) => {
                self.note_bad(idx, error.to_string(), choices.is_none());
                None
            }
        }
    }

    fn note_bad(&self, index: usize, message: String, quarantined: bool) {
        let name = self.source.name(index);
        let mut bad = lock(&self.bad);
        let count = bad.len();
        let entry = bad.entry(index).or_insert_with(|| {
            match count {
                ..MAX_REPORTED => tracing::warn!("bad clip, left out: {}", with_name(&name, &message)),
                MAX_REPORTED => tracing::warn!("more than {MAX_REPORTED} bad clips: further ones are only counted"),
                _ => {}
            }
            BadClip { index, name, message, quarantined }
        });
        entry.quarantined |= quarantined;
    }
}

/// A clip with what it is labelled with.
struct LoadedClip {
    /// Position of its video in the source.
    idx: usize,
    clip: HostClip,
    labels: Vec<u32>,
}

/// The frames that `choices` need, ascending. One choice gets its own list, repeated frames and all.
fn union(choices: &[ClipChoice]) -> Vec<u32> {
    let mut all: Vec<u32> = choices.iter().flat_map(|c| c.frame_indices.iter().copied()).collect();
    if choices.len() > 1 {
        all.sort_unstable();
        all.dedup();
    }
    all
}

/// The box that holds all pixels that `choices` may read.
fn area_of(choices: &[ClipChoice]) -> Area {
    let span = |axis: fn(&ClipGrid) -> &Axis| {
        let first = choices.iter().map(|c| axis(&c.grid).lo as usize).min().unwrap_or(0);
        let last = choices.iter().map(|c| axis(&c.grid).hi as usize).max().unwrap_or(0);
        first..last + 1
    };
    Area { rows: span(|grid| &grid.y), columns: span(|grid| &grid.x) }
}

/// A clip for each of `choices` out of the frames of their union.
fn host_clips(crops: Crops, mut choices: Vec<ClipChoice>) -> Vec<HostClip> {
    let Crops { frames: Frames { bytes, indices, height_px, width_px }, origin_px } = crops;
    let clip = |bytes: Arc<Vec<u8>>, choice: ClipChoice| {
        let (frames, grid) = (choice.frame_indices.len(), choice.grid);
        HostClip { bytes, frames, height_px, width_px, origin_px, grid }
    };
    if choices.len() == 1 {
        return choices.pop().map(|choice| clip(Arc::new(bytes), choice)).into_iter().collect();
    }
    let frame_bytes = height_px * width_px * 3;
    let gather = |choice: &ClipChoice| {
        let mut own = Vec::with_capacity(choice.frame_indices.len() * frame_bytes);
        for index in &choice.frame_indices {
            let position = indices.partition_point(|i| i < index);
            own.extend_from_slice(&bytes[position * frame_bytes..][..frame_bytes]);
        }
        own
    };
    let mut clips: Vec<HostClip> = vec![];
    let mut before: Option<Vec<u32>> = None;
    for choice in choices {
        // Views are counted clip by clip: those with the same frames follow each other.
        let bytes = match (clips.last(), &before) {
            (Some(last), Some(frames)) if *frames == choice.frame_indices => last.bytes.clone(),
            _ => Arc::new(gather(&choice)),
        };
        before = Some(choice.frame_indices.clone());
        clips.push(clip(bytes, choice));
    }
    clips
}

/// Errors of files name them, those of other sources may not.
fn with_name(name: &str, message: &str) -> String {
    if message.contains(name) { message.to_string() } else { format!("{name}: {message}") }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs while one of these locks is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
