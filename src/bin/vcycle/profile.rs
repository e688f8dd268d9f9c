//! `vcycle profile`: where the time of a step goes, on clips of noise.

use std::path::PathBuf;

use serde_json::json;
use vcycle::config::Config;
use vcycle::device::nvtx;
use vcycle::model::{Mode, Model, ModelConfig, Network};
use vcycle::multigrid::Schedule;
use vcycle::profile::{Peaks, StepProfile, to_svg};
use vcycle::shape::StepShape;
use vcycle::train::setup;
use vcycle::{Error, Result};

use super::out;
use super::run::{Place, RunArguments};

/// Arguments of `vcycle profile`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    run: RunArguments,
    /// A shape, CLIPSxFRAMESxCROP such as 8x8x112; several times for several. Without it the shapes of the first phase.
    #[arg(long, value_name = "BxTxS")]
    shape: Vec<String>,
    /// Every shape of the schedule.
    #[arg(long, conflicts_with = "shape")]
    all: bool,
    /// Evaluation in place of training.
    #[arg(long)]
    eval: bool,
    /// Steps that are timed at each shape; the medians count.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Ops in the table; all are in the JSON.
    #[arg(long, value_name = "N", default_value_t = 15)]
    top: usize,
    /// TFLOP/s that the device reaches at best, in place of what is known or measured.
    #[arg(long, value_name = "TFLOPS", requires = "peak_gbs")]
    peak_tflops: Option<f64>,
    /// GB/s that it moves at best, reads and writes.
    #[arg(long, value_name = "GBS", requires = "peak_tflops")]
    peak_gbs: Option<f64>,
    /// Where profile.json and profile.svg are written; OUTPUT_DIR/profile if not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Prints the JSON on stdout; everything else goes to stderr.
    #[arg(long)]
    json: bool,
    /// Overrides, such as `TRAIN.BATCH_SIZE 8`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<()> {
    let config = Config::load(&arguments.run.cfg, &arguments.overrides)?;
    let schedule = Schedule::new(&config)?;
    if arguments.repeats == 0 {
        return Err(Error::Config("--repeats: expected at least 1, got 0".into()));
    }
    let shapes = shapes(&arguments, &schedule)?;
    let peaks = peaks_asked(&arguments)?;
    let Place { device, chosen, folder, .. } = arguments.run.place(&config)?;
    out::stderr(&chosen);
    let precision = setup::describe_precision(&config, &device);
    out::stderr(&precision);
    if std::env::var_os("VCYCLE_NVTX").is_none() && !nvtx::enable() {
        out::stderr("no NVTX ranges: libnvToolsExt.so cannot be loaded");
    }
    let peaks = peaks.map_or_else(|| Peaks::of(&device), Ok)?;
    let mode = if arguments.eval { Mode::Eval } else { Mode::Train };
    let model = Model::new(&ModelConfig::from_config(&config)?)?;
    let mut network = Network::with_storage(&device, model, 0, setup::storage(&config))?;
    if let Some(bytes) = device.share_of_memory(config.vcycle.memory_fraction) {
        network.limit_memory(bytes);
    }
    let mut steps = vec![];
    let mut text = format!(
        "ceilings: {:.3} TFLOP/s, {:.1} GB/s ({})\n",
        peaks.flops_per_s / 1e12,
        peaks.bytes_per_s / 1e9,
        peaks.source
    );
    for shape in shapes {
        let prepared = [shape];
        let (train, eval): (&[_], &[_]) = if arguments.eval { (&[], &prepared) } else { (&prepared, &[]) };
        network.prepare(train, eval)?;
        let step = StepProfile::measure(&mut network, mode, shape, arguments.repeats)?;
        text += &format!("\n{}\n", network.plan(mode, shape)?.summary());
        text += &out::table(&step.kind_rows(&peaks));
        text += &format!("\nthe {} ops that take longest\n", arguments.top.min(step.ops.len()));
        text += &out::table(&step.op_rows(&peaks, arguments.top));
        steps.push(step);
    }
    let object = json!({
        "device": chosen, "precision": precision, "peak_flops_per_s": peaks.flops_per_s, "peak_bytes_per_s": peaks.bytes_per_s, "peaks": peaks.source,
        "steps": steps.iter().map(|step| step.to_json(&peaks)).collect::<Vec<_>>(),
    });
    let folder = arguments.out.unwrap_or_else(|| folder.join("profile"));
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, &e))?;
    for (name, content) in [("profile.json", format!("{object}\n")), ("profile.svg", to_svg(&steps, &peaks)?)] {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(|e| Error::io(&path, &e))?;
    }
    out::stderr(format_args!("written: profile.json and profile.svg in {}", folder.display()));
    out::stdout(&if arguments.json { format!("{object}\n") } else { text })
}

fn peaks_asked(arguments: &Arguments) -> Result<Option<Peaks>> {
    let Some((tflops, gbs)) = arguments.peak_tflops.zip(arguments.peak_gbs) else { return Ok(None) };
    if !(tflops > 0.0 && gbs > 0.0 && tflops.is_finite() && gbs.is_finite()) {
        let message = format!("--peak-tflops, --peak-gbs: expected numbers above 0, got {tflops} and {gbs}");
        return Err(Error::Config(message));
    }
    let source = "as given by --peak-tflops and --peak-gbs".into();
    Ok(Some(Peaks { flops_per_s: tflops * 1e12, bytes_per_s: gbs * 1e9, source }))
}

/// What to profile; splits are those that the schedule has for the shape.
fn shapes(arguments: &Arguments, schedule: &Schedule) -> Result<Vec<StepShape>> {
    let scheduled = || -> Vec<StepShape> {
        if arguments.eval { vec![schedule.evaluation_shape()] } else { schedule.step_shapes() }
    };
    if arguments.all {
        return Ok(scheduled());
    }
    if arguments.shape.is_empty() {
        if arguments.eval {
            return Ok(scheduled());
        }
        out::stderr("the shapes of the first phase; --all takes every shape of the schedule, --shape BxTxS another");
        return Ok(schedule.phase(0).step_shapes().collect());
    }
    let of_text = |text: &String| -> Result<StepShape> {
        let numbers: Vec<usize> = text.split('x').map_while(|n| n.parse().ok()).collect();
        let [clips, frames, crop_px] = numbers[..] else {
            return Err(Error::Config(format!("--shape: expected CLIPSxFRAMESxCROP such as 8x8x112, got {text}")));
        };
        let shape = StepShape::square(clips, frames, crop_px, 1);
        let known = scheduled().into_iter().find(|s| StepShape { splits: 1, ..*s } == shape);
        if known.is_none() {
            out::stderr(format_args!("{shape} is no shape of the schedule: 1 batch-norm split"));
        }
        Ok(known.unwrap_or(shape))
    };
    arguments.shape.iter().map(of_text).collect()
}
