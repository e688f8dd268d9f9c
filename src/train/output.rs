//! OUTPUT_DIR: the files of one run, and the rule that a new run never writes over an old one.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::checkpoint::Store;
use crate::error::{Error, Result};

/// Numbers of a finished (or interrupted) run, written to `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Accuracy on the validation clips at the default shape at the end, in percent; null before the first evaluation.
    pub val_top1: Option<f64>,
    /// Best accuracy of all evaluations, in percent.
    pub best_val_top1: Option<f64>,
    /// Mean average precision likewise, in percent; null where clips have one label.
    pub val_map: Option<f64>,
    /// Best mean average precision of all evaluations, in percent.
    pub best_val_map: Option<f64>,
    /// Seconds of the run, all parts of a resumed run together.
    pub wall_s: f64,
    /// User and system processor seconds of the program and its children, likewise.
    pub cpu_s: f64,
    /// Clips trained on.
    pub clips: u64,
    /// Training steps.
    pub iterations: u64,
    /// Steps skipped because their loss was not finite.
    pub skipped_steps: u64,
    /// Clips that could not be decoded.
    pub bad_clips: u64,
    /// Where it ran.
    pub device: String,
    /// Epochs done.
    pub epochs: u64,
    /// Whether the whole schedule was run.
    pub finished: bool,
    /// Key of all random streams.
    pub seed: u64,
    /// Version of the program.
    pub version: String,
}

const CHECKPOINTS: &str = "checkpoints";
const LOG: &str = "log.jsonl";

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct OutputDir {
    folder: PathBuf,
    /// Locked as long as the run lives, so that two do not write over each other. `None` where folders have no locks.
    _lock: Option<Arc<File>>,
}

impl OutputDir {
    /// OUTPUT_DIR as the configuration has it; `.` (PySlowFast's default) means `runs/NAME`, NAME from the yaml file.
    pub fn path(output_dir: &str, name: &str) -> PathBuf {
        match output_dir {
            "" | "." => Path::new("runs").join(name),
            other => PathBuf::from(other),
        }
    }

    fn lock(folder: &Path) -> Result<OutputDir> {
        let file = File::open(folder).ok();
        if let Some(Err(TryLockError::WouldBlock)) = file.as_ref().map(File::try_lock) {
            return Err(Error::Config(format!("OUTPUT_DIR {}: another run is writing there", folder.display())));
        }
        Ok(OutputDir { folder: folder.to_path_buf(), _lock: file.map(Arc::new) })
    }

    /// Makes the folder of a new run.
    ///
    /// # Errors
    /// [`Error::Config`] when it holds anything: an earlier run is not overwritten.
    pub fn create(folder: &Path) -> Result<OutputDir> {
        if !is_empty(folder)? {
            return Err(Error::Config(format!(
                "OUTPUT_DIR {} is not empty: add --resume to go on with the run in it, or choose another folder \
                 (OUTPUT_DIR FOLDER), or delete it",
                folder.display()
            )));
        }
        OutputDir::lock(folder)
    }

    /// The folder of a run that is to go on; made if there is none yet.
    ///
    /// # Errors
    /// [`Error::Config`] when it holds something else than a run, and while another process runs it.
    pub fn reopen(folder: &Path) -> Result<OutputDir> {
        // An empty one was stopped before it wrote anything, or never begun.
        if is_empty(folder)? || folder.join(LOG).is_file() || folder.join(CHECKPOINTS).is_dir() {
            return OutputDir::lock(folder);
        }
        Err(Error::Config(format!(
            "OUTPUT_DIR {} holds something else than a run: there is nothing to resume; choose another folder",
            folder.display()
        )))
    }

    /// Whether a run saved a checkpoint in `folder`: what TRAIN.AUTO_RESUME asks.
    pub fn has_checkpoint(folder: &Path) -> bool {
        let checkpoints = folder.join(CHECKPOINTS);
        checkpoints.is_dir() && Store::open(&checkpoints, 1).and_then(|store| store.newest()).is_ok_and(|c| c.is_some())
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its checkpoints, of which the newest `keep` stay.
    pub fn checkpoints(&self, keep: usize) -> Result<Store> {
        Store::open(&self.folder.join(CHECKPOINTS), keep)
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    /// Writes the configuration as run.
    pub fn write_config(&self, yaml: &str) -> Result<()> {
        replace(&self.folder.join("config.yaml"), yaml.as_bytes())
    }

    /// Writes the summary.
    pub fn write_summary(&self, summary: &Summary) -> Result<()> {
        let path = self.folder.join("summary.json");
        let text = serde_json::to_vec_pretty(summary).map_err(|e| Error::io(&path, &e.into()))?;
        replace(&path, &text)
    }
}

/// Whether nothing lies in `folder`, which is made if it is not there.
fn is_empty(folder: &Path) -> Result<bool> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    Ok(fs::read_dir(folder).map_err(|e| Error::io(folder, &e))?.next().is_none())
}

/// Writes a file under another name and renames it, so that there is always a whole one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&unfinished);
        Error::io(path, &e)
    })
}
