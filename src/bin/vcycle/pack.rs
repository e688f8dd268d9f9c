//! `vcycle pack`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vcycle::clip::pack::{Codec, DEFAULT_QUALITY, Encoding, PackOptions, PackReport, pack};
use vcycle::clip::{ListConfig, ListFormat, Split, VideoList};
use vcycle::config::{Config, DecodingBackend};
use vcycle::train::setup;
use vcycle::{Error, Result};

/// Of a clip: a whole video is decoded, shrunk and stored.
const TIME_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Size of a shard.
const SHARD_BYTES: usize = 256 << 20;
/// Between two lines of progress where stderr is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Arguments of `vcycle pack`.
#[derive(clap::Args)]
pub struct Arguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    cfg: PathBuf,
    /// Folder of the pack; an interrupted one is finished.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Frames with a longer short side are shrunk to this many pixels; `source`: none is. If not given: the largest of
    /// DATA.TRAIN_JITTER_SCALES and DATA.TEST_CROP_SIZE.
    #[arg(long, value_name = "PX")]
    short_side: Option<String>,
    /// Quality of the JPEG frames, 1 to 100.
    #[arg(long, value_name = "Q", default_value_t = DEFAULT_QUALITY)]
    quality: u8,
    /// Stores the decoded bytes in place of JPEG frames: for small sets.
    #[arg(long, conflicts_with = "quality")]
    raw: bool,
    /// Overrides, such as `DATA.PATH_TO_DATA_DIR data`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Packs the data set of TRAIN.DATASET. Exit status: 0 also where clips had to be left out.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = Config::load(&arguments.cfg, &arguments.overrides)?;
    if config.data.decoding_backend == DecodingBackend::Packed {
        return Err(Error::Config(
            "DATA.DECODING_BACKEND: expected the way to read what is not yet packed, got packed".into(),
        ));
    }
    let dataset = config.train.dataset;
    let Some(mut list) = setup::list_config(&config, dataset) else {
        super::out::stdout(&format!("{dataset} is made on the fly: there is nothing to pack\n"))?;
        return Ok(ExitCode::SUCCESS);
    };
    list.decode.time_limit = TIME_LIMIT;
    let options = PackOptions { encoding: encoding(&arguments, &config)?, shard_bytes: SHARD_BYTES };
    options.encoding.check()?;
    let lists = lists(&list)?;
    super::out::stderr(setup::describe_sources(&config));
    super::out::stderr(format_args!("frames: {}", options.encoding));
    let mut progress = Progress::new();
    let report =
        pack(&lists, list.format, &arguments.out, &options, &mut |done, total, kept| progress.at(done, total, kept))?;
    progress.end();
    super::out::stdout(&describe(&report, &arguments))?;
    Ok(ExitCode::SUCCESS)
}

fn encoding(arguments: &Arguments, config: &Config) -> Result<Encoding> {
    let codec = if arguments.raw { Codec::Raw } else { Codec::Jpeg { quality: arguments.quality } };
    let short_side_px = match arguments.short_side.as_deref() {
        None => setup::default_encoding(config).short_side_px,
        Some("source") => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| Error::Config(format!("--short-side: expected pixels or `source`, got `{text}`")))?,
        ),
    };
    Ok(Encoding { codec, short_side_px })
}

/// Those of training and validation, and of the test where it has one of its own.
fn lists(config: &ListConfig) -> Result<Vec<(Split, VideoList)>> {
    let mut splits = vec![Split::Train, Split::Val];
    if config.format == ListFormat::Kinetics && config.data_dir.join("test.csv").exists() {
        splits.push(Split::Test);
    }
    splits.into_iter().map(|split| Ok((split, VideoList::open(config, split)?))).collect()
}

fn describe(report: &PackReport, arguments: &Arguments) -> String {
    let PackReport { clips, kept, left_out, bytes, was_whole } = report;
    let (folder, gb) = (arguments.out.display(), *bytes as f64 / 1e9);
    let mut text = match (was_whole, kept) {
        (true, _) => format!("{folder}: whole already, {clips} clips, {gb:.3} GB\n"),
        (false, 0) => format!("{folder}: {clips} clips, {gb:.3} GB\n"),
        (false, kept) => format!("{folder}: {clips} clips, {gb:.3} GB; {kept} of them were packed before\n"),
    };
    for (name, why) in left_out {
        text += &format!("left out: {name}: {why}\n");
    }
    text + &format!("train with DATA.DECODING_BACKEND packed DATA.PATH_TO_DATA_DIR {folder}\n")
}

/// A bar on a terminal, otherwise a line now and then.
struct Progress {
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Progress {
    fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::no_length);
        if let Some((bar, style)) =
            bar.as_ref().zip(ProgressStyle::with_template("{bar:24} {pos}/{len} clips  {eta} left").ok())
        {
            bar.set_style(style);
        }
        Progress { bar, last: Instant::now() }
    }

    fn at(&mut self, done: usize, total: usize, kept: usize) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
            }
            None if self.last.elapsed() >= PROGRESS_INTERVAL => {
                self.last = Instant::now();
                super::out::stderr(format_args!("{done} of {total} clips, {kept} packed before"));
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
