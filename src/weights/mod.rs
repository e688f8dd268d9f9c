//! Weights in the formats of others: read, renamed to PySlowFast's names, fitted to a model, written.
//!
//! | step | file |
//! |---|---|
//! | which format is it, then its reader | here, `pytorch.rs`, `caffe2.rs`, `safetensors.rs` |
//! | pickles, without running anything | `pickle/` |
//! | strided views to whole tensors | `view.rs` |
//! | names of others become PySlowFast's | `names.rs` |
//! | into the shapes of a model, and what did not fit | `fit.rs`, `report.rs` |
//! | `.pyth` for PyTorch | `pyth.rs` |
//!
//! ```no_run
//! use vcycle::device::Device;
//! use vcycle::model::{Arch, Model, ModelConfig, Network};
//! use vcycle::weights;
//!
//! # fn main() -> vcycle::Result<()> {
//! let model = Model::new(&ModelConfig::new(Arch::SlowFast, 50, 400))?;
//! let mut network = Network::new(&Device::Cpu, model, 0)?;
//! let state = weights::load("SLOWFAST_8x8_R50.pkl".as_ref())?;
//! let report = weights::load_into(&mut network, state, &weights::Options::default())?;
//! println!("{report}");
//! # Ok(()) }
//! ```

mod caffe2;
mod fit;
mod momenta;
mod names;
mod pickle;
mod pyth;
mod pytorch;
mod report;
mod safetensors;
mod tensor;
mod view;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

pub use fit::{Options, entries, fit, load_into};
pub use names::{Renaming, from_caffe2, from_torchvision, rename};
use pytorch::Part;
pub use report::{Change, Report};
pub use tensor::{ElementType, Format, StateDict, StoredTensor};

use crate::checkpoint::{Checkpoint, Store};
use crate::error::{Error, Result};
use crate::model::{Model, OptimizerState};

/// Reads the weights at `path`: a file in any of the formats of [`Format`], told by its content, or the folder of a
/// checkpoint of this program (or of a run: its newest one). Nothing of the file is executed, and no more memory is taken
/// than the file's size allows.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be opened. [`Error::Checkpoint`] for one that is damaged, of no known format, or
/// names a class that is no part of weights.
pub fn load(path: &Path) -> Result<StateDict> {
    if path.is_dir() {
        let (folder, checkpoint) = load_run(path)?;
        return Ok(of_run(folder, &checkpoint));
    }
    let (file, file_bytes, format) = open(path)?;
    let unreadable = |why: String| Error::Checkpoint(format!("{} cannot be used: {why}", path.display()));
    let (tensors, epoch) = match format {
        Format::PyTorch => pytorch::read_zip(file, file_bytes, Part::Model).map(|c| (c.tensors, c.epoch)),
        Format::PyTorchLegacy => pytorch::read_legacy(file, file_bytes, Part::Model).map(|c| (c.tensors, c.epoch)),
        Format::Caffe2 => {
            let mut reader = BufReader::new(file);
            caffe2::read(&mut pickle::Source::new(&mut reader, 0, file_bytes)).map(|tensors| (tensors, None))
        }
        Format::Safetensors | Format::RunCheckpoint => {
            drop(file);
            safetensors::read(&std::fs::read(path).map_err(|e| Error::io(path, &e))?)
        }
    }
    .map_err(unreadable)?;
    let mut seen = HashSet::new();
    if let Some(twice) = tensors.iter().find(|t| !seen.insert(t.name.as_str())) {
        return Err(unreadable(format!("{} is there twice", twice.name)));
    }
    Ok(StateDict { path: path.to_path_buf(), format, tensors, epoch })
}

/// The momenta that `path` holds of the optimizer of `model`, for a run that goes on: those of a checkpoint of this program,
/// and of PyTorch's SGD as PySlowFast saves it. `None` for files without.
///
/// # Errors
/// Those of [`load`]; [`Error::Checkpoint`] for an optimizer of another model.
pub fn load_momenta(path: &Path, model: &Model) -> Result<Option<OptimizerState>> {
    if path.is_dir() {
        let (_, Checkpoint { state, momentum, .. }) = load_run(path)?;
        return Ok(Some(OptimizerState { has_momentum: state.has_momentum, momentum, loss_scale: None }));
    }
    let (file, file_bytes, format) = open(path)?;
    let contents = match format {
        Format::PyTorch => pytorch::read_zip(file, file_bytes, Part::Momenta),
        Format::PyTorchLegacy => pytorch::read_legacy(file, file_bytes, Part::Momenta),
        Format::Caffe2 | Format::Safetensors | Format::RunCheckpoint => return Ok(None),
    };
    let unreadable = |why: String| Error::Checkpoint(format!("{} cannot be used: {why}", path.display()));
    let contents = contents.map_err(unreadable)?;
    if contents.groups.is_empty() {
        return Ok(None);
    }
    momenta::named(model, &contents.tensors, &contents.groups).map(Some).map_err(unreadable)
}

/// A file, its size and its format.
fn open(path: &Path) -> Result<(File, u64, Format)> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut head = vec![];
    file.by_ref().take(64).read_to_end(&mut head).map_err(io)?;
    file.rewind().map_err(io)?;
    let unreadable = |why: String| Error::Checkpoint(format!("{} cannot be used: {why}", path.display()));
    let format = format_of(&head, file_bytes).map_err(unreadable)?;
    Ok((file, file_bytes, format))
}

/// The format of a file that begins with `head`.
fn format_of(head: &[u8], file_bytes: u64) -> pickle::Outcome<Format> {
    if head.starts_with(b"PK\x03\x04") {
        return Ok(Format::PyTorch);
    }
    if pytorch::is_legacy(head) {
        return Ok(Format::PyTorchLegacy);
    }
    if safetensors::is_safetensors(head, file_bytes) {
        return Ok(Format::Safetensors);
    }
    match head.first() {
        Some(0x80 | b'(' | b'}' | b'c') => Ok(Format::Caffe2),
        _ => {
            Err("expected weights of PyTorch (.pyth, .pth), of caffe2 (.pkl) or safetensors; it begins as none of them"
                .into())
        }
    }
}

/// The checkpoint at `path`, or the newest one of the run there.
fn load_run(path: &Path) -> Result<(PathBuf, Checkpoint)> {
    let (of_run, itself) = (path.join("checkpoints"), path.join("model.safetensors"));
    let folder: PathBuf = match (of_run.is_dir(), itself.is_file()) {
        (true, false) => Store::open(&of_run, usize::MAX)?
            .newest()?
            .ok_or_else(|| Error::Checkpoint(format!("{} holds no checkpoint yet", of_run.display())))?,
        (_, true) => path.to_path_buf(),
        _ => {
            let what = "expected a file of weights, or the folder of a run or of one of its checkpoints";
            return Err(Error::Checkpoint(format!("{}: {what}", path.display())));
        }
    };
    let checkpoint = Checkpoint::load(&folder)?;
    Ok((folder, checkpoint))
}

fn of_run(path: PathBuf, checkpoint: &Checkpoint) -> StateDict {
    let tensors = checkpoint.model.iter().map(|array| match array.name.ends_with("num_batches_tracked") {
        true => StoredTensor::from_i64(&array.name, array.values.first().map_or(0, |&v| v as i64)),
        false => StoredTensor::from_f32(&array.name, &array.shape, &array.values),
    });
    let epoch = checkpoint.state.epoch.checked_sub(1);
    StateDict { format: Format::RunCheckpoint, tensors: tensors.collect(), epoch, path }
}

/// Writes `state` to `path`, which must not be there yet: `.safetensors`, or `.pyth` and `.pth` for PyTorch, as its name ends.
///
/// # Errors
/// [`Error::Config`] for another ending or a file that is there, [`Error::Io`] for one that cannot be written; then nothing
/// is left behind.
pub fn save(path: &Path, state: &StateDict) -> Result<()> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    if path.exists() {
        return Err(Error::Config(format!("{} is there already: delete it, or choose another name", path.display())));
    }
    let invalid = |why: String| Error::Checkpoint(format!("{} cannot be written: {why}", path.display()));
    let bytes = match extension.as_str() {
        "safetensors" => safetensors::write(&state.tensors, state.epoch).map_err(invalid)?,
        "pyth" | "pth" => pyth::write(&state.tensors, state.epoch).map_err(invalid)?,
        _ => {
            let what = format!("{}: expected a name that ends in .safetensors, .pyth or .pth", path.display());
            return Err(Error::Config(what));
        }
    };
    let unfinished = path.with_extension(format!("{extension}.unfinished"));
    std::fs::write(&unfinished, bytes).and_then(|()| std::fs::rename(&unfinished, path)).map_err(|e| {
        // Gives back the room that the torso takes; whether this works changes nothing.
        let _ = std::fs::remove_file(&unfinished);
        Error::io(path, &e)
    })
}
