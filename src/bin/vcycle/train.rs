//! `vcycle train`.

use std::process::ExitCode;

use vcycle::Result;
use vcycle::config::Config;
use vcycle::train::{OutputDir, Start, Trainer, setup};

use super::run::{Place, RunArguments, STOPPED};

/// Arguments of `vcycle train`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    /// Goes on with the run in OUTPUT_DIR, exactly where its newest checkpoint stands; without this TRAIN.AUTO_RESUME decides.
    #[arg(long)]
    resume: bool,
    /// Overrides, such as `SOLVER.BASE_LR 0.05`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it, and then the test where TEST.ENABLE asks for it. Exit status: 0 when the schedule was run to its end, 130 when it was
/// stopped and saved.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = Config::load(&arguments.run.cfg, &arguments.overrides)?;
    config.check_trainable()?;
    if config.test.enable {
        config.check_testable()?;
    }
    let Place { device, chosen, stop, folder } = arguments.run.place(&config)?;
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
        return Ok(ExitCode::from(STOPPED));
    }
    // The memory of training goes before the test's comes.
    drop(trainer);
    if !config.test.enable {
        return Ok(ExitCode::SUCCESS);
    }
    super::test::of_run(&config, &device, &folder, progress.as_mut(), &stop)
}
