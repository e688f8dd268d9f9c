//! Weights that a run begins with: TRAIN.CHECKPOINT_FILE_PATH, as PySlowFast's `load_train_checkpoint` takes it.

use std::path::Path;

use crate::checkpoint::State;
use crate::config::{CheckpointType, Config};
use crate::error::{Error, Result};
use crate::model::Network;
use crate::multigrid::Schedule;
use crate::weights::{self, Format, Options};

/// Puts the file's weights into `network`. Where it also says after which epoch it was saved and holds the momenta of that
/// moment, the run goes on behind that epoch, unless TRAIN.CHECKPOINT_EPOCH_RESET is set. Returns what to tell the user.
///
/// # Errors
/// A file that cannot be read or does not fit the network, and one that was saved behind the end of the schedule.
pub fn from_file(
    config: &Config,
    schedule: &Schedule,
    num_clips: usize,
    network: &mut Network,
    state: &mut State,
) -> Result<String> {
    let train = &config.train;
    let path = Path::new(&train.checkpoint_file_path);
    let file = weights::load(path)?;
    if train.checkpoint_type == CheckpointType::Caffe2 && file.format != Format::Caffe2 {
        let format = file.format;
        let what = format!("TRAIN.CHECKPOINT_TYPE: expected a file of caffe2, {} is of {format}", path.display());
        return Err(Error::Config(what));
    }
    let epoch = file.epoch;
    let options = Options {
        inflate: train.checkpoint_inflate,
        clear_name_patterns: train.checkpoint_clear_name_pattern.clone(),
        complete: false,
    };
    let report = weights::load_into(network, file, &options)?;
    let Some(epoch) = epoch.filter(|_| !train.checkpoint_epoch_reset) else {
        return Ok(format!("weights: {report}\nthe run begins at epoch 0"));
    };
    let Some(momenta) = weights::load_momenta(path, network.model())? else {
        return Ok(format!(
            "weights: {report}\nit was saved after epoch {epoch} without momenta: the run begins at epoch 0"
        ));
    };
    let reset = "; TRAIN.CHECKPOINT_EPOCH_RESET True takes the weights alone and begins at epoch 0";
    if epoch + 1 >= schedule.max_epoch() as u64 {
        return Err(Error::Config(format!(
            "TRAIN.CHECKPOINT_FILE_PATH: {} was saved after epoch {epoch}, the schedule has {} epochs{reset}",
            path.display(),
            schedule.max_epoch()
        )));
    }
    let wrong = |e: Error| Error::Checkpoint(format!("{}: its momenta: {e}{reset}", path.display()));
    network.load_optimizer_state(&momenta).map_err(wrong)?;
    state.epoch = epoch + 1;
    let iterations = |epoch| schedule.phase(epoch as usize).iterations(num_clips) as u64;
    state.iteration = (0..state.epoch).map(iterations).sum();
    state.has_momentum = momenta.has_momentum;
    let momenta = if momenta.has_momentum { "with its momenta" } else { "its optimizer has no momenta yet;" };
    Ok(format!("weights: {report}\n{momenta} the run goes on at epoch {}", state.epoch))
}
