//! What the programs that run a network have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::train::OutputDir;
use vcycle::{Error, Result};

/// Arguments that all of them take.
#[derive(clap::Args)]
pub struct RunArguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    pub cfg: PathBuf,
    /// auto, cuda[:N], cpu, or simt: the emulator of CUDA kernels, far too slow for more than a few steps.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of the cpu executor; all cores if not given. The results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Where a network runs.
pub struct Place {
    pub device: Device,
    /// Which device was chosen, and why.
    pub chosen: String,
    /// Set when the program shall stop.
    pub stop: Arc<AtomicBool>,
    /// OUTPUT_DIR.
    pub folder: PathBuf,
}

impl RunArguments {
    /// Takes the threads, the signals and the device.
    pub fn place(&self, config: &Config) -> Result<Place> {
        set_threads(self.threads)?;
        let stop = stop_flag()?;
        let (device, chosen) = Device::select(&self.device)?;
        let folder = OutputDir::path(&config.output_dir, &name_of(&self.cfg));
        Ok(Place { device, chosen, stop, folder })
    }
}

/// Arguments of those that take weights as they are.
#[derive(clap::Args)]
pub struct WeightsArguments {
    /// Weights, in place of TEST.CHECKPOINT_FILE_PATH: a file, or the folder of a run or a checkpoint.
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,
    /// Names of the classes, in place of DEMO.LABEL_FILE_PATH: JSON, or a name a line.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
}

impl WeightsArguments {
    /// They take the place of the keys.
    pub fn apply(&self, config: &mut Config) {
        replace_path(&mut config.test.checkpoint_file_path, self.checkpoint.as_deref());
        replace_path(&mut config.demo.label_file_path, self.classes.as_deref());
    }
}

/// Exit status of a run that was stopped by Ctrl-C or SIGTERM: 128 + SIGINT, as shells count.
pub const STOPPED: u8 = 130;

/// Most threads that may be asked for: more than any machine has cores.
const MAX_THREADS: usize = 1024;

/// Threads of the cpu executor.
fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if !(1..=MAX_THREADS).contains(&threads) {
        return Err(Error::Config(format!("--threads: expected 1 to {MAX_THREADS}, got {threads}")));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|e| Error::Config(format!("--threads {threads}: {e}")))
}

/// `moving_shapes` of `configs/moving_shapes.yaml`.
fn name_of(cfg: &Path) -> String {
    cfg.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
}

/// An argument takes the place of a key.
fn replace_path(key: &mut String, argument: Option<&Path>) {
    if let Some(path) = argument {
        *key = path.display().to_string();
    }
}

/// Set by the first Ctrl-C or SIGTERM; the second one ends the program at once.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let shared = flag.clone();
    ctrlc::set_handler(move || {
        if shared.swap(true, Ordering::Relaxed) {
            std::process::exit(STOPPED.into());
        }
        super::out::stderr("stopping after this step; once more to stop at once");
    })
    .map_err(|e| Error::Config(format!("cannot catch Ctrl-C: {e}")))?;
    Ok(flag)
}
