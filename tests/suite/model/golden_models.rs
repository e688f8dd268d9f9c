//! Golden models: names and shapes, evaluation, a training step and its gradients (golden/README section 6).

use serde_json::Value;
use vcycle::model::{Mode, Model, ModelConfig, Network, Plan};
use vcycle::shape::StepShape;

use super::{
    as_f64, config_of, filled_network, filled_state, l2, names_and_shapes, number, order_of_clips, restore_order,
    write_inputs,
};
use crate::golden::{self, Golden, channels_first, dims, fill};

#[test]
fn golden_slow() {
    check("slow_8x8_r50");
}

#[test]
fn golden_c2d() {
    check("c2d_8x8_r50");
}

#[test]
fn golden_i3d() {
    check("i3d_8x8_r50");
}

#[test]
fn golden_i3d_with_non_local_blocks() {
    check("i3d_nln_8x8_r50_short");
}

#[test]
fn golden_slowfast() {
    check("slowfast_8x8_r50");
}

#[test]
fn golden_slowfast_with_sub_batch_norm() {
    check("slowfast_8x8_r50_subbn2");
}

#[test]
fn golden_slowfast_ssv2() {
    check("ssv2_slowfast_16x8_r50");
}

fn check(name: &str) {
    let Some(golden) = golden::open(&format!("models/{name}.json")) else { return };
    let mut config = config_of(&golden.json["settings"]);
    let splits = golden.json["settings"]["BN.NUM_SPLITS"].as_u64().expect("splits") as usize;
    let entries = names_and_shapes(&golden.json["state_dict"]);
    let input = golden::input(&golden.json["settings"]["input"]);
    let [n, _, t, h, w] = input.0[..] else { panic!("input shape {:?}", input.0) };
    config.head_grid = Some((t, h));
    let mut network = filled_network(&config, &filled_state(&entries));
    check_names(&golden, &network, &entries);
    check_macs(&golden, &network);
    let larger = check_larger_crop(&golden, &mut network);

    let shape = StepShape { clips: n, frames: t, height_px: h, width_px: w, splits };
    network.prepare(&[shape], &[shape]).expect("prepare");
    let order = order_of_clips(n, splits);

    write_inputs(&network, Mode::Eval, shape, &input.1, &order);
    let output = restore_order(&network.forward_eval(shape).expect("eval"), &order);
    let logits = restore_order(&network.eval_logits(shape).expect("logits"), &order);
    assert_near(&golden, &golden.json["eval"]["logits"], &logits, 1e-4);
    assert_near(&golden, &golden.json["eval"]["output_after_act"], &output, 1e-4);

    write_inputs(&network, Mode::Train, shape, &input.1, &order);
    check_training_step(&golden, &mut network, shape, &order);
    golden.passed(1 + larger);
}

/// The crop of a test may be larger than that of training: the windows of the head slide. The number of cases.
fn check_larger_crop(golden: &Golden, network: &mut Network) -> usize {
    let case = &golden.json["eval_larger_crop"];
    if case.is_null() {
        return 0;
    }
    let (dims, values) = golden::input(&case["input"]);
    let [clips, _, frames, height_px, width_px] = dims[..] else { panic!("input shape {dims:?}") };
    let shape = StepShape { clips, frames, height_px, width_px, splits: 1 };
    network.prepare(&[], &[shape]).expect("prepare");
    write_inputs(network, Mode::Eval, shape, &values, &order_of_clips(clips, 1));
    let scores = network.forward_eval(shape).expect("eval");
    assert_near(golden, &case["output_after_act_mean"], &as_f64(&scores), 1e-4);
    let windows: usize = golden::dims(&case["proj_positions"])[1..4].iter().product();
    let logits = network.eval_logits(shape).expect("logits");
    assert_eq!(logits.len(), clips * windows * network.model().config.num_classes);
    1
}

fn check_names(golden: &Golden, network: &Network, entries: &[(String, Vec<usize>)]) {
    let expected: Vec<(String, Vec<usize>)> = entries
        .iter()
        .filter(|(name, _)| !name.contains(".split_bn."))
        .map(|(name, shape)| (name.replace(".bn.bn.", ".bn.").replace("_bn.bn.", "_bn."), shape.clone()))
        .collect();
    let ours: Vec<_> = network.state_dict().expect("state").into_iter().map(|a| (a.name, a.shape)).collect();
    assert_eq!(ours, expected);
    assert_eq!(network.model().param_count() as u64, golden.json["param_count"].as_u64().expect("count"));
}

fn check_macs(golden: &Golden, network: &Network) {
    // Counted for whole maps.
    let config = ModelConfig { head_grid: None, ..network.model().config.clone() };
    let model = Model::new(&config).expect("model");
    for case in golden.json["macs"].as_array().into_iter().flatten() {
        let size = |key: &str| case[key].as_u64().expect("size") as usize;
        let shape = StepShape::square(1, size("frames"), size("crop"), 1);
        let plan = Plan::new(network.stream(), &model, shape, Mode::Eval, 3).expect("plan");
        assert_eq!(plan.forward_macs, case["MACs"].as_u64().expect("MACs"), "{shape}");
    }
}

fn check_training_step(golden: &Golden, network: &mut Network, shape: StepShape, order: &[usize]) {
    let train = &golden.json["train"];
    let classes = network.model().config.num_classes as u64;
    let labels = fill::int("labels", shape.clips, classes);
    let labels: Vec<u32> = order.iter().map(|&clip| labels[clip] as u32).collect();

    network.forward_train(shape, &labels, 0).expect("forward");
    for (stage, expected) in train["stages"].as_object().expect("stages") {
        let tensor = network.stage(Mode::Train, shape, stage).expect("stage");
        let s = tensor.shape();
        let mut clips = vec![vec![]; s.n];
        for (i, &clip) in order.iter().enumerate() {
            clips[clip] = tensor.clips(i, 1).expect("clip").read::<f32>().expect("stage");
        }
        let torch_shape = [s.n, s.c, s.t, s.h, s.w];
        assert_eq!(dims(&expected["shape"]), torch_shape, "{stage}");
        let values = channels_first(&torch_shape, &clips.concat());
        assert_summary(expected, &values, stage);
    }

    let losses = network.forward_backward(shape, &labels, 0).expect("backward");
    let logits = restore_order(&network.train_logits(shape).expect("logits"), order);
    assert_near(golden, &train["logits"], &logits, 1e-4);
    let loss = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    assert!((loss - number(&train["loss"])).abs() <= 1e-5, "loss {loss}, expected {}", train["loss"]);
    check_gradients(train, network);

    let before = network.state_dict().expect("state");
    network.update_running_statistics(shape).expect("running");
    let after = network.state_dict().expect("state");
    let statistics = train["running_stats_after_1_step"].as_object().expect("running");
    for (name, expected) in statistics {
        let (values, expected_sum) = if let Some((prefix, suffix)) = name.rsplit_once(".split_bn.") {
            let find = |state: &[vcycle::model::NamedArray]| {
                let folded = format!("{prefix}.{suffix}");
                as_f64(&state.iter().find(|a| a.name == folded).expect("statistic").values)
            };
            (split_statistic(name, &find(&before), &find(&after)), number(&expected["sum"]))
        } else if statistics.contains_key(&name.replacen(".bn.running", ".split_bn.running", 1)) {
            continue; // PySlowFast leaves `bn.bn.*` alone in training; the splits hold what moved.
        } else {
            let array = after.iter().find(|a| &a.name == name).unwrap_or_else(|| panic!("{name}"));
            let values = as_f64(&array.values);
            assert_relative(l2(&values), number(&expected["l2"]), 1e-5, name);
            (values, number(&expected["sum"]))
        };
        let sum: f64 = values.iter().sum();
        assert!((sum - expected_sum).abs() <= 1e-4 * l2(&values), "{name}: sum {sum}, expected {expected_sum}");
    }
}

/// PySlowFast keeps `0.9 old + 0.1 batch` of each split; ours holds `0.9 old + 0.1 (mean of the batch's splits)`. The sums
/// over the splits follow from one another.
fn split_statistic(name: &str, before: &[f64], after: &[f64]) -> Vec<f64> {
    let splits = 2;
    let (scale, offset) = if name.ends_with("mean") { (0.1, 0.0) } else { (0.5, 1.0) };
    let old = fill::f32(&format!("param/{name}"), splits * before.len(), scale, offset);
    let moved = before.iter().zip(after).map(|(b, a)| splits as f64 * (a - 0.9 * b));
    old.iter().map(|&v| 0.9 * f64::from(v)).chain(moved).collect()
}

fn check_gradients(train: &Value, network: &Network) {
    let Some(grads) = train["grads"].as_object() else { return };
    let total = number(&train["total_grad_norm"]);
    assert_relative(network.grad_norm().expect("norm"), total, 1e-2, "total gradient norm");
    let ours = network.gradients().expect("gradients");
    assert_eq!(ours.len(), grads.len());
    for array in &ours {
        let (norm, expected) = (l2(&as_f64(&array.values)), number(&grads[&array.name]["l2"]));
        let name = &array.name;
        assert!((norm - expected).abs() <= 0.01 * expected + 1e-5 * total, "grad {name}: {norm}, expected {expected}");
    }
}

/// Largest absolute difference of the stored elements.
pub fn assert_near(golden: &Golden, descriptor: &Value, got: &[f64], tolerance: f64) {
    let difference = golden.compare(descriptor, got);
    assert!(difference.max_abs <= tolerance, "{}: {difference:?} > {tolerance:e}", descriptor["key"]);
}

fn assert_relative(got: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((got - expected).abs() <= tolerance * expected.abs(), "{what}: {got}, expected {expected}");
}

/// Sum, norm, largest value and probe of a whole tensor, within f32 noise of a deep network (rel-l2 1e-4).
fn assert_summary(expected: &Value, values: &[f64], what: &str) {
    let norm = number(&expected["l2"]);
    assert_relative(l2(values), norm, 1e-4, what);
    let probe: f64 = values.iter().enumerate().map(|(i, v)| v * fill::unit("probe", i)).sum();
    let expected_probe = number(&expected["probe"]);
    assert!((probe - expected_probe).abs() <= 1e-4 * norm, "{what}: probe {probe}, expected {expected_probe}");
    assert_relative(values.iter().sum(), number(&expected["sum"]), 1e-4, what);
    let largest = values.iter().fold(0f64, |m, v| m.max(v.abs()));
    assert_relative(largest, number(&expected["absmax"]), 1e-3, what);
}
