//! Non-local blocks in networks: gradients against finite differences in f64, the CPU against f64, temporal groups, first values,
//! configuration.

use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::model::{Arch, Mode, Model, ModelConfig, NamedArray, Network, Plan};
use vcycle::ops::attention::Instantiation;
use vcycle::shape::StepShape;

use super::reference::{Reference, stored};
use super::{l2, with_non_local};
use crate::golden::fill;

const SHAPE: StepShape = StepShape::square(4, 8, 32, 2);
const LABELS: [u32; 4] = [0, 3, 1, 2];

fn tiny(arch: Arch) -> ModelConfig {
    ModelConfig { width_per_group: 8, dropout_rate: 0.0, fc_init_std: 0.1, ..ModelConfig::new(arch, 18, 4) }
}

/// Both instantiations, groups and no groups, pools and none.
fn cases() -> [ModelConfig; 4] {
    use Instantiation::{DotProduct, Softmax};
    [
        with_non_local(tiny(Arch::I3d), Softmax, 1, [1, 2, 2]),
        with_non_local(tiny(Arch::SlowFast), DotProduct, 1, [1, 2, 2]),
        with_non_local(tiny(Arch::Slow), Softmax, 2, [2, 1, 1]),
        with_non_local(tiny(Arch::SlowC2d), DotProduct, 4, [1; 3]),
    ]
}

fn network(config: &ModelConfig) -> Network {
    let mut network = Network::new(&Device::Cpu, Model::new(config).expect("model"), 5).expect("network");
    network.prepare(&[SHAPE], &[SHAPE]).expect("prepare");
    network
}

/// The first values, but every branch has a gradient, and attention sees differences.
pub(super) fn lively(network: &mut Network) -> Vec<NamedArray> {
    let mut state = network.state_dict().expect("state");
    for array in &mut state {
        let is_head = ["conv_theta.weight", "conv_phi.weight"].iter().any(|name| array.name.ends_with(name));
        match array.shape.len() {
            1 if !array.name.contains("running") => array.values = fill::f32(&array.name, array.values.len(), 0.2, 0.5),
            5 if is_head => array.values.iter_mut().for_each(|v| *v *= 2.0),
            _ => {}
        }
    }
    network.load_state_dict(&state).expect("load");
    state
}

fn write_inputs(network: &Network, mode: Mode) -> Vec<Vec<f64>> {
    let inputs = network.inputs(mode, SHAPE).expect("inputs").iter().enumerate();
    inputs
        .map(|(i, input)| {
            let values = fill::f32(&format!("x{i}"), input.tensor.shape().num_elements(), 1.0, 0.0);
            input.tensor.memory().write(&values).expect("write");
            values.into_iter().map(f64::from).collect()
        })
        .collect()
}

/// Mean loss and gradients of a step of the plain form, in f64.
fn step(model: &Model, plan: &Plan, state: &[NamedArray], inputs: &[Vec<f64>]) -> (f64, Vec<Vec<f64>>) {
    let mut reference = Reference::new(model, plan, state, inputs, &LABELS, |v| v);
    reference.run();
    let losses = reference.read(plan.result);
    (losses.iter().sum::<f64>() / losses.len() as f64, reference.grads)
}

#[test]
fn the_cpu_agrees_with_f64_whose_gradients_agree_with_finite_differences() {
    for config in cases() {
        let mut network = network(&config);
        let state = lively(&mut network);
        let inputs = write_inputs(&network, Mode::Train);
        let losses = network.forward_backward(SHAPE, &LABELS, 0).expect("step");
        let model = network.model();
        let plan = network.plan(Mode::Train, SHAPE).expect("plan");
        let (loss, grads) = step(model, plan, &state, &inputs);

        let mean = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
        assert!((mean - loss).abs() <= 1e-5 * loss, "loss {mean}, expected {loss}");
        let total = grads.iter().map(|g| l2(g).powi(2)).sum::<f64>().sqrt();
        for ((param, got), exact) in model.params.iter().zip(network.gradients().expect("gradients")).zip(&grads) {
            let error: Vec<f64> = stored(&got).iter().zip(exact).map(|(a, b)| a - b).collect();
            let (error, norm) = (l2(&error), l2(exact));
            assert!(error <= 1e-3 * norm + 1e-6 * total, "{:?} {}: {error:e} of {norm:e}", config.arch, param.name);
        }

        // Along its gradient the loss changes as the gradient says.
        for part in ["conv_theta.", "conv_phi.weight", "conv_g.weight", "s2."] {
            let chosen = |p: usize| model.params[p].name.contains(part);
            let norm = (0..grads.len()).filter(|&p| chosen(p)).map(|p| l2(&grads[p]).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 1e-6 * total, "{:?} {part}: no gradient", config.arch);
            let loss_at = |distance: f64| {
                let mut reference = Reference::new(model, plan, &state, &inputs, &LABELS, |v| v);
                for p in (0..grads.len()).filter(|&p| chosen(p)) {
                    reference.move_param(p, &grads[p], distance / norm);
                }
                reference.run();
                let losses = reference.read(plan.result);
                losses.iter().sum::<f64>() / losses.len() as f64
            };
            // So near that hardly a ReLU opens or closes in between.
            let slope = (loss_at(1e-7) - loss_at(-1e-7)) / 2e-7;
            assert!(
                (slope - norm).abs() <= 1e-4 * norm + 1e-8,
                "{:?} {part}: slope {slope:e}, gradient {norm:e}",
                config.arch
            );
        }
    }
}

/// Logits of clips whose halves are `halves`.
fn logits(network: &mut Network, halves: [&str; 2]) -> Vec<f64> {
    let input = network.inputs(Mode::Eval, SHAPE).expect("inputs")[0].tensor.clone();
    let half = input.shape().num_elements() / SHAPE.clips / 2;
    let of_half = |name: &str, i: usize| {
        let (scale, offset) = if name == "a" { (1.0, 0.0) } else { (0.3, 1.5) };
        fill::f32(&format!("{name}{i}"), half, scale, offset)
    };
    let clip = |i: usize| halves.map(|name| of_half(name, i)).concat();
    let values: Vec<f32> = (0..SHAPE.clips).flat_map(clip).collect();
    input.memory().write(&values).expect("write");
    network.forward_eval(SHAPE).expect("eval");
    network.eval_logits(SHAPE).expect("logits").into_iter().map(f64::from).collect()
}

/// Logits are linear in the mean over the frames: where the halves do not see each other, those of a clip are the mean of those
/// of its halves.
#[test]
fn temporal_groups_do_not_see_each_other() {
    for kind in [Instantiation::Softmax, Instantiation::DotProduct] {
        let error = |groups: usize| {
            let mut network = network(&with_non_local(tiny(Arch::SlowC2d), kind, groups, [1, 2, 2]));
            lively(&mut network);
            let (both, first, second) =
                (logits(&mut network, ["a", "b"]), logits(&mut network, ["a", "a"]), logits(&mut network, ["b", "b"]));
            let error: Vec<f64> =
                both.iter().zip(first.iter().zip(&second)).map(|(y, (a, b))| y - (a + b) / 2.0).collect();
            l2(&error) / l2(&both)
        };
        assert!(error(2) < 1e-5, "{kind:?} in two groups: {:e}", error(2));
        assert!(error(1) > 1e-3, "{kind:?} in one group: {:e}", error(1));
    }
}

/// Gammas of the blocks begin at 0: at first they change nothing.
#[test]
fn a_new_block_does_nothing_yet() {
    let logits = |config: &ModelConfig| {
        let mut network = network(config);
        write_inputs(&network, Mode::Train);
        network.forward_train(SHAPE, &LABELS, 0).expect("forward");
        (network.train_logits(SHAPE).expect("logits"), network.state_dict().expect("state"))
    };
    let config = with_non_local(tiny(Arch::I3d), Instantiation::Softmax, 1, [1, 2, 2]);
    let (with, state) = logits(&config);
    assert_eq!(with, logits(&tiny(Arch::I3d)).0);
    let of =
        |name: &str| &state.iter().find(|a| a.name == format!("s4.pathway0_nonlocal0.{name}")).expect("array").values;
    assert!(of("bn.weight").iter().chain(of("conv_g.bias")).all(|&v| v == 0.0));
    assert!(of("conv_g.weight").iter().any(|&v| v != 0.0));
    let (_, state) = logits(&ModelConfig { zero_init_final_bn: false, ..config });
    assert!(
        state.iter().find(|a| a.name == "s4.pathway0_nonlocal0.bn.weight").expect("gamma").values[..] == [1.0; 128]
    );
}

const I3D: &str = "MODEL: {ARCH: i3d, MODEL_NAME: ResNet}\nDATA: {INPUT_CHANNEL_NUM: [3]}\nNONLOCAL:\n  LOCATION: [[[]], \
                   [[1, 3]], [[1, 3, 5]], [[]]]\n  GROUP: [[1], [1], [2], [1]]\n  INSTANTIATION: softmax";

fn configured(overrides: &[&str]) -> vcycle::Result<ModelConfig> {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    ModelConfig::from_config(&Config::parse(I3D, "f.yaml", &overrides)?)
}

#[test]
fn configurations_name_blocks() {
    let config = configured(&[]).expect("config");
    assert_eq!(config.non_local.location, [vec![vec![]], vec![vec![1, 3]], vec![vec![1, 3, 5]], vec![vec![]]]);
    assert_eq!(config.non_local.group[2], [2]);
    assert_eq!(config.non_local.pool[1], [[1, 2, 2]], "PySlowFast's default, of its first pathway");
    assert_eq!(config.non_local.instantiation, Instantiation::Softmax);
    let no_pool = configured(&["NONLOCAL.POOL", "[[[]], [[1, 1, 1]], [[1, 2, 2]], [[1, 2, 2]]]"]).expect("config");
    assert_eq!(no_pool.non_local.pool[..3], [vec![[1; 3]], vec![[1; 3]], vec![[1, 2, 2]]]);
    for (key, value, words) in [
        ("NONLOCAL.LOCATION", "[[[]], [[4]], [[]], [[]]]", ["NONLOCAL.LOCATION", "0 to 3, got 4"]),
        ("NONLOCAL.LOCATION", "[[[]], [[1], [1]], [[]], [[]]]", ["NONLOCAL.LOCATION", "one a pathway"]),
        ("NONLOCAL.LOCATION", "[[[]], [[1]]]", ["NONLOCAL.LOCATION", "4 stages"]),
        ("NONLOCAL.LOCATION", "[[[]], [[]], [[]], [[0]]]", ["NONLOCAL.LOCATION", "1024 channels"]),
        ("NONLOCAL.GROUP", "[[1], [0], [1], [1]]", ["NONLOCAL.GROUP", "got 0"]),
        ("NONLOCAL.POOL", "[[[1, 2]], [[1, 2, 2]], [[1, 2, 2]], [[1, 2, 2]]]", ["NONLOCAL.POOL", "3 sizes"]),
        ("NONLOCAL.POOL", "[[[1, 2, 2]], [[0, 2, 2]], [[1, 2, 2]], [[1, 2, 2]]]", ["NONLOCAL.POOL", "[0, 2, 2]"]),
        ("NONLOCAL.INSTANTIATION", "gaussian", ["softmax or dot_product", "gaussian"]),
    ] {
        let message = configured(&[key, value]).expect_err(value).to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{value}: {message}");
    }
    let (stream, model) = (Device::Cpu.stream().expect("stream"), Model::new(&config).expect("model"));
    let message =
        Plan::new(&stream, &model, StepShape::square(2, 6, 64, 1), Mode::Train, 3).expect_err("3 frames").to_string();
    assert!(message.contains("NONLOCAL.GROUP 2") && message.contains("3 frames"), "{message}");
}
