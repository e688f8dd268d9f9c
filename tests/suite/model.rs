//! Models, plans and networks: golden forward and backward passes, golden training traces, plans and state.

mod fewer_bytes;
mod fused_plan;
mod fused_step;
mod golden_models;
mod golden_train;
mod golden_weights;
mod gram;
mod graphs;
mod micro_batches;
mod network;
mod non_local;
mod plan;
mod poison;
mod reference;
mod several_steps;
mod variants;

use serde_json::Value;
use vcycle::device::Device;
use vcycle::model::{Arch, Mode, Model, ModelConfig, NamedArray, Network, NonLocal, network::fold_sub_batch_norm};
use vcycle::ops::attention::Instantiation;
use vcycle::shape::StepShape;

use crate::golden::{channels_last, dims, fill};

/// PySlowFast's state dict of golden's parameters: every entry is a named fill (golden/README section 6).
fn filled_state(entries: &[(String, Vec<usize>)]) -> Vec<NamedArray> {
    let array = |(name, shape): &(String, Vec<usize>)| {
        let len = shape.iter().product();
        let fan_in = shape.iter().skip(1).product::<usize>() as f64;
        let is_weight = name.ends_with(".weight");
        let (scale, offset) = match shape.len() {
            _ if name.ends_with("num_batches_tracked") => (0.0, 0.0),
            _ if name.ends_with("running_mean") => (0.1, 0.0),
            _ if name.ends_with("running_var") => (0.5, 1.0),
            5 if is_weight && name.contains("nonlocal") => ((1.5 / fan_in).sqrt(), 0.0),
            5 if is_weight => ((6.0 / fan_in).sqrt(), 0.0),
            2 if is_weight => ((3.0 / fan_in).sqrt(), 0.0),
            1 if name.ends_with("c_bn.weight") || name.ends_with(".bn.weight") && name.contains("nonlocal") => {
                (0.05, 0.2)
            }
            1 if is_weight => (0.2, 0.9),
            _ => (0.1, 0.0),
        };
        let values = fill::f32(&format!("param/{name}"), len, scale, offset);
        NamedArray { name: name.clone(), shape: shape.clone(), values }
    };
    entries.iter().map(array).collect()
}

/// `(name, shape)` of a golden list of `{name, shape}`.
fn names_and_shapes(list: &Value) -> Vec<(String, Vec<usize>)> {
    let entry = |v: &Value| (v["name"].as_str().expect("name").to_string(), dims(&v["shape"]));
    list.as_array().expect("list").iter().map(entry).collect()
}

/// A network on the CPU with golden's parameters, splits dropped.
fn filled_network(config: &ModelConfig, state: &[NamedArray]) -> Network {
    let model = Model::new(config).expect("model");
    let mut network = Network::new(&Device::Cpu, model, 0).expect("network");
    network.load_state_dict(&fold_sub_batch_norm(state, false).expect("fold")).expect("state dict");
    network
}

/// Writes PyTorch's `[n][3][t][h][w]` values into all pathways, clip `order[i]` of them as clip `i`.
fn write_inputs(network: &Network, mode: Mode, shape: StepShape, values: &[f32], order: &[usize]) {
    let (n, t, h, w) = (shape.clips, shape.frames, shape.height_px, shape.width_px);
    let last = channels_last(&[n, 3, t, h, w], values);
    for input in network.inputs(mode, shape).expect("inputs") {
        let c = input.tensor.shape().c;
        let mut stored = Vec::with_capacity(input.tensor.shape().num_elements());
        for &clip in order {
            for &frame in &input.frame_indices {
                let start = (clip * t + frame as usize) * h * w * 3;
                for pixel in last[start..start + h * w * 3].chunks(3) {
                    stored.extend(pixel.iter().copied().chain(std::iter::repeat_n(0.0, c - 3)));
                }
            }
        }
        input.tensor.memory().write(&stored).expect("input");
    }
}

/// PySlowFast puts clip `i` into split `i mod splits`, we put contiguous blocks together: our clip `i` is its `order[i]`.
fn order_of_clips(clips: usize, splits: usize) -> Vec<usize> {
    (0..splits).flat_map(|split| (split..clips).step_by(splits)).collect()
}

/// `[n][k]` with the rows put back into PySlowFast's order, as f64.
fn restore_order(values: &[f32], order: &[usize]) -> Vec<f64> {
    let k = values.len() / order.len();
    let mut out = vec![0.0; values.len()];
    for (i, &clip) in order.iter().enumerate() {
        for j in 0..k {
            out[clip * k + j] = f64::from(values[i * k + j]);
        }
    }
    out
}

/// The configuration that golden's `settings` name.
fn config_of(settings: &Value) -> ModelConfig {
    let number = |key: &str| settings[key].as_u64().map(|v| v as usize);
    let arch = Arch::from_name(settings["ARCH"].as_str().expect("ARCH")).expect("ARCH");
    let mut config =
        ModelConfig::new(arch, number("DEPTH").expect("DEPTH"), number("NUM_CLASSES").expect("NUM_CLASSES"));
    config.dropout_rate = 0.0;
    config.width_per_group = number("WIDTH_PER_GROUP").unwrap_or(64);
    config.alpha = number("ALPHA").unwrap_or(config.alpha);
    if settings["nonlocal"].is_object() {
        config.non_local = non_local_of(&settings["nonlocal"], arch.num_pathways());
    }
    config
}

/// `config` with blocks inside of two stages of its first pathway.
fn with_non_local(config: ModelConfig, instantiation: Instantiation, group: usize, pool: [usize; 3]) -> ModelConfig {
    let mut non_local = NonLocal { instantiation, ..config.non_local.clone() };
    for stage in [1, 2] {
        non_local.location[stage][0] = vec![0];
        (non_local.group[stage][0], non_local.pool[stage][0]) = (group, pool);
    }
    ModelConfig { non_local, ..config }
}

/// Golden's lists hold windows for two pathways whatever the architecture, as PySlowFast's defaults do.
fn non_local_of(settings: &Value, pathways: usize) -> NonLocal {
    let sizes = |list: &Value| dims(list);
    let mut non_local = NonLocal::none(pathways);
    let name = settings["INSTANTIATION"].as_str().expect("INSTANTIATION");
    non_local.instantiation = NonLocal::instantiation_from_name(name).expect("INSTANTIATION");
    for stage in 0..4 {
        for pathway in 0..pathways {
            non_local.location[stage][pathway] = sizes(&settings["LOCATION"][stage][pathway]);
            non_local.pool[stage][pathway] =
                sizes(&settings["POOL"][stage][pathway]).try_into().expect("a window of three sizes");
        }
    }
    non_local
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn l2(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}
