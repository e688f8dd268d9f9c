//! `vcycle predict`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use vcycle::config::{Config, EnsembleMethod};
use vcycle::test::{Prediction, Results, Tester, VideoFiles, Weights, class_names, views_of};
use vcycle::{Error, Result};

use super::out;
use super::run::{Place, RunArguments, STOPPED, WeightsArguments};

/// Arguments of `vcycle predict`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Videos.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    weights: WeightsArguments,
    /// How many classes are listed.
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
    /// One JSON object a video.
    #[arg(long)]
    json: bool,
    /// Overrides, such as `--set TEST.NUM_ENSEMBLE_VIEWS 1`.
    #[arg(long = "set", num_args = 2, value_names = ["KEY", "VALUE"], allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it. Exit status 1 where one of the videos cannot be decoded; the others are answered for.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut config = Config::load(&arguments.run.cfg, &arguments.overrides)?;
    arguments.weights.apply(&mut config);
    config.check_testable()?;
    if arguments.top == 0 {
        return Err(Error::Config("--top: expected at least 1, got 0".into()));
    }
    let names = match &config.demo.label_file_path {
        path if path.is_empty() => None,
        path => Some(class_names(path.as_ref(), config.model.num_classes)?),
    };
    let Place { device, chosen, stop, folder } = arguments.run.place(&config)?;
    let mut progress = super::progress::progress(config.log_period);
    progress.message(&chosen);
    let weights = Weights::find(&config, &folder)?;
    let source = VideoFiles::new(arguments.files.clone(), config.model.num_classes);
    let mut tester = Tester::new(&config, &device, Arc::new(source))?;
    progress.message(&weights.load_into(tester.network())?);
    let Some(&views) = views_of(&config).first() else { return Ok(ExitCode::SUCCESS) };
    let Some(results) = tester.run(views, progress.as_mut(), &stop)? else { return Ok(ExitCode::from(STOPPED)) };
    drop(progress);
    answer(&results, &arguments, names.as_deref())?;
    Ok(if results.bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The classes of every video, in the order of the arguments.
fn answer(results: &Results, arguments: &Arguments, names: Option<&[String]>) -> Result<()> {
    let divisor = if results.method == EnsembleMethod::Sum { results.views.count() } else { 1 };
    let videos = results.names.iter().zip(results.scores.chunks_exact(results.classes));
    for (name, scores) in videos {
        let top = Prediction::top(scores, arguments.top, divisor, names)?;
        let text = if arguments.json {
            serde_json::json!({ "file": name, "predictions": top }).to_string() + "\n"
        } else {
            let line = |p: &Prediction| format!("  {:.4}  {}\n", p.score, p.name);
            format!("{name}\n{}", top.iter().map(line).collect::<String>())
        };
        out::stdout(&text)?;
    }
    Ok(())
}
