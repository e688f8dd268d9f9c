//! `vcycle verify`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use vcycle::clip::verify::{verify, verify_pack};
use vcycle::clip::{ListFormat, Split, VideoList};
use vcycle::config::{Config, DecodingBackend};
use vcycle::train::setup;
use vcycle::{Error, Result};

/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Arguments of `vcycle verify`.
#[derive(clap::Args)]
pub struct Arguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    cfg: PathBuf,
    /// Decodes every frame instead of the first and the last of each video.
    #[arg(long)]
    all_frames: bool,
    /// Prints one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// Overrides, such as `DATA.PATH_TO_DATA_DIR data`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Reads the data set of TRAIN.DATASET. Exit status: 0 when nothing is wrong with it, else 1.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = Config::load(&arguments.cfg, &arguments.overrides)?;
    let dataset = config.train.dataset;
    let Some(list) = setup::list_config(&config, dataset) else {
        super::out::stdout(&format!("{dataset} is made on the fly: there is nothing to verify\n"))?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut splits = vec![Split::Train, Split::Val];
    if list.format == ListFormat::Kinetics && list.data_dir.join("test.csv").exists() {
        splits.push(Split::Test);
    }
    let last = Mutex::new(Instant::now());
    let progress = |done, total| {
        if let Ok(mut last) = last.try_lock()
            && last.elapsed() >= PROGRESS_INTERVAL
        {
            *last = Instant::now();
            super::out::stderr(format_args!("{done} of {total} videos"));
        }
    };
    super::out::stderr(setup::describe_sources(&config));
    let report = if config.data.decoding_backend == DecodingBackend::Packed {
        let packed = |split| setup::packed_source(&config, dataset, split).map(|list| Ok((split, list?)));
        verify_pack(
            &splits.into_iter().filter_map(packed).collect::<Result<Vec<_>>>()?,
            arguments.all_frames,
            &progress,
        )
    } else {
        let read = |split| Ok((split, VideoList::read(&list, split)?));
        verify(&splits.into_iter().map(read).collect::<Result<Vec<_>>>()?, arguments.all_frames, &progress)
    };
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report).map_err(|e| Error::io("stdout", &e.into()))? + "\n",
        false => report.to_string(),
    };
    super::out::stdout(&text)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
