//! Checkpoints: a folder with the tensors as safetensors and everything else as JSON, complete or not there at all.
//! Must not know of layers, data sets or schedules: it stores named arrays and a [`State`].
//!
//! ```text
//! checkpoints/iteration_00001200/model.safetensors      parameters and running statistics, f32, under PySlowFast's names
//!                                optimizer.safetensors  momentum, under the name of its parameter
//!                                state.json             where the run stood
//! ```

mod saver;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

pub use saver::Saver;
pub use store::Store;

use crate::error::{Error, Result};
use crate::model::NamedArray;

/// Version of the format that [`Checkpoint::load`] reads and [`Store::save`] writes.
pub const FORMAT_VERSION: u32 = 1;

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";

/// Where a run stood: with the tensors, all that is needed to go on as if it had never stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`FORMAT_VERSION`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// Training steps done, skipped ones included.
    pub iteration: u64,
    /// Epoch of the next step.
    pub epoch: u64,
    /// Steps done in that epoch.
    pub iteration_in_epoch: u64,
    /// Whether the optimizer has made a step: before it, momenta do not count.
    pub has_momentum: bool,
    /// What the loss of the next step is multiplied with, of runs with f16 gradients.
    #[serde(default)]
    pub loss_scale: Option<f32>,
    /// Steps taken since it last changed.
    #[serde(default)]
    pub loss_scale_good_steps: u32,
    /// Batch norms that keep the standard form: what was found ill-conditioned as the run began decides the bits of all of it.
    #[serde(default)]
    pub standard_norms: Vec<String>,
    /// The configuration, key by key; a resumed run must have the same.
    pub config: BTreeMap<String, String>,
    /// Best accuracy so far, in percent.
    pub best_val_top1: Option<f64>,
    /// Best accuracy by five classes so far, in percent.
    #[serde(default)]
    pub best_val_top5: Option<f64>,
    /// Latest accuracy, in percent.
    pub val_top1: Option<f64>,
    /// Best mean average precision so far, in percent, where clips may have several labels.
    #[serde(default)]
    pub best_val_map: Option<f64>,
    /// Latest mean average precision, in percent.
    #[serde(default)]
    pub val_map: Option<f64>,
    /// Clips trained on.
    pub clips: u64,
    /// Steps whose loss was not finite.
    pub skipped_steps: u64,
    /// Of these, the latest ones in an unbroken row.
    pub skipped_in_a_row: u64,
    /// Names of the clips that could not be decoded.
    pub bad_clips: BTreeSet<String>,
    /// Sum over the clips of the current epoch: clips, losses, hits.
    pub epoch_clips: u64,
    /// See `epoch_clips`.
    pub epoch_loss_sum: f64,
    /// See `epoch_clips`.
    pub epoch_hits: u64,
    /// See `epoch_clips`: clips whose label was among five.
    #[serde(default)]
    pub epoch_hits_top5: u64,
    /// Seconds of training so far.
    pub wall_s: f64,
    /// Processor seconds (user and system) so far.
    pub cpu_s: f64,
}

/// All that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Where the run stood.
    pub state: State,
    /// Parameters and running statistics.
    pub model: Vec<NamedArray>,
    /// Momentum of the parameters.
    pub momentum: Vec<NamedArray>,
}

impl Checkpoint {
    /// Reads the checkpoint in `folder`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a missing, cut off or foreign file, another format version, and tensors that are not f32.
    pub fn load(folder: &Path) -> Result<Checkpoint> {
        let path = folder.join(STATE_FILE);
        let text = read(&path)?;
        let format = serde_json::from_slice::<serde_json::Value>(&text)
            .map_err(|e| damaged(&path, e))?
            .get("format")
            .and_then(serde_json::Value::as_u64);
        if format != Some(u64::from(FORMAT_VERSION)) {
            let got = format.map_or_else(|| "none".into(), |f| f.to_string());
            return Err(unreadable(&path, format!("expected format version {FORMAT_VERSION}, got {got}")));
        }
        let state = serde_json::from_slice(&text).map_err(|e| damaged(&path, e))?;
        let model = read_tensors(&folder.join(MODEL_FILE))?;
        let momentum = read_tensors(&folder.join(OPTIMIZER_FILE))?;
        Ok(Checkpoint { state, model, momentum })
    }
}

/// Checks that `got` (from the checkpoint at `path`) has exactly the names and shapes of `expected`; any order.
///
/// # Errors
/// [`Error::Checkpoint`] with the first missing, unexpected and reshaped names: the checkpoint is of another model.
pub fn check_same_model(path: &Path, expected: &[(String, Vec<usize>)], got: &[NamedArray]) -> Result<()> {
    let have: BTreeMap<&str, &[usize]> = got.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let want: BTreeMap<&str, &[usize]> = expected.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    let missing: Vec<String> = want.keys().filter(|n| !have.contains_key(*n)).map(|n| n.to_string()).collect();
    let unexpected: Vec<String> = have.keys().filter(|n| !want.contains_key(*n)).map(|n| n.to_string()).collect();
    let reshaped: Vec<String> = want
        .iter()
        .filter_map(|(name, shape)| have.get(name).filter(|s| *s != shape).map(|s| (name, shape, s)))
        .map(|(name, expected, got)| format!("{name} (expected {expected:?}, got {got:?})"))
        .collect();
    let faults: Vec<String> = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(fault, names)| format!("{} {fault}: {}", names.len(), first_few(&names)))
        .collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::Checkpoint(format!("{} is of another model: {}", path.display(), faults.join("; "))))
}

fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

fn unreadable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Checkpoint(format!("{} cannot be used: {why}", path.display()))
}

/// A file that something cut off, wrote over or took away after it was saved.
fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    let folder = path.parent().unwrap_or(path).display();
    unreadable(path, format!("it is damaged ({why}); delete {folder} to go on from the checkpoint before"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => damaged(path, e),
        _ => unreadable(path, e),
    })
}

fn read_tensors(path: &Path) -> Result<Vec<NamedArray>> {
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(path, e))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(unreadable(path, format!("expected {name} in F32, got {:?}", view.dtype())));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        tensors.push(NamedArray { name: name.to_string(), shape: view.shape().to_vec(), values });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn tensors_as_bytes(tensors: &[NamedArray]) -> Result<Vec<u8>> {
    let invalid = |e: safetensors::SafeTensorError| Error::Checkpoint(format!("cannot be written: {e}"));
    let views = tensors
        .iter()
        // The format is little-endian, as are all machines that this crate is built for.
        .map(|t| TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.values)).map(|v| (&t.name, v)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(invalid)?;
    safetensors::serialize(views, None).map_err(invalid)
}
