//! `vcycle test`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::train::{OutputDir, Progress, setup};
use vcycle::{Result, test};

use super::run;

/// Arguments of `vcycle test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    cfg: PathBuf,
    /// auto, cuda[:N], cpu, or simt: the emulator of CUDA kernels, far too slow for more than a few clips.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Weights to test, in place of TEST.CHECKPOINT_FILE_PATH: a file, or the folder of a run or a checkpoint.
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,
    /// Names of the classes, in place of DEMO.LABEL_FILE_PATH: JSON, or a name a line.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Threads of the cpu executor; all cores if not given. The results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Overrides, such as `TEST.NUM_ENSEMBLE_VIEWS 1`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it. Exit status: 0, or 130 when it was stopped.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut config = Config::load(&arguments.cfg, &arguments.overrides)?;
    run::replace_path(&mut config.test.checkpoint_file_path, arguments.checkpoint.as_deref());
    run::replace_path(&mut config.demo.label_file_path, arguments.classes.as_deref());
    config.check_testable()?;
    run::set_threads(arguments.threads)?;
    let stop = run::stop_flag()?;
    let (device, chosen) = Device::select(&arguments.device)?;
    let folder = OutputDir::path(&config.output_dir, &run::name_of(&arguments.cfg));
    let mut progress = super::progress::progress(config.log_period);
    progress.message(&chosen);
    of_run(&config, &device, &folder, progress.as_mut(), &stop)
}

/// The test of a configuration whose run lies in `folder`; its `json_stats:` lines go to stdout.
pub fn of_run(
    config: &Config,
    device: &Device,
    folder: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<ExitCode> {
    let source = setup::test_source(config)?;
    let Some(results) = test::run(config, device, source, folder, progress, stop)? else {
        progress.message("stopped: nothing was written for the views that were not finished");
        return Ok(ExitCode::from(run::STOPPED));
    };
    for result in results {
        super::out::stdout(&format!("{}\n", vcycle::json_stats::line(&result.metrics.stats())))?;
    }
    Ok(ExitCode::SUCCESS)
}
