//! Which weights are tested.

use std::path::{Path, PathBuf};

use crate::checkpoint::Store;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Network;
use crate::weights;

/// Weights, and why they were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// A file in any format of [`crate::weights`], or the folder of a run or a checkpoint.
    pub path: PathBuf,
    /// The key that names it, or that it is the newest of a run.
    pub reason: String,
}

impl Weights {
    /// As PySlowFast's `load_test_checkpoint`: TEST.CHECKPOINT_FILE_PATH, else the newest checkpoint in `folder` (OUTPUT_DIR), else
    /// TRAIN.CHECKPOINT_FILE_PATH.
    ///
    /// # Errors
    /// [`Error::Config`] where there is none of them: unlike PySlowFast, random weights are not tested.
    pub fn find(config: &Config, folder: &Path) -> Result<Weights> {
        let named = |path: &str, key: &str| Weights { path: path.into(), reason: key.into() };
        if !config.test.checkpoint_file_path.is_empty() {
            return Ok(named(&config.test.checkpoint_file_path, "TEST.CHECKPOINT_FILE_PATH"));
        }
        let checkpoints = folder.join("checkpoints");
        if checkpoints.is_dir()
            && let Some(path) = Store::open(&checkpoints, usize::MAX)?.newest()?
        {
            return Ok(Weights { path, reason: "the newest of OUTPUT_DIR".into() });
        }
        if !config.train.checkpoint_file_path.is_empty() {
            return Ok(named(&config.train.checkpoint_file_path, "TRAIN.CHECKPOINT_FILE_PATH"));
        }
        Err(Error::Config(format!(
            "no weights to test: {} holds no checkpoint; set TEST.CHECKPOINT_FILE_PATH or OUTPUT_DIR",
            folder.display()
        )))
    }

    /// Puts them into `network`, all of its tensors. Returns what became of the file's tensors, as text.
    ///
    /// # Errors
    /// A file that cannot be read, or lacks a tensor of the network.
    pub fn load_into(&self, network: &mut Network) -> Result<String> {
        let options = weights::Options { complete: true, ..weights::Options::default() };
        let report = weights::load_into(network, weights::load(&self.path)?, &options)?;
        Ok(format!("weights ({}): {report}", self.reason))
    }
}
