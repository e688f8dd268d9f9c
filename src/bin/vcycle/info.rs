//! `vcycle info`: parameters, work and memory of a network at every grid of its schedule, without data and without a device.

use std::path::PathBuf;

use serde_json::{Value, json};
use vcycle::Result;
use vcycle::config::Config;
use vcycle::device::{DType, Device, Stream};
use vcycle::model::plan::LayerCost;
use vcycle::model::{Lowering, Mode, Model, ModelConfig, Plan};
use vcycle::multigrid::Schedule;
use vcycle::shape::StepShape;

use super::out;

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// Arguments of `vcycle info`.
#[derive(clap::Args)]
pub struct Arguments {
    /// PySlowFast YAML file.
    #[arg(long, value_name = "FILE")]
    cfg: PathBuf,
    /// Lists the layers at the grid of the test, for one clip.
    #[arg(long)]
    layers: bool,
    /// Prints one JSON object on stdout.
    #[arg(long)]
    json: bool,
    /// Overrides, such as `RESNET.DEPTH 101`.
    #[arg(value_name = "KEY VALUE", allow_negative_numbers = true)]
    overrides: Vec<String>,
}

/// A grid: what it is for, and its plan in both forms.
struct Grid {
    purpose: &'static str,
    plain: Plan,
    /// Or why kernels cannot run it.
    fused: Result<Plan>,
}

/// Runs it.
pub fn run(arguments: Arguments) -> Result<()> {
    let config = Config::load(&arguments.cfg, &arguments.overrides)?;
    let (schedule, built) = (Schedule::new(&config)?, ModelConfig::from_config(&config)?);
    let (stream, model) = (Device::Cpu.stream()?, Model::new(&built)?);
    let (frames, crop_px) = (config.data.num_frames, config.data.test_crop_size);
    let test = StepShape::square(config.test.batch_size, frames, crop_px, 1);
    let shapes = schedule.step_shapes().into_iter().map(|shape| ("train", Mode::Train, shape));
    let shapes = shapes.chain([("validate", Mode::Eval, schedule.evaluation_shape()), ("test", Mode::Eval, test)]);
    let grids: Vec<Grid> =
        shapes.map(|(purpose, mode, shape)| grid(&stream, &model, purpose, mode, shape)).collect::<Result<_>>()?;
    let one_clip = StepShape { clips: 1, ..test };
    let one_clip = plan(&stream, &model, Mode::Eval, one_clip, Lowering::Plain)?;
    let layers = if arguments.layers { one_clip.layer_costs(&model) } else { None };
    if arguments.json {
        return out::stdout(&format!("{}\n", to_json(&model, &grids, &one_clip, layers.as_deref())));
    }
    out::stdout(&report(&config, &model, &grids, &one_clip, layers.as_deref()))
}

fn plan(stream: &Stream, model: &Model, mode: Mode, shape: StepShape, lowering: Lowering) -> Result<Plan> {
    let channels = model.config.input_channels;
    let stored = if lowering == Lowering::Plain { channels } else { channels.next_multiple_of(4) };
    Plan::with_lowering(stream, model, shape, mode, stored, lowering)
}

fn grid(stream: &Stream, model: &Model, purpose: &'static str, mode: Mode, shape: StepShape) -> Result<Grid> {
    let plain = plan(stream, model, mode, shape, Lowering::Plain)?;
    Ok(Grid { purpose, plain, fused: plan(stream, model, mode, shape, Lowering::Fused(DType::Bf16)) })
}

fn memory(plan: &Plan) -> usize {
    plan.arena_bytes + plan.workspace_bytes
}

fn to_json(model: &Model, grids: &[Grid], one_clip: &Plan, layers: Option<&[LayerCost]>) -> Value {
    let form = |plan: &Plan| json!({"arena_bytes": plan.arena_bytes, "workspace_bytes": plan.workspace_bytes, "bytes_moved": plan.cost().bytes});
    let grid = |g: &Grid| {
        let shape = g.plain.shape;
        json!({
            "for": g.purpose, "clips": shape.clips, "frames": shape.frames, "height_px": shape.height_px,
            "width_px": shape.width_px, "splits": shape.splits,
            "forward_macs": g.plain.forward_macs, "backward_macs": g.plain.backward_macs,
            "plain_f32": form(&g.plain),
            "fused_bf16": g.fused.as_ref().map_or_else(|error| json!(error.to_string()), form),
        })
    };
    let layer = |l: &LayerCost| {
        let o = l.output;
        json!({"name": l.name, "kind": l.kind, "output": [o.n, o.t, o.h, o.w, o.c], "params": l.params, "macs": l.macs})
    };
    let mut object = json!({
        "params": model.param_count(),
        "macs_of_a_view": one_clip.forward_macs,
        "grids": grids.iter().map(grid).collect::<Vec<_>>(),
    });
    if let Some(layers) = layers {
        object["layers"] = layers.iter().map(layer).collect();
    }
    object
}

fn report(config: &Config, model: &Model, grids: &[Grid], one_clip: &Plan, layers: Option<&[LayerCost]>) -> String {
    let (m, params) = (&config.model, model.param_count());
    let in_f32 = (4 * model.params_len) as f64 / MIB;
    let view = one_clip.shape;
    let mut text = format!(
        "{}, {} layers deep, {} classes: {} parameters, {in_f32:.1} MiB in f32; training keeps as much of gradients and of momenta\n\
         a view of {} frames and {} x {} px: {:.2} G multiply-adds\n\n",
        m.arch,
        config.resnet.depth,
        m.num_classes,
        grouped(params as u64),
        view.frames,
        view.height_px,
        view.width_px,
        one_clip.forward_macs as f64 / 1e9,
    );
    text += &out::table(&grid_rows(grids));
    let largest = |of: &dyn Fn(&Grid) -> Option<usize>| grids.iter().filter_map(of).max().unwrap_or(0) as f64 / GIB;
    text += &format!(
        "\nB clips on one device. Activations are those of a whole step, in one arena that is as large as the largest grid's: {:.2} GiB on the\n\
         CPU, {:.2} GiB with kernels, scratch memory included.\n",
        largest(&|g| Some(memory(&g.plain))),
        largest(&|g| g.fused.as_ref().ok().map(memory)),
    );
    if let Some(error) = grids.iter().find_map(|g| g.fused.as_ref().err()) {
        text += &format!("With kernels: {error}\n");
    }
    if let Some(layers) = layers {
        text += "\n";
        text += &out::table(&layer_rows(layers));
    }
    text
}

fn grid_rows(grids: &[Grid]) -> Vec<Vec<String>> {
    let head = ["for", "B", "T", "S", "splits", "G multiply-adds", "CPU f32, GiB", "kernels bf16, GiB"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for grid in grids {
        let (shape, gib) = (grid.plain.shape, |plan: &Plan| format!("{:.3}", memory(plan) as f64 / GIB));
        rows.push(vec![
            grid.purpose.into(),
            shape.clips.to_string(),
            shape.frames.to_string(),
            shape.height_px.to_string(),
            shape.splits.to_string(),
            format!("{:.2}", (grid.plain.forward_macs + grid.plain.backward_macs) as f64 / 1e9),
            gib(&grid.plain),
            grid.fused.as_ref().map_or("-".into(), gib),
        ]);
    }
    rows
}

fn layer_rows(layers: &[LayerCost]) -> Vec<Vec<String>> {
    let mut rows =
        vec![["layer", "what", "output [n,t,h,w,c]", "parameters", "M multiply-adds"].map(String::from).to_vec()];
    let row = |l: &LayerCost| {
        let work = if l.macs > 0 { format!("{:.3}", l.macs as f64 / 1e6) } else { String::new() };
        let params = if l.params > 0 { grouped(l.params as u64) } else { String::new() };
        vec![l.name.clone(), l.kind.clone(), l.output.to_string(), params, work]
    };
    rows.extend(layers.iter().map(row));
    rows
}

/// Thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
