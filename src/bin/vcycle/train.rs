//! `vcycle train`.

use std::path::PathBuf;
use std::process::ExitCode;

use vcycle::Result;
use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::train::{OutputDir, Start, Trainer, setup};

use super::run;

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

/// Runs it, and then the test where TEST.ENABLE asks for it. Exit status: 0 when the schedule was run to its end, 130 when it was
/// stopped and saved.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = Config::load(&arguments.cfg, &arguments.overrides)?;
    config.check_trainable()?;
    if config.test.enable {
        config.check_testable()?;
    }
    run::set_threads(arguments.threads)?;
    let stop = run::stop_flag()?;
    let (device, chosen) = Device::select(&arguments.device)?;
    let folder = OutputDir::path(&config.output_dir, &run::name_of(&arguments.cfg));
    let resume = arguments.resume || config.train.auto_resume && OutputDir::has_checkpoint(&folder);
    let start = if resume { Start::Resume } else { Start::New };
    let (train, val) = setup::sources(&config)?;
    if config.test.enable {
        // Its faults are better known now than after the training.
        setup::test_source(&config)?;
    }
    let mut trainer = Trainer::new(&config, &device, train, val, &folder, start)?;

    let mut progress = super::progress::progress(config.log_period);
    progress.message(&chosen);
    progress.message(&setup::describe_sources(&config));
    let outcome = trainer.run(progress.as_mut(), &stop)?;
    if !outcome.finished {
        return Ok(ExitCode::from(run::STOPPED));
    }
    // The memory of training goes before the test's comes.
    drop(trainer);
    if !config.test.enable {
        return Ok(ExitCode::SUCCESS);
    }
    super::test::of_run(&config, &device, &folder, progress.as_mut(), &stop)
}
