//! `log.jsonl`: one JSON object a line, one line an iteration and one an epoch, readable while the run goes on.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// The run began or was resumed.
    Run(Run),
    /// A training step.
    Iteration(Iteration),
    /// The end of an epoch.
    Epoch(Epoch),
    /// A step that was skipped, with the clips that were in it.
    Skipped {
        /// Its number, from 1.
        iteration: u64,
        /// Names of its clips.
        clips: Vec<String>,
    },
}

/// What the numbers of a run depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Version of the program.
    pub version: String,
    /// Where it runs, such as `cpu (2 threads)`.
    pub device: String,
    /// Key of all random streams.
    pub seed: u64,
    /// Steps done before: 0, or where the run was resumed.
    pub iteration: u64,
    /// Steps of the whole schedule.
    pub total_iterations: u64,
}

/// A training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// Its number, from 1.
    pub iteration: u64,
    /// Epochs done before it, with the fraction of the current one.
    pub epoch: f64,
    /// Clips, frames, crop in pixels.
    pub shape: [usize; 3],
    /// Batch-norm splits.
    pub splits: usize,
    /// Mean loss of the batch; null where it was not finite.
    pub loss: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// l2 norm of the gradient before clipping; null where the step was skipped.
    #[serde(default)]
    pub grad_norm: Option<f64>,
    /// Clips a second, over the whole step.
    pub clips_per_s: f64,
    /// Seconds that the host waited for the loader; a device that still worked on the step before did not.
    pub data_wait_s: f64,
    /// Share of the step's time in which the device worked, 0 to 1; on the CPU the share that was not spent on feeding.
    #[serde(default)]
    pub busy: Option<f64>,
    /// Bytes of clips copied to the device a second, over the whole step.
    #[serde(default)]
    pub upload_bytes_per_s: Option<f64>,
    /// Seconds since the run began, time before a resume included.
    pub wall_s: f64,
    /// User and system processor seconds, likewise.
    pub cpu_s: f64,
    /// Whether the step was skipped because its loss was not finite.
    pub skipped: bool,
}

/// The end of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Epochs done.
    pub epoch: u64,
    /// Mean loss over its clips; null when every step was skipped.
    pub train_loss: Option<f64>,
    /// Hits over its clips, in percent.
    pub train_top1: Option<f64>,
    /// Accuracy at the default shape, in percent; null when this epoch was not evaluated.
    pub val_top1: Option<f64>,
    /// Mean average precision at the default shape, in percent, where clips may have several labels.
    #[serde(default)]
    pub val_map: Option<f64>,
    /// Mean loss at the default shape.
    pub val_loss: Option<f64>,
    /// Seconds since the run began, its evaluation and time before a resume included.
    pub wall_s: f64,
    /// User and system processor seconds, likewise.
    pub cpu_s: f64,
}

/// Writes `log.jsonl`.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log at `path` and drops what lies beyond `iteration` iterations and `epoch` epochs (a checkpoint's; 0
    /// for a new run), together with a last line that was cut off.
    pub fn open(path: &Path, iteration: u64, epoch: u64) -> Result<Log> {
        let io = |e: std::io::Error| Error::io(path, &e);
        if path.exists() {
            let shorter = path.with_extension("jsonl.unfinished");
            let mut kept = Vec::new();
            for (text, line) in parsed(&fs::read(path).map_err(io)?) {
                if belongs_before(&line, iteration, epoch) {
                    kept.extend_from_slice(text);
                    kept.push(b'\n');
                }
            }
            let mut file = File::create(&shorter).map_err(io)?;
            file.write_all(&kept).and_then(|()| file.sync_all()).map_err(io)?;
            fs::rename(&shorter, path).map_err(io)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        Ok(Log { path: path.to_path_buf(), file })
    }

    /// Appends a line.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| Error::io(&self.path, &e.into()))?;
        text.push('\n');
        // One write a line: whoever reads along, or kills the run, sees whole lines.
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, &e))
    }

    /// The file, to wait elsewhere until all lines so far are on the disk.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| Error::io(&self.path, &e))
    }
}

fn belongs_before(line: &Line, iteration: u64, epoch: u64) -> bool {
    match line {
        Line::Run(run) => run.iteration < iteration,
        Line::Iteration(step) => step.iteration <= iteration,
        Line::Skipped { iteration: skipped, .. } => *skipped <= iteration,
        Line::Epoch(end) => end.epoch <= epoch,
    }
}

/// The lines of the log at `path`; lines that cannot be parsed (the last one of a killed run) are left out.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    Ok(parsed(&bytes).map(|(_, line)| line).collect())
}

/// Each whole line of `bytes` with what it says. A line may be cut off anywhere, inside a character of a file name too.
fn parsed(bytes: &[u8]) -> impl Iterator<Item = (&[u8], Line)> {
    bytes.split(|&b| b == b'\n').filter_map(|line| Some((line, serde_json::from_slice(line).ok()?)))
}
