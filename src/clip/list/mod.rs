//! Labelled videos that list files name, in PySlowFast's formats: video files, or folders of pictures.
//!
//! | format | lists | file |
//! |---|---|---|
//! | Kinetics | `train.csv`, `val.csv`, `test.csv` | `kinetics.rs` |
//! | Something-Something V2 | `something-something-v2-*.json`, and `train.csv`, `val.csv` of frames | `ssv2.rs` |
//! | Charades | `train.csv`, `val.csv` of frames with labels | `charades.rs` |

mod charades;
mod check;
mod fault;
mod frame_list;
mod kinetics;
mod lines;
mod paths;
mod pictures;
mod ssv2;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) use check::Checked;
pub use fault::{Fault, FaultKind};

use rayon::prelude::*;

use super::decode::{DecodeOptions, Video};
use super::fingerprint::Fingerprint;
use super::{ClipSource, Frames, Split, VideoInfo};
use crate::error::{Error, Result};
use paths::FramePaths;

/// Videos that are looked at before a run starts.
const NUM_CHECKED: usize = 16;

/// Which lists, and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListFormat {
    /// A video and its label a line.
    Kinetics,
    /// Labels by name in json files.
    Ssv2,
    /// A frame and its labels a line.
    Charades,
}

/// Where lists lie, how they are written, and how to decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListConfig {
    /// How the lists are written (`TRAIN.DATASET`).
    pub format: ListFormat,
    /// Folder of the lists (`DATA.PATH_TO_DATA_DIR`).
    pub data_dir: PathBuf,
    /// Folder that the paths in the lists start from (`DATA.PATH_PREFIX`); if empty, `data_dir`.
    pub path_prefix: PathBuf,
    /// Between path and label of Kinetics (`DATA.PATH_LABEL_SEPARATOR`); a path may contain it.
    pub separator: String,
    /// Ending of Something-Something V2's video files (`VCYCLE.SSV2_VIDEOS`); empty for frames.
    pub ssv2_videos: String,
    /// Labels lie in 0..`num_classes` (`MODEL.NUM_CLASSES`).
    pub num_classes: usize,
    /// Bounds on decoding.
    pub decode: DecodeOptions,
}

impl ListConfig {
    /// Kinetics' lists in `data_dir`, everything else as PySlowFast has it.
    pub fn kinetics(data_dir: impl Into<PathBuf>, num_classes: usize) -> ListConfig {
        ListConfig {
            format: ListFormat::Kinetics,
            data_dir: data_dir.into(),
            path_prefix: PathBuf::new(),
            separator: " ".into(),
            ssv2_videos: String::new(),
            num_classes,
            decode: DecodeOptions::default(),
        }
    }

    fn prefix(&self) -> &Path {
        if self.path_prefix.as_os_str().is_empty() { &self.data_dir } else { &self.path_prefix }
    }
}

/// Frames of a video.
#[derive(Clone, Debug)]
enum Media {
    /// One file, relative to the prefix.
    File(PathBuf),
    /// A picture each.
    Pictures(FramePaths),
}

/// Classes along a video: each entry counts from its frame to the next one's.
pub(super) type ClassRuns = Vec<(u32, Box<[u32]>)>;

/// A video of a list.
#[derive(Clone, Debug)]
struct Entry {
    /// What tells it from others: the path or the id.
    name: String,
    media: Media,
    classes: ClassRuns,
}

/// A list as read: what can be used of it, and what is wrong with the rest.
#[derive(Debug, Default)]
struct Listing {
    entries: Vec<Entry>,
    faults: Vec<Fault>,
    /// Hashes of the frames' paths, where double frames are looked for: lists may hold tens of millions.
    seen_frames: Option<HashSet<u64>>,
}

/// The videos of one list (or of one pair of lists, Something-Something V2).
pub struct VideoList {
    config: ListConfig,
    entries: Vec<Entry>,
    faults: Vec<Fault>,
    /// What ffmpeg said of the files that it decodes, so that it is asked once a file.
    probed: Mutex<HashMap<usize, Video>>,
    /// (height, width) of the frames of videos that are pictures.
    picture_sizes: Mutex<HashMap<usize, (usize, usize)>>,
    /// Files that the built-in decoder took and could not finish, told once.
    handed_over: Mutex<HashSet<usize>>,
}

impl VideoList {
    /// Reads the lists of `split`. Errors name the list and the line: no list, a line that cannot be read, a label out of
    /// range, no line at all, or none of the files that were looked at there.
    pub fn open(config: &ListConfig, split: Split) -> Result<VideoList> {
        let list = VideoList::read_as(config, split, Listing::default())?;
        if let Some(fault) = list.faults.iter().find(|fault| fault.kind != FaultKind::Duplicate) {
            return Err(Error::Data(format!("{}: {}", fault.place, fault.message)));
        }
        if list.entries.is_empty() {
            return Err(Error::Data(format!("{}: lists no video", list.list_path(split).display())));
        }
        list.check_some_exist(split)?;
        Ok(list)
    }

    /// Reads the lists of `split` as far as they can be read: what is wrong with the rest is in [`VideoList::faults`].
    ///
    /// # Errors
    /// A list that is not there, or no list at all.
    pub fn read(config: &ListConfig, split: Split) -> Result<VideoList> {
        VideoList::read_as(config, split, Listing { seen_frames: Some(HashSet::new()), ..Listing::default() })
    }

    fn read_as(config: &ListConfig, split: Split, mut listing: Listing) -> Result<VideoList> {
        match config.format {
            ListFormat::Kinetics => kinetics::read(config, split, &mut listing)?,
            ListFormat::Ssv2 => ssv2::read(config, split, &mut listing)?,
            ListFormat::Charades => charades::read(config, split, &mut listing)?,
        }
        let Listing { entries, faults, .. } = listing;
        Ok(VideoList {
            config: config.clone(),
            entries,
            faults,
            probed: Mutex::default(),
            picture_sizes: Mutex::default(),
            handed_over: Mutex::default(),
        })
    }

    /// What is wrong with the lists; double entries are the only faults of a list that [`VideoList::open`] took.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The classes along video `idx`.
    pub(super) fn class_runs(&self, idx: usize) -> &ClassRuns {
        &self.entries[idx].classes
    }

    /// What tells video `idx` from others: its path in the list, or its id.
    pub fn id(&self, idx: usize) -> &str {
        &self.entries[idx].name
    }

    /// The files of video `idx`: one, or a picture a frame.
    pub fn files(&self, idx: usize) -> impl ExactSizeIterator<Item = PathBuf> {
        let media = &self.entries[idx].media;
        let len = match media {
            Media::File(_) => 1,
            Media::Pictures(paths) => paths.len(),
        };
        (0..len).map(move |k| self.file(idx, k))
    }

    /// Whether video `idx` is a folder of pictures.
    pub fn is_pictures(&self, idx: usize) -> bool {
        matches!(self.entries[idx].media, Media::Pictures(_))
    }

    fn file(&self, idx: usize, frame: usize) -> PathBuf {
        match &self.entries[idx].media {
            Media::File(path) => self.config.prefix().join(path),
            Media::Pictures(paths) => self.config.prefix().join(paths.get(frame)),
        }
    }

    fn list_path(&self, split: Split) -> PathBuf {
        self.config.data_dir.join(format!("{}.csv", split.name()))
    }

    /// A wrong prefix would make every clip bad: better said at once. (A few missing files are found when their turn comes.)
    fn check_some_exist(&self, split: Split) -> Result<()> {
        let step = self.entries.len().div_ceil(NUM_CHECKED);
        if (0..self.entries.len()).step_by(step).any(|idx| self.file(idx, 0).exists()) {
            return Ok(());
        }
        let (list, checked) = (self.list_path(split), self.entries.len().div_ceil(step));
        let (list, first) = (list.display(), self.file(0, 0));
        let message = format!(
            "{list}: none of {checked} listed files exists, the first is {}; check DATA.PATH_PREFIX",
            first.display()
        );
        Err(Error::Data(message))
    }

    fn video(&self, idx: usize) -> Result<Video> {
        if let Some(video) = lock(&self.probed).get(&idx) {
            return Ok(video.clone());
        }
        let video = Video::open(self.file(idx, 0), &self.config.decode)?;
        if !video.is_built_in() {
            lock(&self.probed).insert(idx, video.clone());
        }
        Ok(video)
    }

    /// Decodes all frames of video `idx` in little memory: `sink` gets what the video is, the index and `[row][column][3]` of
    /// each frame, as [`Video::each_frame`]. Returns how many came.
    pub(super) fn each_frame(&self, idx: usize, sink: &mut dyn FnMut(&VideoInfo, usize, &[u8])) -> Result<usize> {
        let Media::Pictures(paths) = &self.entries[idx].media else {
            let mut video = self.video(idx)?;
            let info = video.info().clone();
            return video.each_frame(&mut |k, rgb| sink(&info, k, rgb));
        };
        for k in 0..paths.len() {
            let mut known = None;
            let one = self.pictures(idx, paths.len(), &mut |info| {
                known = Some(info.clone());
                vec![k as u32]
            })?;
            known.iter().for_each(|info| sink(info, k, &one.bytes));
        }
        Ok(paths.len())
    }

    fn video_frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        let mut video = self.video(idx)?;
        let (indices, was_built_in) = (choose(video.info()), video.is_built_in());
        let frames = video.frames(&indices)?;
        // It stays with the built-in decoder: which decoder counts the frames must not depend on what was drawn before.
        if was_built_in != video.is_built_in() && lock(&self.handed_over).insert(idx) {
            tracing::warn!("{}: damaged for the built-in decoder, decoded by ffmpeg", self.name(idx));
        }
        Ok(frames)
    }
}

impl ClipSource for VideoList {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn label(&self, idx: usize) -> u32 {
        first_class(&self.entries[idx].classes)
    }

    fn is_multi_label(&self) -> bool {
        self.config.format == ListFormat::Charades
    }

    fn label_set(&self, idx: usize, frames: Option<(u32, u32)>) -> Vec<u32> {
        classes_of(&self.entries[idx].classes, frames)
    }

    fn fingerprint(&self) -> Option<String> {
        // Files are asked for their sizes by many threads: they may lie far away.
        let each: Vec<u64> = (0..self.len()).into_par_iter().map(|idx| self.fingerprint_of(idx)).collect();
        let mut fingerprint = Fingerprint::new();
        each.into_iter().for_each(|value| fingerprint.add_number(value));
        Some(format!("{:016x}", fingerprint.value()))
    }

    fn name(&self, idx: usize) -> String {
        match &self.entries[idx].media {
            Media::File(_) => self.file(idx, 0).display().to_string(),
            Media::Pictures(_) => {
                let (id, first) = (&self.entries[idx].name, self.file(idx, 0));
                format!("{id} ({})", first.parent().unwrap_or(&first).display())
            }
        }
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        match &self.entries[idx].media {
            Media::File(_) => self.video_frames(idx, choose),
            Media::Pictures(paths) => self.pictures(idx, paths.len(), choose),
        }
    }
}

/// The class of a video that has one.
pub(super) fn first_class(runs: &ClassRuns) -> u32 {
    runs.iter().flat_map(|(_, classes)| classes.first()).copied().next().unwrap_or(0)
}

/// The classes seen from the first to the last of `frames`, or anywhere; ascending.
pub(super) fn classes_of(runs: &ClassRuns, frames: Option<(u32, u32)>) -> Vec<u32> {
    let (first, last) = frames.unwrap_or((0, u32::MAX));
    let begin = runs.partition_point(|(start, _)| *start <= first).saturating_sub(1);
    let seen = runs[begin..].iter().take_while(|(start, _)| *start <= last);
    let mut classes: Vec<u32> = seen.flat_map(|(_, classes)| classes.iter().copied()).collect();
    classes.sort_unstable();
    classes.dedup();
    classes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
