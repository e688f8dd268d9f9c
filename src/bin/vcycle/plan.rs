//! `vcycle schedule --plan`: the memory, work and kernels of every shape of a run, without a device.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vcycle::config::Config;
use vcycle::device::{CudaDevice, Device, Gpu, KNOWN_GPUS, Stream};
use vcycle::model::plan::{Cost, Memory, fit_memory};
use vcycle::model::{GramUse, Mode, Model, ModelConfig, Network, Plan};
use vcycle::multigrid::Schedule;
use vcycle::train::setup;
use vcycle::{Error, Result};

use super::out;

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// The plans of a run on one device.
pub struct RunPlan {
    device: String,
    device_bytes: Option<usize>,
    model: Model,
    shapes: Vec<ShapePlan>,
    /// Why the shapes do not fit the memory given; they are planned as if they did.
    refused: Option<String>,
}

/// The plans of a step's micro-batches, mostly one, and how often a step starts each kernel; for the CPU how many ops there are of each kind.
struct ShapePlan {
    plans: Vec<Plan>,
    /// Bytes that the whole step would move with every batch norm in the standard form and each gradient by itself.
    standard_bytes: u64,
    variants: BTreeMap<String, usize>,
}

impl ShapePlan {
    fn launches(&self) -> usize {
        self.variants.values().sum()
    }

    fn ops(&self) -> usize {
        self.plans.iter().map(|p| p.ops().count()).sum()
    }

    fn cost(&self) -> Cost {
        self.plans.iter().map(Plan::cost).fold(Cost::default(), std::ops::Add::add)
    }

    fn memory(&self, model: &Model) -> Memory {
        Memory::of(model, &self.plans.iter().collect::<Vec<_>>())
    }
}

/// Plans all shapes that `config` trains and validates at, for the device that `word` names.
pub fn of_run(config: &Config, schedule: &Schedule, word: &str) -> Result<RunPlan> {
    let (device, name) = device(word)?;
    let device_bytes = device.memory_bytes();
    let given = device.share_of_memory(config.vcycle.memory_fraction);
    let model = Model::new(&ModelConfig::from_config(config)?)?;
    let (train, eval) = (schedule.step_shapes(), schedule.evaluation_shape());
    if device == Device::Cpu {
        let (stream, channels) = (device.stream()?, model.config.input_channels);
        let steps = train.iter().map(|&shape| (Mode::Train, shape)).chain([(Mode::Eval, eval)]);
        let whole = steps.map(|(mode, shape)| Plan::new(&stream, &model, shape, mode, channels));
        let (plans, refused) = fitting(&stream, &model, whole.collect::<Result<_>>()?, given);
        let shapes = by_shape(&stream, &model, plans, |plans| {
            let work = plans.iter().flat_map(Plan::work_by_kind);
            Ok(count(work.map(|(kind, ops, _)| (format!("{kind:?}"), ops))))
        })?;
        return Ok(RunPlan { device: name, device_bytes, model, shapes, refused });
    }
    let mut network = Network::with_storage(&device, model, 0, setup::storage(config))?;
    network.prepare(&train, &[eval])?;
    let whole = network.plans().cloned().collect();
    let (plans, refused) = fitting(network.stream(), network.model(), whole, given);
    network.prepare_plans(plans.clone())?;
    let shapes = by_shape(network.stream(), network.model(), plans, |plans| {
        let launched = network.launches(plans[0].mode, plans[0].shape)?;
        Ok(count(launched.into_iter().flatten().map(|launched| (launched.kernel, 1))))
    })?;
    Ok(RunPlan { device: name, device_bytes, model: network.model().clone(), shapes, refused })
}

/// Plans as a run has them where `given` bytes are its; the whole steps, and why not, where it has none.
fn fitting(stream: &Stream, model: &Model, whole: Vec<Plan>, given: Option<usize>) -> (Vec<Plan>, Option<String>) {
    match given.map_or_else(|| Ok(whole.clone()), |bytes| fit_memory(stream, model, whole.clone(), bytes)) {
        Ok(plans) => (plans, None),
        Err(reason) => (whole, Some(reason.to_string())),
    }
}

/// Micro-batches of a step together, with its `variants`.
fn by_shape(
    stream: &Stream,
    model: &Model,
    plans: Vec<Plan>,
    variants: impl Fn(&[Plan]) -> Result<BTreeMap<String, usize>>,
) -> Result<Vec<ShapePlan>> {
    let mut standard = model.clone();
    (standard.config.gram, standard.config.fused_conv_backward) = (GramUse::Never, false);
    let (channels, steps) = (model.values[0].c, plans.chunk_by(|a, b| (a.mode, a.shape) == (b.mode, b.shape)));
    let of_step = |plans: &[Plan]| {
        let Plan { shape, mode, lowering, .. } = plans[0];
        let whole = Plan::with_lowering(stream, &standard, shape, mode, channels, lowering)?;
        Ok(ShapePlan { plans: plans.to_vec(), standard_bytes: whole.cost().bytes, variants: variants(plans)? })
    };
    steps.map(of_step).collect()
}

fn count(of: impl Iterator<Item = (String, usize)>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    of.for_each(|(name, number)| *counts.entry(name).or_default() += number);
    counts
}

/// Nothing is run: a GPU is described, whether it is there or not.
fn device(word: &str) -> Result<(Device, String)> {
    if word == "cpu" {
        return Ok((Device::Cpu, "cpu".into()));
    }
    let gpu = match Gpu::known(word) {
        Some(gpu) => gpu,
        None if word.starts_with("cuda") => match Device::select(word)?.0 {
            Device::Cuda(device) => device.gpu().clone(),
            other => return Err(Error::Config(format!("--device {word}: got {other}"))),
        },
        None => {
            let known = KNOWN_GPUS.join(", ");
            return Err(Error::Config(format!("--device with --plan: expected cpu, {known} or cuda[:N], got {word}")));
        }
    };
    let (major, minor) = gpu.compute_capability;
    let name = format!("{} ({major}.{minor}, {} SMs)", gpu.name, gpu.num_sms);
    Ok((Device::Cuda(CudaDevice::described(gpu)), name))
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Train => "train",
        Mode::Eval => "validate",
    }
}

impl RunPlan {
    fn memory(&self) -> Memory {
        Memory::of(&self.model, &self.shapes.iter().flat_map(|s| &s.plans).collect::<Vec<_>>())
    }

    /// The shape that the memory is allocated for.
    fn largest(&self) -> Option<&Plan> {
        let plans = self.shapes.iter().flat_map(|s| &s.plans);
        plans.max_by_key(|p| p.arena_bytes + p.workspace_bytes)
    }

    /// One object, for `--json`.
    pub fn to_json(&self) -> Value {
        let shape = |s: &ShapePlan| {
            let (p, cost, memory) = (&s.plans[0], s.cost(), s.memory(&self.model));
            json!({
                "for": mode_name(p.mode), "clips": p.shape.clips, "frames": p.shape.frames,
                "height_px": p.shape.height_px, "width_px": p.shape.width_px, "splits": p.shape.splits, "micro_batches": s.plans.len(),
                "arena_bytes": memory.arena, "inputs_bytes": memory.inputs, "workspace_bytes": memory.workspace,
                "total_bytes": memory.total(), "bytes_moved": cost.bytes, "bytes_moved_standard": s.standard_bytes, "flops": cost.flops,
                "launches": s.launches(), "ops": s.ops(), "variants": s.variants,
            })
        };
        let m = self.memory();
        json!({
            "device": self.device,
            "device_bytes": self.device_bytes,
            "refused": self.refused,
            "memory": {
                "arena_bytes": m.arena, "inputs_bytes": m.inputs, "workspace_bytes": m.workspace,
                "statistics_bytes": m.statistics, "weights_bytes": m.weights,
                "copies_bytes": m.copies, "gradients_bytes": m.gradients, "momenta_bytes": m.momenta, "total_bytes": m.total(),
            },
            "shapes": self.shapes.iter().map(shape).collect::<Vec<_>>(),
        })
    }

    /// Tables, for people.
    pub fn report(&self) -> String {
        let mut text = format!("\nPlans for {}: activations in {}\n\n", self.device, self.form());
        text += &out::table(&self.shape_rows());
        let grams = self.shapes.iter().filter_map(|s| s.plans[0].gram_line());
        text += &grams.map(|line| format!("\n{line}")).collect::<String>();
        text += &self.memory_lines();
        let what = if self.device == "cpu" { "Ops of a step by kind" } else { "Launches of a step by kernel" };
        text += &format!("\n{what}, for the shapes above\n\n");
        text + &out::table(&self.variant_rows())
    }

    fn form(&self) -> String {
        let dtype = self.shapes.first().map(|s| s.plans[0].lowering.dtype());
        dtype.map_or(String::new(), |dtype| format!("{dtype:?}").to_lowercase())
    }

    fn shape_rows(&self) -> Vec<Vec<String>> {
        let head = [
            "#",
            "for",
            "B",
            "T",
            "S",
            "splits",
            "micro-batches",
            "arena, GiB",
            "inputs",
            "workspace",
            "in all",
            "GB moved",
            "GB standard",
            "TFLOP",
            "ops",
            "launches",
        ];
        let mut rows = vec![head.map(String::from).to_vec()];
        for (i, s) in self.shapes.iter().enumerate() {
            let (p, cost, memory) = (&s.plans[0], s.cost(), s.memory(&self.model));
            let gib = |bytes: usize| format!("{:.3}", bytes as f64 / GIB);
            rows.push(vec![
                (i + 1).to_string(),
                mode_name(p.mode).into(),
                p.shape.clips.to_string(),
                p.shape.frames.to_string(),
                p.shape.height_px.to_string(),
                p.shape.splits.to_string(),
                s.plans.len().to_string(),
                gib(memory.arena),
                gib(memory.inputs),
                gib(memory.workspace),
                gib(memory.total()),
                format!("{:.2}", cost.bytes as f64 / 1e9),
                format!("{:.2}", s.standard_bytes as f64 / 1e9),
                format!("{:.3}", cost.flops as f64 / 1e12),
                s.ops().to_string(),
                if self.device == "cpu" { "-".into() } else { s.launches().to_string() },
            ]);
        }
        rows
    }

    fn memory_lines(&self) -> String {
        let (m, mib) = (self.memory(), |bytes: usize| format!("{:.1} MiB", bytes as f64 / MIB));
        let largest = self.largest().map_or(String::new(), |p| format!("{} {}", mode_name(p.mode), p.shape));
        let copies = if m.copies > 0 { format!(", 16-bit copies {}", mib(m.copies)) } else { String::new() };
        let of = self.device_bytes.map_or(String::new(), |bytes| format!(" of {:.0} GiB", bytes as f64 / GIB));
        let refused = self.refused.as_ref().map_or(String::new(), |reason| format!("it does not fit: {reason}\n"));
        format!(
            "\nallocated once, for the largest ({largest}): arena {:.3} GiB, inputs {:.3} GiB, workspace {:.3} GiB\n\
             weights and running statistics {}{copies}, gradients {}, momenta {}\n\
             in all {:.3} GiB{of}\n{refused}",
            m.arena as f64 / GIB,
            m.inputs as f64 / GIB,
            m.workspace as f64 / GIB,
            mib(m.weights),
            mib(m.gradients),
            mib(m.momenta),
            m.total() as f64 / GIB,
        )
    }

    fn variant_rows(&self) -> Vec<Vec<String>> {
        let names: std::collections::BTreeSet<&String> = self.shapes.iter().flat_map(|s| s.variants.keys()).collect();
        let numbers = (1..=self.shapes.len()).map(|i| format!("#{i}"));
        let mut rows: Vec<Vec<String>> = vec![["".to_string()].into_iter().chain(numbers).collect()];
        for name in names {
            let count = |s: &ShapePlan| s.variants.get(name).map_or("-".into(), ToString::to_string);
            rows.push([name.clone()].into_iter().chain(self.shapes.iter().map(count)).collect());
        }
        rows
    }
}
