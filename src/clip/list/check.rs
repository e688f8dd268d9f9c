//! Looks at the files of a list, one video at a time.

use std::path::{Path, PathBuf};

use super::{Fault, FaultKind, Media, VideoList};
use crate::clip::ClipSource;
use crate::clip::decode::{Damage, Video, jpeg};
use crate::clip::fingerprint::Fingerprint;
use crate::error::Error;

/// What the files of one video are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checked {
    /// Frames; 0 where the file cannot be opened.
    pub num_frames: usize,
    /// Length; `None` where frames are pictures.
    pub seconds: Option<f64>,
    /// All files together.
    pub bytes: u64,
    /// Who decodes it.
    pub decoder: Option<String>,
    /// What is wrong with it.
    pub faults: Vec<Fault>,
}

impl VideoList {
    /// Opens the files of video `idx` and decodes the first and the last frame, or `all`.
    pub(crate) fn check(&self, idx: usize, all: bool) -> Checked {
        let mut checked = Checked::default();
        let fault = match &self.entries[idx].media {
            Media::File(_) => self.check_file(&self.file(idx, 0), all, &mut checked),
            Media::Pictures(_) => self.check_pictures(idx, all, &mut checked),
        };
        checked.faults.extend(fault.err());
        checked
    }

    fn check_file(&self, path: &Path, all: bool, checked: &mut Checked) -> Result<(), Fault> {
        checked.bytes = std::fs::metadata(path).map_err(|e| missing(path, &e))?.len();
        let mut video = Video::open(path, &self.config.decode).map_err(|e| undecodable(path, &e))?;
        let info = video.info();
        (checked.num_frames, checked.seconds) = (info.num_frames, Some(info.num_frames as f64 / info.fps));
        checked.decoder = Some(info.decoder.clone());
        match video.check(all) {
            None => Ok(()),
            Some(Damage::Truncated(message)) => Err(Fault::new(FaultKind::Truncated, path.display(), message)),
            Some(Damage::Undecodable(message)) => Err(Fault::new(FaultKind::Undecodable, path.display(), message)),
        }
    }

    fn check_pictures(&self, idx: usize, all: bool, checked: &mut Checked) -> Result<(), Fault> {
        let files = || self.files(idx);
        (checked.num_frames, checked.decoder) = (files().len(), Some("built-in jpeg".into()));
        let mut absent: Vec<PathBuf> = vec![];
        for file in files() {
            match std::fs::metadata(&file) {
                Ok(metadata) => checked.bytes += metadata.len(),
                Err(_) => absent.push(file),
            }
        }
        if let Some(first) = absent.first() {
            let message =
                format!("{} of {} frames are not there, the first is {}", absent.len(), files().len(), first.display());
            return Err(Fault::new(FaultKind::Missing, self.name(idx), message));
        }
        let last = files().len().saturating_sub(1);
        let mut size = None;
        for (_, file) in files().enumerate().filter(|(k, _)| all || *k == 0 || *k == last) {
            let picture = jpeg::read(&file).map_err(|e| undecodable(&file, &e))?;
            let (first, this) =
                (*size.get_or_insert((picture.width_px, picture.height_px)), (picture.width_px, picture.height_px));
            if first != this {
                let message =
                    format!("{}x{} pixels, but the video's first frame has {}x{}", this.0, this.1, first.0, first.1);
                return Err(Fault::new(FaultKind::Undecodable, file.display(), message));
            }
        }
        Ok(())
    }

    /// The fingerprint of video `idx`: its name, its labels, and the size of its file (of its first, middle and last picture).
    /// The folder that holds the files does not count: data may move.
    pub(crate) fn fingerprint_of(&self, idx: usize) -> u64 {
        let entry = &self.entries[idx];
        let mut fingerprint = Fingerprint::new();
        fingerprint.add_text(&entry.name);
        for (first, classes) in &entry.classes {
            fingerprint.add_number(u64::from(*first));
            fingerprint.add_number(classes.len() as u64);
            classes.iter().for_each(|&class| fingerprint.add_number(u64::from(class)));
        }
        self.add_files(idx, &mut fingerprint);
        fingerprint.value()
    }

    /// The same without the labels.
    pub(crate) fn fingerprint_of_files(&self, idx: usize) -> u64 {
        let mut fingerprint = Fingerprint::new();
        fingerprint.add_text(&self.entries[idx].name);
        self.add_files(idx, &mut fingerprint);
        fingerprint.value()
    }

    fn add_files(&self, idx: usize, fingerprint: &mut Fingerprint) {
        let len = self.files(idx).len();
        fingerprint.add_number(len as u64);
        for k in [0, len / 2, len.saturating_sub(1)].into_iter().take(len.min(3)) {
            let size = std::fs::metadata(self.file(idx, k)).map_or(u64::MAX, |metadata| metadata.len());
            fingerprint.add_number(size);
        }
    }
}

fn missing(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(FaultKind::Missing, path.display(), error.to_string())
}

/// The message without the path, which the fault names anyway.
fn undecodable(path: &Path, error: &Error) -> Fault {
    let message = match error {
        Error::Decode { message, .. } | Error::Io { message, .. } => message.clone(),
        other => other.to_string(),
    };
    Fault::new(FaultKind::Undecodable, path.display(), message)
}
