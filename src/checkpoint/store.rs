//! The folder of checkpoints: what is in it under its final name is complete and on the disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Checkpoint, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, tensors_as_bytes};
use crate::error::{Error, Result};

const PREFIX: &str = "iteration_";
/// Begins the names of folders that are not (or no longer) checkpoints.
const UNFINISHED: &str = ".unfinished_";

/// A folder of checkpoints, of which the newest few are kept.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    keep: usize,
}

impl Store {
    /// Opens `folder`, or makes it. The newest `keep` (at least one) checkpoints stay.
    pub fn open(folder: &Path, keep: usize) -> Result<Store> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
        Ok(Store { folder: folder.to_path_buf(), keep: keep.max(1) })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Complete checkpoints, oldest first.
    pub fn list(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, &e))? {
            let entry = entry.map_err(|e| Error::io(&self.folder, &e))?;
            if let Some(key) = entry.file_name().to_str().and_then(parse) {
                found.push((key, entry.path()));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// The newest checkpoint, if there is any.
    pub fn newest(&self) -> Result<Option<PathBuf>> {
        Ok(self.list()?.pop())
    }

    /// Writes `checkpoint` and, once it is safely on the disk, deletes those beyond the newest few. Returns its folder.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when a file cannot be written (a full disk, for one). What was saved before is untouched.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        self.remove_unfinished();
        let name = self.unused_name(checkpoint.state.iteration);
        let (unfinished, folder) = (self.folder.join(format!("{UNFINISHED}{name}")), self.folder.join(&name));
        let written = write_all(&unfinished, checkpoint)
            .and_then(|()| fs::rename(&unfinished, &folder))
            .and_then(|()| sync(&self.folder));
        if let Err(error) = written {
            // Gives back the room that the torso takes; whether this works changes nothing.
            let _ = fs::remove_dir_all(&unfinished);
            let before = match self.newest() {
                Ok(Some(path)) => format!("{} is complete and can be resumed", path.display()),
                _ => "nothing was saved before".into(),
            };
            return Err(Error::Checkpoint(format!("cannot save {}: {error}; {before}", folder.display())));
        }
        self.delete_oldest()?;
        Ok(folder)
    }

    /// A second checkpoint of one iteration gets a name of its own: the first is not touched while the second is written.
    fn unused_name(&self, iteration: u64) -> String {
        let name = format!("{PREFIX}{iteration:08}");
        let revisions = (2..).map(|revision| format!("{name}_{revision}"));
        let mut names = std::iter::once(name.clone()).chain(revisions);
        names.find(|n| !self.folder.join(n).exists()).unwrap_or(name)
    }

    fn delete_oldest(&self) -> Result<()> {
        let all = self.list()?;
        for path in &all[..all.len().saturating_sub(self.keep)] {
            // Renamed first: a crash while deleting must not leave half a checkpoint under a checkpoint's name.
            let going = self.folder.join(format!("{UNFINISHED}deleted"));
            fs::rename(path, &going).and_then(|()| fs::remove_dir_all(&going)).map_err(|e| Error::io(path, &e))?;
        }
        Ok(())
    }

    /// Clears what a crash left behind.
    fn remove_unfinished(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Iteration and revision in the name of a checkpoint's folder.
fn parse(name: &str) -> Option<(u64, u64)> {
    let numbers = name.strip_prefix(PREFIX)?;
    match numbers.split_once('_') {
        Some((iteration, revision)) => Some((iteration.parse().ok()?, revision.parse().ok()?)),
        None => Some((numbers.parse().ok()?, 1)),
    }
}

fn write_all(folder: &Path, checkpoint: &Checkpoint) -> std::io::Result<()> {
    let other = |e: Error| std::io::Error::other(e.to_string());
    fs::create_dir(folder)?;
    write_durably(&folder.join(MODEL_FILE), &tensors_as_bytes(&checkpoint.model).map_err(other)?)?;
    write_durably(&folder.join(OPTIMIZER_FILE), &tensors_as_bytes(&checkpoint.momentum).map_err(other)?)?;
    write_durably(&folder.join(STATE_FILE), &serde_json::to_vec_pretty(&checkpoint.state)?)?;
    sync(folder)
}

fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes names that were created or renamed in `folder` durable.
fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
