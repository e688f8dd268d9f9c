//! Labelled video files, listed as PySlowFast lists Kinetics.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::decode::{DecodeOptions, Video};
use super::{ClipSource, Frames, VideoInfo};
use crate::error::{Error, Result};

/// Files that are looked at before a run starts.
const NUM_CHECKED: usize = 16;

/// Where a list of videos lies and how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KineticsConfig {
    /// Folder of the lists (`DATA.PATH_TO_DATA_DIR`).
    pub data_dir: PathBuf,
    /// Folder that the paths in the list start from (`DATA.PATH_PREFIX`); if empty, `data_dir`.
    pub path_prefix: PathBuf,
    /// Between path and label (`DATA.PATH_LABEL_SEPARATOR`); a path may contain it.
    pub separator: String,
    /// Labels lie in 0..`num_classes` (`MODEL.NUM_CLASSES`).
    pub num_classes: usize,
    /// Bounds on decoding.
    pub decode: DecodeOptions,
}

/// The videos of one list, `train.csv`, `val.csv` or `test.csv`: a line for each, `path label`.
pub struct Kinetics {
    num_classes: usize,
    decode: DecodeOptions,
    clips: Vec<(PathBuf, u32)>,
    /// What ffmpeg said of the files that it decodes, so that it is asked once a file.
    probed: Mutex<HashMap<usize, Video>>,
    /// Files that the built-in decoder took and could not finish, told once.
    handed_over: Mutex<HashSet<usize>>,
}

impl Kinetics {
    /// Reads `list` (such as `train.csv`) in the data folder. Errors name the list and the line: no list, a line without
    /// separator, path or label, a label out of range, no line at all, or none of the files that were looked at there.
    pub fn open(config: &KineticsConfig, list: &str) -> Result<Kinetics> {
        let path = config.data_dir.join(list);
        let text = std::fs::read(&path).map_err(|e| {
            let what = "DATA.PATH_TO_DATA_DIR must name the folder of train.csv and val.csv";
            Error::Data(format!("{}: {e}; {what}", path.display()))
        })?;
        // Some editors begin a file with a mark of its encoding.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        let prefix = if config.path_prefix.as_os_str().is_empty() { &config.data_dir } else { &config.path_prefix };
        let mut clips = Vec::new();
        for (k, line) in text.split(|&b| b == b'\n').enumerate() {
            let refuse = |what: String| Error::Data(format!("{}:{}: {what}", path.display(), k + 1));
            let line = std::str::from_utf8(line).map_err(|_| refuse("not UTF-8".into()))?.trim_end_matches('\r');
            if !line.trim().is_empty() {
                let (file, label) = parse_line(line, &config.separator, config.num_classes).map_err(refuse)?;
                clips.push((prefix.join(file), label));
            }
        }
        if clips.is_empty() {
            return Err(Error::Data(format!("{}: lists no video", path.display())));
        }
        check_some_exist(&path, &clips)?;
        let (num_classes, decode) = (config.num_classes, config.decode);
        Ok(Kinetics { num_classes, decode, clips, probed: Mutex::default(), handed_over: Mutex::default() })
    }

    /// Number of different files; a list may name one several times.
    pub fn num_files(&self) -> usize {
        self.clips.iter().map(|(path, _)| path).collect::<HashSet<_>>().len()
    }

    fn video(&self, idx: usize) -> Result<Video> {
        if let Some(video) = lock(&self.probed).get(&idx) {
            return Ok(video.clone());
        }
        let video = Video::open(&self.clips[idx].0, &self.decode)?;
        if !video.is_built_in() {
            lock(&self.probed).insert(idx, video.clone());
        }
        Ok(video)
    }
}

fn parse_line<'a>(line: &'a str, separator: &str, num_classes: usize) -> std::result::Result<(&'a str, u32), String> {
    let parts = if separator.is_empty() { None } else { line.trim_end().rsplit_once(separator) };
    let Some((file, label)) = parts.filter(|(file, _)| !file.trim().is_empty()) else {
        return Err(format!("expected `path{separator}label`, got `{line}`"));
    };
    let label: u32 = label.trim().parse().map_err(|_| format!("`{label}` is no label (an integer from 0 on)"))?;
    if label as usize >= num_classes {
        return Err(format!("label {label} is out of range: MODEL.NUM_CLASSES is {num_classes}"));
    }
    Ok((file.trim_end(), label))
}

/// A wrong prefix would make every clip bad: better said at once. (A few missing files are found when their turn comes.)
fn check_some_exist(list: &Path, clips: &[(PathBuf, u32)]) -> Result<()> {
    let step = clips.len().div_ceil(NUM_CHECKED);
    if clips.iter().step_by(step).any(|(path, _)| path.exists()) {
        return Ok(());
    }
    let (file, checked) = (clips[0].0.display(), clips.len().div_ceil(step));
    let message = format!(
        "{}: none of {checked} listed files exists, the first is {file}; check DATA.PATH_PREFIX",
        list.display()
    );
    Err(Error::Data(message))
}

impl ClipSource for Kinetics {
    fn len(&self) -> usize {
        self.clips.len()
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn label(&self, idx: usize) -> u32 {
        self.clips[idx].1
    }

    fn name(&self, idx: usize) -> String {
        self.clips[idx].0.display().to_string()
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
