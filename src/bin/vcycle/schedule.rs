//! `vcycle schedule`: the shapes, rates and cost of a run, without data and without a device.

use std::path::{Path, PathBuf};

use serde_json::json;
use vcycle::config::{Config, Dataset, NormType};
use vcycle::multigrid::{Cost, Phase, Schedule};
use vcycle::{Error, Result};

use super::out::{self, table};
use super::plan;

/// Clips of Kinetics-400's training set, for want of a list file.
const KINETICS_CLIPS: usize = 240_000;

/// Most clips that may be asked for: with all epochs and shapes, their numbers still count exactly.
const MAX_CLIPS: usize = 1 << 40;

/// Arguments of `vcycle schedule`.
#[derive(clap::Args)]
pub struct Arguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    cfg: PathBuf,
    /// Training clips, for the number of iterations; otherwise counted in train.csv.
    #[arg(long, value_name = "N")]
    clips: Option<usize>,
    /// Draws learning rate and shapes over the epochs.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Adds the plan of every shape: memory, bytes moved, work, launches and kernels. Needs no device either.
    #[arg(long)]
    plan: bool,
    /// With --plan, what is planned for: cpu, h100, h200, a100, or a GPU that is there: cuda[:N].
    #[arg(long, default_value = "h100", requires = "plan")]
    device: String,
    /// Prints one JSON object on stdout; everything else goes to stderr.
    #[arg(long)]
    json: bool,
    /// Overrides, such as `MULTIGRID.EPOCH_FACTOR 2`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<()> {
    if let Some(clips) = arguments.clips.filter(|clips| !(1..=MAX_CLIPS).contains(clips)) {
        return Err(Error::Config(format!("--clips: expected 1 to {MAX_CLIPS}, got {clips}")));
    }
    let config = Config::load(&arguments.cfg, &arguments.overrides)?;
    let schedule = Schedule::new(&config)?;
    for warning in schedule.warnings() {
        out::stderr(format_args!("warning: {warning}"));
    }
    if let Err(reason) = config.check_trainable() {
        out::stderr(format_args!("note: `vcycle train` would refuse this configuration: {reason}"));
    }
    if let Some(path) = &arguments.plot {
        std::fs::write(path, schedule.to_svg()?).map_err(|e| Error::io(path, &e))?;
        out::stderr(format_args!("drawn: {}", path.display()));
    }
    let plan = arguments.plan.then(|| plan::of_run(&config, &schedule, &arguments.device)).transpose()?;
    if arguments.json {
        let mut object = to_json(&schedule);
        if let Some(plan) = &plan {
            object["plan"] = plan.to_json();
        }
        return out::stdout(&format!("{object}\n"));
    }
    let (num_clips, source) = training_clips(&arguments, &config);
    for warning in Cost::of(&schedule, &config, num_clips).warnings(&schedule) {
        out::stderr(format_args!("warning: {warning}"));
    }
    let planned = plan.map_or(String::new(), |plan| plan.report());
    out::stdout(&(report(&config, &schedule, num_clips, &source) + &planned))
}

fn to_json(schedule: &Schedule) -> serde_json::Value {
    let segment = |s: &vcycle::multigrid::Segment| json!([s.stage, [s.batch_factor, s.frames, s.crop_px], s.end_epoch]);
    let phase = |p: &Phase| {
        json!({
            "first_epoch": p.first_epoch,
            "t": p.frames,
            "s": p.crop_px,
            "batch": p.clips,
            "bn": {"type": p.batch_norm.norm_type.as_str(), "splits": p.batch_norm.splits},
            "short_cycle": p.grids.iter().map(|g| [g.clips_per_gpu, g.crop_px]).collect::<Vec<_>>(),
        })
    };
    json!({
        "schedule": schedule.segments().map(|segments| segments.iter().map(segment).collect::<Vec<_>>()),
        "steps": schedule.learning_rate().steps,
        "lrs": schedule.learning_rate().relative_rates,
        "max_epoch": schedule.max_epoch(),
        "phases": schedule.phases().iter().map(phase).collect::<Vec<_>>(),
    })
}

/// Training clips, and where the number comes from.
fn training_clips(arguments: &Arguments, config: &Config) -> (usize, String) {
    if let Some(clips) = arguments.clips {
        return (clips, "--clips".into());
    }
    if config.train.dataset == Dataset::MovingShapes {
        return (config.vcycle.moving_shapes.num_train_clips, "VCYCLE.MOVING_SHAPES.NUM_TRAIN_CLIPS".into());
    }
    let list = Path::new(&config.data.path_to_data_dir).join("train.csv");
    if let Ok(text) = std::fs::read(&list) {
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        return (lines.count(), list.display().to_string());
    }
    (KINETICS_CLIPS, "about those of Kinetics-400, assumed: there is no train.csv; --clips N says otherwise".into())
}

fn report(config: &Config, schedule: &Schedule, num_clips: usize, source: &str) -> String {
    let (train, data, grid) = (&config.train, &config.data, &config.multigrid);
    let cost = Cost::of(schedule, config, num_clips);
    let mut out = String::new();
    let mut line = |text: String| out.push_str(&(text + "\n"));
    let cycles = match (grid.long_cycle, grid.short_cycle) {
        (true, true) => "long and short cycle",
        (true, false) => "long cycle",
        (false, true) => "short cycle",
        (false, false) => "no cycle",
    };
    let (b, t, s) = (train.batch_size, data.num_frames, data.train_crop_size);
    line(format!("{cycles}; default shape {b} x {t} x {s} (B x T x S), validated at {}", schedule.evaluation_shape()));
    line(format!(
        "{} epochs (baseline {}) over {num_clips} clips ({source})",
        schedule.max_epoch(),
        config.solver.max_epoch
    ));
    if config.solver.warmup_epochs > 0.0 {
        let (end, start) = (config.solver.warmup_epochs, config.solver.warmup_start_lr);
        line(format!("warm-up: {end} epochs, rate {} to {}", short(start), short(schedule.lr(end))));
    }
    if config.num_gpus > 1 {
        let groups = schedule.phase(schedule.max_epoch() - 1).splits;
        line(format!(
            "NUM_GPUS {}: one device takes every GPU's share as splits of its own, {groups} at the last shape; batch, rate and groups stay",
            config.num_gpus
        ));
    }
    line(String::new());
    out.push_str(&table(&segments_table(config, schedule)));
    out.push('\n');
    out.push_str(&table(&shapes_table(schedule, &cost)));
    out.push('\n');
    out.push_str(&saving(config, schedule, &cost));
    out
}

/// Stretches of one learning rate: epochs, shape, rate, groups.
fn segments_table(config: &Config, schedule: &Schedule) -> Vec<Vec<String>> {
    let mut rows =
        vec![["epochs", "B x T x S", "crops", "rate", "frame step", "batch norm"].map(String::from).to_vec()];
    let mut bounds = schedule.learning_rate().steps.clone();
    if bounds.first() != Some(&0) {
        bounds.insert(0, 0);
    }
    bounds.push(schedule.max_epoch());
    for pair in bounds.windows(2).filter(|pair| pair[0] < pair[1]) {
        let (start, end) = (pair[0], pair[1]);
        let phase = schedule.phase(start);
        let crops: Vec<String> = phase.grids.iter().map(|g| g.crop_px.to_string()).collect();
        // Past the warm-up, so that the rate is the segment's own.
        let after_warmup = (start as f64).max(config.solver.warmup_epochs);
        let (first, last) = (schedule.lr(after_warmup.min(end as f64 - 0.5)), schedule.lr(end as f64 - 1e-9));
        let rate = if (first - last).abs() <= 1e-9 * first {
            short(first)
        } else {
            format!("{} to {}", short(first), short(last))
        };
        let [low, high] = phase.sampling_rates;
        rows.push(vec![
            format!("{start}..{end}"),
            format!("{} x {} x {}", phase.clips, phase.frames, phase.crop_px),
            crops.join(" "),
            rate,
            if low == high { low.to_string() } else { format!("{low}..{high}") },
            norm(phase),
        ]);
    }
    rows
}

fn norm(phase: &Phase) -> String {
    let name = phase.batch_norm.norm_type;
    let groups = format!("{} x {} clips", phase.splits, phase.clips / phase.splits);
    match name {
        NormType::BatchNorm => format!("{name}: {groups}"),
        NormType::SubBatchNorm => format!("{name}, {} splits a GPU: {groups}", phase.batch_norm.splits),
        NormType::SyncBatchNorm => format!("{name} over {} GPUs: {groups}", phase.batch_norm.sync_devices),
    }
}

/// Every (B, T, S): iterations, groups, volume, share.
fn shapes_table(schedule: &Schedule, cost: &Cost) -> Vec<Vec<String>> {
    let head = ["B", "T", "S", "iterations", "splits", "volume of a step", "share of the cost", "cost / baseline"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (phase, spent) in schedule.phases().iter().zip(&cost.phases) {
        for ((shape, iterations), volume) in phase.step_shapes().zip(&spent.iterations).zip(&spent.step_volume) {
            let of_baseline = *iterations as f64 * volume / cost.baseline_iterations as f64;
            rows.push(vec![
                shape.clips.to_string(),
                shape.frames.to_string(),
                shape.height_px.to_string(),
                iterations.to_string(),
                shape.splits.to_string(),
                format!("{volume:.3}"),
                format!("{:.1} %", 100.0 * of_baseline / cost.volume),
                format!("{of_baseline:.4}"),
            ]);
        }
    }
    rows
}

fn saving(config: &Config, schedule: &Schedule, cost: &Cost) -> String {
    let most_clips = schedule.phases().iter().map(|p| p.first_clip(p.grids.len()) as f64 / p.grids.len() as f64);
    let most_clips = most_clips.fold(0.0, f64::max) / config.train.batch_size as f64;
    format!(
        "iterations: {} of the baseline's {}: {:.2}x fewer\n\
         input volume (clips x frames x pixels): {:.3} of the baseline's; expected saving {:.2}x where time follows volume\n\
         clips: {:.2}x the baseline's in all; the loader must deliver up to {most_clips:.1}x the clips of a baseline step\n",
        cost.iterations,
        cost.baseline_iterations,
        cost.fewer_iterations(),
        cost.volume,
        1.0 / cost.volume,
        schedule.max_epoch() as f64 / config.solver.max_epoch as f64,
    )
}

/// Four significant digits, without trailing zeros.
fn short(value: f64) -> String {
    let digits = (3.0 - value.abs().log10().floor()).clamp(0.0, 12.0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}
