//! `vcycle train`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::train::{OutputDir, Start, Trainer, setup};
use vcycle::{Error, Result};

/// Exit status of a run that was stopped by Ctrl-C or SIGTERM, after it saved: 128 + SIGINT, as shells count.
const STOPPED: u8 = 130;

/// Most threads that may be asked for: more than any machine has cores.
const MAX_THREADS: usize = 1024;

/// Arguments of `vcycle train`.
#[derive(clap::Args)]
pub struct Arguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    cfg: PathBuf,
    /// auto, cuda[:N], cpu, or simt: the emulator of CUDA kernels, far too slow for more than a few steps.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Goes on with the run in OUTPUT_DIR, exactly where its newest checkpoint stands; without this TRAIN.AUTO_RESUME decides.
    #[arg(long)]
    resume: bool,
    /// Threads of the cpu executor; all cores if not given. The results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Overrides, such as `SOLVER.BASE_LR 0.05`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it. Exit status: 0 when the schedule was run to its end, 130 when it was stopped and saved.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = Config::load(&arguments.cfg, &arguments.overrides)?;
    config.check_trainable()?;
    if let Some(threads) = arguments.threads {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(Error::Config(format!("--threads: expected 1 to {MAX_THREADS}, got {threads}")));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().map_err(|e| Error::Config(format!("--threads {threads}: {e}")))?;
    }
    let stop = stop_flag()?;
    let (device, chosen) = Device::select(&arguments.device)?;
    let folder = OutputDir::path(&config.output_dir, &name_of(&arguments.cfg));
    let resume = arguments.resume || config.train.auto_resume && OutputDir::has_checkpoint(&folder);
    let start = if resume { Start::Resume } else { Start::New };
    let (train, val) = setup::sources(&config)?;
    let mut trainer = Trainer::new(&config, &device, train, val, &folder, start)?;

    let mut progress = super::progress::progress(config.log_period);
    progress.message(&chosen);
    progress.message(&setup::describe_sources(&config));
    let outcome = trainer.run(progress.as_mut(), &stop)?;
    drop(progress);
    Ok(if outcome.finished { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
}

/// `moving_shapes` of `configs/moving_shapes.yaml`.
fn name_of(cfg: &Path) -> String {
    cfg.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned())
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
