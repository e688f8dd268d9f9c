//! How fast clips can be fed, alone: from the files of a data set and from its pack, for every grid of the schedule.
//!
//! ```sh
//! vcycle pack --cfg F.yaml --out PACK DATA.PATH_TO_DATA_DIR DIR
//! cargo run --release --example 09_loader_speed -- F.yaml PACK 2 5 DATA.PATH_TO_DATA_DIR DIR > speed.csv    # 2 threads, 5 rounds
//! ```
//!
//! Every clip is decoded anew, nothing is kept. All grids and both sources take turns within a round, so that a busy machine hits
//! all; the table shows the median of the rounds. Processor seconds are those of this process and of `ffmpeg`, where it decodes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vcycle::clip::{ClipSource, Loader, LoaderConfig, Split, VideoList};
use vcycle::config::{Config, DecodingBackend};
use vcycle::multigrid::Schedule;
use vcycle::shape::StepShape;
use vcycle::train::setup;
use vcycle::{Error, Result};

/// A measurement takes about this long.
const SECONDS: f64 = 2.0;

/// What one measurement gave.
struct Speed {
    clips: usize,
    wall_s: f64,
    cpu_s: f64,
    frames: usize,
    bytes: usize,
}

impl Speed {
    fn clips_a_s(&self) -> f64 {
        self.clips as f64 / self.wall_s
    }

    /// Frames that are handed on a processor second.
    fn frames_a_core(&self) -> f64 {
        self.frames as f64 / self.cpu_s.max(0.01)
    }

    fn clips_a_core(&self) -> f64 {
        self.clips as f64 / self.cpu_s.max(0.01)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, pack, threads, rounds, overrides @ ..] = &arguments[..] else {
        return Err(Error::Config("expected: F.yaml PACK THREADS ROUNDS KEY VALUE…".into()));
    };
    let number = |text: &String| {
        text.parse::<usize>()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| Error::Config(format!("`{text}`: expected a number")))
    };
    let (threads, rounds) = (number(threads)?, number(rounds)?);
    let config = Config::load(Path::new(file), overrides)?;
    let mut packed = config.clone();
    packed.data.path_to_data_dir = pack.clone();
    packed.data.decoding_backend = DecodingBackend::Packed;
    let dataset = config.train.dataset;
    let none = || Error::Config(format!("{dataset} has no files"));
    let list = setup::list_config(&config, dataset).ok_or_else(none)?;
    let files = VideoList::open(&list, Split::Train)?;
    let packed = setup::packed_source(&packed, dataset, Split::Train).ok_or_else(none)??;
    eprintln!("{} clips; {threads} threads, {rounds} rounds; packed as {}", files.len(), packed.encoding());
    let loader = |source: Arc<dyn ClipSource>| {
        Loader::new(source, setup::sampling(&config), &LoaderConfig { threads, ..LoaderConfig::default() })
    };
    let sources = [("files", loader(Arc::new(files))?), ("packed", loader(Arc::new(packed))?)];

    println!("round,source,frames,crop_px,clips,wall_s,cpu_s,clip_frames,clip_bytes");
    // The first measurements say how many clips take the time wanted.
    let mut cases = vec![];
    for (t, s) in grids(&config)? {
        for (name, loader) in &sources {
            let first = measure(loader, 0, t, s, 4)?;
            let second = measure(loader, 0, t, s, (first.clips_a_s() * SECONDS / 4.0).ceil() as usize)?;
            cases.push((t, s, *name, loader, ((second.clips_a_s() * SECONDS).ceil() as usize).max(4)));
        }
    }
    let mut speeds: BTreeMap<(usize, usize, &str), Vec<Speed>> = BTreeMap::new();
    for round in 1..=rounds {
        for &(t, s, name, loader, count) in &cases {
            let speed = measure(loader, round as u64, t, s, count)?;
            let Speed { clips, wall_s, cpu_s, frames, bytes } = speed;
            println!("{round},{name},{t},{s},{clips},{wall_s:.4},{cpu_s:.2},{frames},{bytes}");
            speeds.entry((t, s, name)).or_default().push(speed);
        }
    }
    table(&speeds);
    Ok(())
}

/// (frames, crop) of the shapes of the schedule, the coarsest first.
fn grids(config: &Config) -> Result<Vec<(usize, usize)>> {
    let mut grids: Vec<(usize, usize)> =
        Schedule::new(config)?.step_shapes().iter().map(|shape| (shape.frames, shape.height_px)).collect();
    grids.sort_unstable();
    grids.dedup();
    Ok(grids)
}

/// Loads `clips` clips as in epoch `epoch` of a training.
fn measure(loader: &Loader, epoch: u64, frames: usize, crop_px: usize, clips: usize) -> Result<Speed> {
    let steps = vec![StepShape::square(1, frames, crop_px, 1); clips.max(1)];
    let (begin, cpu_begin_s) = (Instant::now(), cpu_s());
    let (mut clips, mut frames, mut bytes) = (0, 0, 0);
    for batch in loader.train_epoch(epoch, &steps, 0) {
        for clip in batch?.clips {
            (clips, frames, bytes) = (clips + 1, frames + clip.frames, bytes + clip.bytes.len());
        }
    }
    Ok(Speed { clips, wall_s: begin.elapsed().as_secs_f64(), cpu_s: cpu_s() - cpu_begin_s, frames, bytes })
}

/// User and system seconds of this process and its finished children, from Linux.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn table(speeds: &BTreeMap<(usize, usize, &str), Vec<Speed>>) {
    let median = |speeds: &[Speed], of: fn(&Speed) -> f64| {
        let mut values: Vec<f64> = speeds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    eprintln!("grid     source   clips/s   clips/s/core   frames/s/core   frames/clip   KB/clip");
    for ((t, s, name), speeds) in speeds {
        eprintln!(
            "{t:>2} x {s:<3} {name:<7} {:>8.1} {:>14.1} {:>15.0} {:>13.1} {:>9.0}",
            median(speeds, Speed::clips_a_s),
            median(speeds, Speed::clips_a_core),
            median(speeds, Speed::frames_a_core),
            median(speeds, |speed| speed.frames as f64 / speed.clips as f64),
            median(speeds, |speed| speed.bytes as f64 / speed.clips as f64 / 1e3),
        );
    }
}
