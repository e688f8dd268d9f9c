//! `vcycle test`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::train::{Progress, setup};
use vcycle::{Result, test};

use super::run::{Place, RunArguments, STOPPED, WeightsArguments};

/// Arguments of `vcycle test`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    weights: WeightsArguments,
    /// Overrides, such as `TEST.NUM_ENSEMBLE_VIEWS 1`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it. Exit status: 0, or 130 when it was stopped.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut config = Config::load(&arguments.run.cfg, &arguments.overrides)?;
    arguments.weights.apply(&mut config);
    config.check_testable()?;
    let Place { device, chosen, stop, folder } = arguments.run.place(&config)?;
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
        return Ok(ExitCode::from(STOPPED));
    };
    for result in results {
        super::out::stdout(&format!("{}\n", vcycle::json_stats::line(&result.metrics.stats())))?;
    }
    Ok(ExitCode::SUCCESS)
}
