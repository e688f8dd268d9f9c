//! The training loop. `step.rs` is the data's road, one call a stage; the rest decides what comes next and writes down what
//! happened. A run is a pure function of configuration, data and seed: killed and resumed it gives the same losses.
//!
//! | question | file |
//! |---|---|
//! | what happens in a step | `step.rs` |
//! | which step comes next, when to validate, save and stop | `run.rs` |
//! | what is made of a step's results | `finished.rs` |
//! | accuracy at the default shape | `evaluate.rs` |
//! | what the keys of a configuration mean for each stage | [`setup`] |
//! | what lies in OUTPUT_DIR | [`OutputDir`], [`log`], [`report`] |
//! | what a watcher sees | [`Progress`] |
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use vcycle::train::{Lines, OutputDir, Start, Trainer, setup};
//! use vcycle::{config::Config, device::Device};
//!
//! # fn main() -> vcycle::Result<()> {
//! let config = Config::load("configs/moving_shapes_multigrid.yaml", &[])?;
//! let (train, val) = setup::sources(&config)?; // or clip sources of your own
//! let folder = OutputDir::path(&config.output_dir, "moving_shapes_multigrid");
//! let mut trainer = Trainer::new(&config, &Device::Cpu, train, val, &folder, Start::New)?;
//! let outcome = trainer.run(&mut Lines::new(std::io::stderr(), 10), &AtomicBool::new(false))?;
//! println!("{:?}", outcome.summary.val_top1);
//! # Ok(()) }
//! ```

mod clock;
mod eta;
mod evaluate;
mod feeding;
mod finished;
pub mod log;
mod mixup;
mod output;
mod progress;
pub mod report;
mod run;
pub mod setup;
mod start;
mod stats;
pub(crate) mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, FORMAT_VERSION, Saver, State, check_same_model};
use crate::clip::{ClipSource, Loader, LoaderConfig};
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{LossScale, Model, Network, OptimizerState};
use crate::multigrid::Schedule;
use crate::optimizer::SgdConfig;
use crate::shape::StepShape;

pub use clock::{Clock, process_cpu_s};
pub use evaluate::Evaluation;
pub(crate) use output::replace;
pub use output::{OutputDir, Summary};
pub use progress::{Lines, Progress, StepReport, describe_duration, describe_epoch, describe_step};
pub use run::Outcome;

use eta::Eta;
use feeding::Feeding;
use finished::QueuedStep;
use log::Log;
use mixup::Mixup;
use stats::Stats;
use step::Road;

/// Keys that may differ between a run and its continuation: they change no number.
const MAY_DIFFER: [&str; 26] = [
    "OUTPUT_DIR",
    "TRAIN.AUTO_RESUME",
    // What a run began with; its own checkpoint counts.
    "TRAIN.CHECKPOINT_FILE_PATH",
    "TRAIN.CHECKPOINT_TYPE",
    "TRAIN.CHECKPOINT_INFLATE",
    "TRAIN.CHECKPOINT_EPOCH_RESET",
    "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN",
    "TEST.ENABLE",
    "TEST.DATASET",
    "TEST.CHECKPOINT_FILE_PATH",
    "TEST.NUM_ENSEMBLE_VIEWS",
    "TEST.NUM_SPATIAL_CROPS",
    "TEST.NUM_TEMPORAL_CLIPS",
    "TEST.SAVE_RESULTS_PATH",
    "DATA.ENSEMBLE_METHOD",
    "DEMO.LABEL_FILE_PATH",
    "LOG_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD",
    "DATA.PATH_TO_DATA_DIR",
    "DATA.PATH_PREFIX",
    // The fingerprint tells where bytes differ.
    "DATA.DECODING_BACKEND",
    "DATA_LOADER.NUM_WORKERS",
    "VCYCLE.CACHE_GIB",
    "VCYCLE.MEMORY_FRACTION",
    "VCYCLE.KEEP_CHECKPOINTS",
    "VCYCLE.CHECKPOINT_MINUTES",
];

/// How to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In an empty folder.
    New,
    /// At the newest checkpoint in the folder; from the beginning if the run was stopped before its first.
    Resume,
}

/// A training run.
pub struct Trainer {
    config: Config,
    schedule: Schedule,
    sgd: SgdConfig,
    mixup: Option<Mixup>,
    /// Batch, frames and crop of the baseline: what precise statistics are measured at.
    default_shape: StepShape,
    train: Loader,
    val: Loader,
    road: Road,
    /// The step that was queued and not yet reported.
    queued: Option<QueuedStep>,
    output: OutputDir,
    saver: Saver,
    log: Log,
    stats: Stats,
    clock: Clock,
    eta: Eta,
    feeding: Feeding,
    start: Start,
    /// What became of the weights that TRAIN.CHECKPOINT_FILE_PATH names.
    begins_with: Option<String>,
    /// Of the newest checkpoint.
    saved_iteration: u64,
    /// Steps of the whole schedule.
    total_iterations: u64,
    state: State,
}

impl Trainer {
    /// Plans the whole run, allocates its memory and opens `folder`. Nothing is trained yet.
    ///
    /// # Errors
    /// A configuration that cannot be trained, labels out of range, a folder that already holds a run ([`Start::New`]) or
    /// one of another configuration or model ([`Start::Resume`]), files that cannot be written.
    pub fn new(
        config: &Config,
        device: &Device,
        train: Arc<dyn ClipSource>,
        val: Arc<dyn ClipSource>,
        folder: &Path,
        start: Start,
    ) -> Result<Trainer> {
        config.check_trainable()?;
        let schedule = Schedule::new(config)?;
        let model = Model::new(&setup::model_config(config)?)?;
        check_labels(config, [train.as_ref(), val.as_ref()])?;
        let fixed = fixed_by_run(config, train.as_ref(), val.as_ref());
        let (train, val) = (loader(config, train)?, loader(config, val)?);
        let output = match start {
            Start::New => OutputDir::create(folder)?,
            Start::Resume => OutputDir::reopen(folder)?,
        };
        let default_shape = default_shape(config, &schedule);
        let mut shapes = schedule.step_shapes();
        if let Some(shape) = shapes.iter().find(|shape| config.mixup.enable && shape.clips < 2) {
            let message = format!("MIXUP.ENABLE: expected batches of at least 2 clips, got the shape {shape}");
            return Err(Error::Config(message));
        }
        if config.bn.use_precise_stats {
            shapes.push(default_shape);
        }
        let mut network = Network::with_storage(device, model, config.rng_seed as u64, setup::storage(config))?;
        if let Some(bytes) = device.share_of_memory(config.vcycle.memory_fraction) {
            network.limit_memory(bytes);
        }
        let eval = [schedule.evaluation_shape()];
        let mut road = Road::new(network, setup::resample(config), &shapes, &eval)?;
        // Nothing is written before all that can fail has been made: a refused run leaves an empty folder at most.
        let store = output.checkpoints(config.vcycle.keep_checkpoints)?;
        let new = State { format: FORMAT_VERSION, config: fixed, ..State::default() };
        let mut begins_with = None;
        let state = match (start, store.newest()?) {
            (Start::Resume, Some(path)) => {
                let state = load(&path, &new.config, &mut road.network)?;
                if road.network.standard_norms() != state.standard_norms {
                    road.network.keep_standard(&state.standard_norms)?;
                    road.network.prepare(&shapes, &eval)?;
                }
                state
            }
            _ if !config.train.checkpoint_file_path.is_empty() => {
                let (mut state, num_clips) = (new, train.source().len());
                let told = start::from_file(config, &schedule, num_clips, &mut road.network, &mut state)?;
                begins_with = Some(told);
                // Forms of batch norms were chosen by the first values.
                if !road.network.ill_conditioned_norms()?.is_empty() {
                    road.network.prepare(&shapes, &eval)?;
                }
                state
            }
            _ => new,
        };
        let standard_norms = road.network.standard_norms();
        let state = State { version: env!("CARGO_PKG_VERSION").into(), standard_norms, ..state };
        output.write_config(&config.to_yaml())?;
        let log = Log::open(&output.log(), state.iteration, state.epoch)?;
        let stats = Stats::open(output.folder(), schedule.max_epoch(), config.log_period, &state)?;
        Ok(Trainer {
            config: config.clone(),
            sgd: setup::sgd_config(config),
            mixup: Mixup::from_config(config),
            clock: Clock::resumed(state.wall_s, state.cpu_s),
            eta: Eta::default(),
            feeding: Feeding::default(),
            start,
            begins_with,
            saved_iteration: state.iteration,
            total_iterations: 0,
            schedule,
            default_shape,
            train,
            val,
            road,
            queued: None,
            output,
            saver: Saver::new(store),
            log,
            stats,
            state,
        })
    }

    /// The schedule of the run.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The network as it stands.
    pub fn network(&self) -> &Network {
        &self.road.network
    }

    /// Steps done.
    pub fn iteration(&self) -> u64 {
        self.state.iteration
    }

    /// The folder of the run.
    pub fn folder(&self) -> &Path {
        self.output.folder()
    }

    /// Number of steps of `epoch`.
    fn iterations_of(&self, epoch: u64) -> u64 {
        self.schedule.phase(epoch as usize).iterations(self.train.source().len()) as u64
    }

    /// Shapes of the steps of `epoch`, in order.
    fn steps_of(&self, epoch: u64) -> Vec<StepShape> {
        let phase = self.schedule.phase(epoch as usize);
        (0..phase.iterations(self.train.source().len())).map(|i| phase.step_shape(i)).collect()
    }

    /// Names of all clips found bad, in this part of the run and before.
    fn bad_clips(&self) -> BTreeSet<String> {
        let found = self.train.bad_clips().into_iter().chain(self.val.bad_clips()).map(|b| b.name);
        self.state.bad_clips.iter().cloned().chain(found).collect()
    }
}

/// Clips have one label or several as DATA.MULTI_LABEL says: accuracy and loss depend on it.
fn check_labels(config: &Config, sources: [&dyn ClipSource; 2]) -> Result<()> {
    let expected = config.data.multi_label;
    if sources.iter().all(|source| source.is_multi_label() == expected) {
        return Ok(());
    }
    let (dataset, got) = (config.train.dataset, if expected { "one label" } else { "any number of labels" });
    Err(Error::Config(format!(
        "DATA.MULTI_LABEL: expected {}, got {expected}: clips of {dataset} have {got}",
        !expected
    )))
}

fn loader(config: &Config, source: Arc<dyn ClipSource>) -> Result<Loader> {
    let defaults = LoaderConfig::default();
    let threads = config.data_loader.num_workers.clamp(1, defaults.threads);
    let loader_config = LoaderConfig { seed: config.rng_seed as u64, threads, ..defaults };
    Loader::new(source, setup::sampling(config), &loader_config)
}

/// The shape of the baseline's steps.
fn default_shape(config: &Config, schedule: &Schedule) -> StepShape {
    let (clips, frames, crop_px) = (config.train.batch_size, config.data.num_frames, config.data.train_crop_size);
    let is_default = |s: &StepShape| (s.clips, s.frames, s.height_px) == (clips, frames, crop_px);
    let splits = (clips / config.multigrid.bn_base_size).max(1);
    let planned = schedule.step_shapes().into_iter().find(is_default);
    planned.unwrap_or_else(|| StepShape::square(clips, frames, crop_px, splits))
}

/// What the fingerprints of the data set are called beside the configuration.
const FINGERPRINT: &str = "fingerprint";

/// All that must be the same when the run goes on: keys of the configuration, sizes and fingerprints of the data set.
fn fixed_by_run(config: &Config, train: &dyn ClipSource, val: &dyn ClipSource) -> BTreeMap<String, String> {
    let keys = config.entries().into_iter().filter(|(key, _)| !MAY_DIFFER.contains(&key.as_str()));
    let sizes = [("number of training clips", train.len()), ("number of validation clips", val.len())];
    let sizes = sizes.map(|(what, n)| (what.to_string(), n.to_string()));
    let fingerprints = [("training", train.fingerprint()), ("validation", val.fingerprint())];
    let fingerprints =
        fingerprints.into_iter().filter_map(|(of, value)| Some((format!("{FINGERPRINT} of the {of} clips"), value?)));
    keys.chain(sizes).chain(fingerprints).collect()
}

/// Puts the checkpoint at `path` into `network`, if it is of the same run.
fn load(path: &Path, fixed: &BTreeMap<String, String>, network: &mut Network) -> Result<State> {
    let checkpoint = Checkpoint::load(path)?;
    let expected: Vec<_> = network.state_dict()?.into_iter().map(|a| (a.name, a.shape)).collect();
    check_same_model(path, &expected, &checkpoint.model)?;
    let defaults: BTreeMap<String, String> = Config::default().entries().into_iter().collect();
    let keys = fixed.keys().chain(checkpoint.state.config.keys());
    let keys: BTreeSet<&String> = keys.filter(|key| !MAY_DIFFER.contains(&key.as_str())).collect();
    for key in keys {
        // A key that did not exist when the checkpoint was written stood at its default.
        let (now, then) = (fixed.get(key), checkpoint.state.config.get(key).or(defaults.get(key)));
        if now != then && key.starts_with(FINGERPRINT) {
            // Checkpoints of older versions have none.
            let (Some(now), Some(then)) = (now, then) else { continue };
            return Err(Error::Checkpoint(format!(
                "{} cannot go on: the {key} is {now}, was {then}: lists, labels or sizes of files have changed since; \
                 bring them back (`vcycle verify` tells what is wrong with the data), or start a new run",
                path.display()
            )));
        }
        if now != then {
            let word = |value: Option<&String>| value.cloned().unwrap_or_else(|| "not known".into());
            return Err(Error::Checkpoint(format!(
                "{} cannot go on: {key} is {}, was {}; use the values of the config.yaml beside it",
                path.display(),
                word(now),
                word(then)
            )));
        }
    }
    network.load_state_dict(&checkpoint.model)?;
    network.load_optimizer_state(&OptimizerState {
        has_momentum: checkpoint.state.has_momentum,
        momentum: checkpoint.momentum,
        loss_scale: checkpoint
            .state
            .loss_scale
            .map(|scale| LossScale { scale, good_steps: checkpoint.state.loss_scale_good_steps }),
    })?;
    Ok(checkpoint.state)
}
