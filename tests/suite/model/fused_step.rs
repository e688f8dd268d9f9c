//! Whole steps on executors with kernels: the bf16 rule against f64, same bits again, several optimizer steps, evaluation.

use half::bf16;
use vcycle::device::{DType, Device};
use vcycle::model::layers::ParamKind;
use vcycle::model::plan::StepOp;
use vcycle::model::plan::fused::FusedOp;
use vcycle::model::{
    Arch, GramUse, HeadActivation, Lowering, Mode, Model, ModelConfig, NamedArray, Network, PathwayInput, Plan,
    Transform,
};
use vcycle::ops::attention::Instantiation;
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;

use super::reference::{Reference, stored};
use super::with_non_local;
use crate::executors;
use crate::golden::fill;

/// Where errors are looked at: even the last maps have 4 positions.
pub(super) const SHAPE: StepShape = StepShape::square(4, 8, 48, 2);
/// Where numbers must be equal.
const SMALL: StepShape = StepShape::square(3, 8, 32, 2);
pub(super) const LABELS: [u32; 4] = [0, 3, 1, 2];
const LR: f32 = 0.01;

pub(super) fn tiny(arch: Arch) -> ModelConfig {
    ModelConfig {
        width_per_group: 8,
        beta_inv: 2,
        dropout_rate: 0.0,
        fc_init_std: 0.1,
        ..ModelConfig::new(arch, 18, 4)
    }
}

/// With every batch norm in Gram form that can have it.
pub(super) fn gram(config: ModelConfig) -> ModelConfig {
    ModelConfig { gram: GramUse::Always, ..config }
}

pub(super) fn network(device: &Device, config: &ModelConfig, shape: StepShape) -> Network {
    let mut network = Network::new(device, Model::new(config).expect("model"), 5).expect("network");
    fill_state(&mut network);
    network.prepare(&[shape], &[shape]).expect("prepare");
    network
}

/// Parameters and running statistics that a test of errors can use.
pub(super) fn fill_state(network: &mut Network) {
    let mut state = network.state_dict().expect("state");
    for array in state.iter_mut().filter(|a| a.shape.len() == 1) {
        // The last gammas of blocks begin at 0: their branches would have no gradient. And most values are far from where a ReLU
        // opens: an error of a test is then a sum of many roundings and not the luck of a few masks.
        let (scale, offset) = match array.name.rsplit('.').next() {
            // Normalised is what attention makes of all positions, which hardly differs between them: mostly roundings.
            Some("weight") if array.name.contains("nonlocal") => (0.02, 0.08),
            Some("weight") => (0.1, 0.4),
            Some("running_var") => (0.3, 1.0),
            Some("running_mean") => (0.2, 0.0),
            Some("bias") if array.name.contains(".conv_") => (0.2, 0.0),
            _ => (0.2, 1.0),
        };
        array.values = fill::f32(&array.name, array.values.len(), scale, offset);
    }
    network.load_state_dict(&state).expect("load");
}

/// The clip's channels of each input, as bf16 holds them.
pub(super) fn input_values(network: &Network, mode: Mode, shape: StepShape, name: &str) -> Vec<Vec<f64>> {
    let channels = network.model().config.input_channels;
    let inputs = network.inputs(mode, shape).expect("inputs").iter().enumerate();
    let values = |(i, input): (usize, &PathwayInput)| -> Vec<f64> {
        let len = input.tensor.shape().num_positions() * channels;
        fill::f32(&format!("{name}{i}"), len, 1.0, 0.0).into_iter().map(|v| bf16::from_f32(v).to_f64()).collect()
    };
    inputs.map(values).collect()
}

pub(super) fn write_inputs(network: &Network, mode: Mode, shape: StepShape, name: &str) {
    let channels = network.model().config.input_channels;
    let inputs = network.inputs(mode, shape).expect("inputs");
    for (input, values) in inputs.iter().zip(input_values(network, mode, shape, name)) {
        let stored = network.stored_channels();
        let mut padded = vec![bf16::ZERO; input.tensor.shape().num_positions() * stored];
        for (to, from) in padded.chunks_mut(stored).zip(values.chunks(channels)) {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = bf16::from_f64(from));
        }
        input.tensor.memory().write(&padded).expect("write");
    }
}

pub(super) fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

pub(super) fn l2(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// Error against f64 at most twice that of CPU steps that round whatever they store to bf16, plus one rounding. Returns both errors,
/// relative.
pub(super) fn check(what: &str, got: &[f64], rounded: &[Vec<f64>], exact: &[f64]) -> (f64, f64) {
    check_to(2f64.powi(-8), what, got, rounded, exact)
}

/// [`check`] for a type with this relative rounding.
pub(super) fn check_to(rounding: f64, what: &str, got: &[f64], rounded: &[Vec<f64>], exact: &[f64]) -> (f64, f64) {
    let (error, norm) = (l2(got, exact), l2(exact, &vec![0.0; exact.len()]));
    let plain = rounded.iter().map(|r| l2(r, exact)).fold(0.0, f64::max);
    let bound = 2.0 * plain + norm * rounding;
    assert!(error <= bound, "{what}: error {error:e} of {norm:e}; rounding what is stored gives {plain:e}");
    (error / norm.max(1e-30), plain / norm.max(1e-30))
}

pub(super) fn round(v: f64) -> f64 {
    bf16::from_f64(v).to_f64()
}

/// The grid of bf16, shifted.
pub(super) fn round_elsewhere(v: f64) -> f64 {
    round(v * 1.37) / 1.37
}

/// What a step computes, in storage order.
pub(super) struct Found {
    /// Losses or probabilities.
    pub result: Vec<f64>,
    pub logits: Vec<f64>,
    /// By parameter.
    pub grads: Vec<Vec<f64>>,
    /// Running statistics after the step, mean and variance of each norm.
    pub running: Vec<Vec<f64>>,
}

/// A step by the references.
pub(super) fn reference(
    (config, shape): (&ModelConfig, StepShape),
    (mode, lowering): (Mode, Lowering),
    state: &[NamedArray],
    inputs: &[Vec<f64>],
    store: fn(f64) -> f64,
) -> Found {
    let (stream, model) = (Device::Cpu.stream().expect("stream"), Model::new(config).expect("model"));
    let plan = Plan::with_lowering(&stream, &model, shape, mode, 3, lowering).expect("plan");
    let mut reference = Reference::new(&model, &plan, state, inputs, &LABELS[..shape.clips], store);
    reference.run();
    Found {
        result: reference.read(plan.result),
        logits: reference.read(plan.logits),
        running: if mode == Mode::Train { running_after(&model, &plan, state, &reference) } else { vec![] },
        grads: reference.grads,
    }
}

/// The running pairs moved by the batch statistics of a step.
pub(super) fn running_after(model: &Model, plan: &Plan, state: &[NamedArray], step: &Reference<'_>) -> Vec<Vec<f64>> {
    let (momentum, splits) = (f64::from(model.config.bn_momentum), plan.shape.splits);
    let mut running = vec![];
    for (i, norm) in model.norms.iter().enumerate() {
        let (.., stats) = plan.statistics().find(|(_, id, _)| *id == i).expect("statistics");
        let stats = step.read(stats);
        for (what, row) in [("running_mean", 0), ("running_var", 2)] {
            let old = of(state, &format!("{}.{what}", norm.name));
            let mean = |c: usize| (0..splits).map(|s| stats[(s * 3 + row) * norm.c + c]).sum::<f64>() / splits as f64;
            running.push((0..norm.c).map(|c| (1.0 - momentum) * old[c] + momentum * mean(c)).collect());
        }
    }
    running
}

pub(super) fn of(state: &[NamedArray], name: &str) -> Vec<f64> {
    stored(state.iter().find(|a| a.name == name).unwrap_or_else(|| panic!("{name}")))
}

pub(super) const PLAIN: (Mode, Lowering) = (Mode::Train, Lowering::Plain);
const FUSED: Lowering = Lowering::Fused(DType::Bf16);

/// In f64 the two forms of a plan give the same numbers, but for the order of sums.
#[test]
fn the_fused_form_means_what_the_plain_one_means() {
    let basic = ModelConfig { transform: Transform::Basic, ..tiny(Arch::SlowFast) };
    let softmax = with_non_local(tiny(Arch::SlowFast), Instantiation::Softmax, 1, [1, 2, 2]);
    let in_groups = with_non_local(tiny(Arch::Slow), Instantiation::DotProduct, 2, [2, 1, 1]);
    let grams = [Arch::SlowFast, Arch::I3d].map(|arch| gram(tiny(arch)));
    let all = [tiny(Arch::SlowFast), basic, tiny(Arch::I3d), tiny(Arch::Slow), softmax, in_groups];
    for config in all.into_iter().chain(grams) {
        let cpu = network(&Device::Cpu, &config, SMALL);
        let state = cpu.state_dict().expect("state");
        let inputs = input_values(&cpu, Mode::Train, SMALL, "x");
        let run = |form| reference((&config, SMALL), form, &state, &inputs, |v| v);
        let same = |what: &str, a: &[f64], b: &[f64]| {
            let (error, norm) = (l2(a, b), l2(b, &vec![0.0; b.len()]));
            // Sums that cancel leave 1e-16 of their terms.
            assert!(
                error <= 1e-9 * norm + 1e-12,
                "{:?} {:?} {what}: {error:e} of {norm:e}",
                config.arch,
                config.transform
            );
        };
        let (plain, fused) = (run(PLAIN), run((Mode::Train, FUSED)));
        same("loss", &fused.result, &plain.result);
        same("logits", &fused.logits, &plain.logits);
        for ((param, a), b) in cpu.model().params.iter().zip(&fused.grads).zip(&plain.grads) {
            same(&param.name, a, b);
        }
        fused.running.iter().zip(&plain.running).for_each(|(a, b)| same("running statistics", a, b));
        let (plain, fused) = (run((Mode::Eval, Lowering::Plain)), run((Mode::Eval, FUSED)));
        same("probabilities", &fused.result, &plain.result);
    }
}

fn check_step(device: &Device, arch: Arch) {
    check_step_of(device, &tiny(arch), 0.1);
}

/// The rule for each result of a step; the median error of its gradients shows that the step is fit for it.
fn check_step_of(device: &Device, config: &ModelConfig, most_median: f64) {
    let arch = config.arch;
    let mut network = network(device, config, SHAPE);
    let state = network.state_dict().expect("state");
    write_inputs(&network, Mode::Train, SHAPE, "x");
    let inputs = input_values(&network, Mode::Train, SHAPE, "x");
    let of_grad_input = |stores: bool| {
        let plan = network.plan(Mode::Train, SHAPE).expect("plan");
        let is = |op: &StepOp| matches!(op, StepOp::Fused(FusedOp::ConvGradInput { store_dy, .. }) if store_dy.is_some() == stores);
        plan.ops().filter(|op| is(op)).count()
    };
    assert!(of_grad_input(true) > 0 && of_grad_input(false) > 0, "{arch:?}: both ways must be tested");
    let plan = network.plan(Mode::Train, SHAPE).expect("plan");
    let gathers = |op: &StepOp| matches!(op, StepOp::Fused(FusedOp::ConvGradFilter { pool: Some(_), .. }));
    assert_eq!(plan.ops().filter(|op| gathers(op)).count(), 1, "{arch:?}: stems with channels in eights");
    let losses = network.forward_backward(SHAPE, &LABELS, 0).expect("step");
    let logits = network.train_logits(SHAPE).expect("logits");
    let gradients = network.gradients().expect("gradients");
    network.update_running_statistics(SHAPE).expect("running");
    network.sgd_step(LR, &SgdConfig::default()).expect("sgd");
    assert!(!network.is_update_skipped().expect("guard"));
    let after = network.state_dict().expect("state");
    check_update(&network, &state, &gradients, &after);

    let run = |lowering, store| reference((config, SHAPE), (Mode::Train, lowering), &state, &inputs, store);
    let exact = run(Lowering::Plain, |v| v);
    // A rounding that closes a ReLU is luck. So the error of a rounded step is that of two, which differ in luck alone: their grids are
    // as fine but lie elsewhere.
    let rounded = [round, round_elsewhere].map(|store| run(Lowering::Plain, store));
    let name = |what: &str| format!("{device} {arch:?} {what}");
    let check = |what: &str, got: &[f64], of: &dyn Fn(&Found) -> Vec<f64>| {
        check(&name(what), got, &rounded.each_ref().map(of), &of(&exact))
    };
    check("loss", &as_f64(&losses), &|f| f.result.clone());
    check("logits", &as_f64(&logits), &|f| f.logits.clone());
    let model = network.model();
    let gradient = |params: &[usize]| params.iter().flat_map(|&p| stored(&gradients[p])).collect::<Vec<_>>();
    let mut errors = vec![];
    for params in gradient_groups(model) {
        let of = |f: &Found| params.iter().flat_map(|&p| f.grads[p].clone()).collect();
        let what = format!("gradient of {}", model.params[params[0]].name);
        errors.push(check(&what, &gradient(&params), &of));
    }
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (median, worst) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    println!(
        "{}: relative error of gradients, and of the rounded CPU step: {median:.3?}, worst {worst:.3?}",
        name("step")
    );
    // A test of errors says something where they are small.
    assert!(median.0 < most_median, "{}: the step is too ill-conditioned to test: {median:?}", name("step"));
    for (i, norm) in model.norms.iter().enumerate() {
        for (row, what) in ["running_mean", "running_var"].into_iter().enumerate() {
            let name = format!("{}.{what}", norm.name);
            check(&name, &of(&after, &name), &|f| f.running[2 * i + row].clone());
        }
    }
}

/// The first step of SGD with Nesterov's momentum m moves a parameter p by `-lr (1 + m) (g + decay p)`.
fn check_update(network: &Network, before: &[NamedArray], gradients: &[NamedArray], after: &[NamedArray]) {
    let config = SgdConfig::default();
    assert!(config.nesterov && config.dampening == 0.0, "{config:?}");
    let (lr, momentum) = (f64::from(LR), f64::from(config.momentum));
    for (param, gradient) in network.model().params.iter().zip(gradients) {
        let decay = f64::from(if param.kind.is_norm() { config.bn_weight_decay } else { config.weight_decay });
        let (old, new) = (of(before, &param.name), of(after, &param.name));
        for ((p, g), got) in old.into_iter().zip(stored(gradient)).zip(new) {
            let step = lr * (1.0 + momentum) * (g + decay * p);
            // A few roundings of f32.
            let bound = 2f64.powi(-22) * (p.abs() + step.abs());
            assert!((p - step - got).abs() <= bound, "{}: {got} in place of {}", param.name, p - step);
        }
    }
}

/// The parameters one by one, but weight and bias of what a batch norm follows together, and gamma and beta of a norm: what is
/// added to all values of a channel is lost in the batch norm after the next convolution, so that a bias's or beta's own
/// gradient may be nothing but rounding errors.
pub(super) fn gradient_groups(model: &Model) -> Vec<Vec<usize>> {
    let is_before_norm =
        |p: &usize| model.params[*p].name.contains(".conv_") && model.params[*p].kind == ParamKind::Bias;
    let mut groups: Vec<Vec<usize>> = vec![];
    for p in (0..model.params.len()).filter(|&p| !model.params[p].kind.is_norm()) {
        match groups.last_mut() {
            Some(weight) if is_before_norm(&p) => weight.push(p),
            _ => groups.push(vec![p]),
        }
    }
    groups.extend(model.norms.iter().map(|n| vec![n.gamma, n.beta]));
    groups
}

#[test]
fn a_step_of_slowfast_is_as_exact_as_its_storage() {
    executors::with_kernels().iter().for_each(|device| check_step(device, Arch::SlowFast));
}

#[test]
fn a_step_of_i3d_is_as_exact_as_its_storage() {
    executors::with_kernels().iter().for_each(|device| check_step(device, Arch::I3d));
}

#[test]
fn a_step_of_slow_is_as_exact_as_its_storage() {
    executors::with_kernels().iter().for_each(|device| check_step(device, Arch::Slow));
}

#[test]
fn a_step_with_non_local_blocks_is_as_exact_as_its_storage() {
    let config = with_non_local(tiny(Arch::Slow), Instantiation::Softmax, 2, [1, 2, 2]);
    executors::with_kernels().iter().for_each(|device| check_step_of(device, &config, 0.2));
}

/// The end of a stage of the slow pathway is that of a non-local block, where the lateral joins.
#[test]
fn a_step_with_a_non_local_block_before_a_lateral_is_as_exact_as_its_storage() {
    let mut config = tiny(Arch::SlowFast);
    config.non_local.instantiation = Instantiation::Softmax;
    config.non_local.location[2][0] = vec![1];
    executors::with_kernels().iter().for_each(|device| check_step_of(device, &config, 0.2));
}

#[test]
fn evaluation_is_as_exact_as_its_storage() {
    // The second at a larger crop than its training's, where the head has four windows.
    let slides = ModelConfig {
        head_grid: Some((SHAPE.frames, 32)),
        head_activation: HeadActivation::Sigmoid,
        ..tiny(Arch::SlowFast)
    };
    let cases =
        executors::with_kernels().into_iter().flat_map(|d| [(d.clone(), tiny(Arch::SlowFast)), (d, slides.clone())]);
    for (device, config) in cases {
        let mut network = network(&device, &config, SHAPE);
        let state = network.state_dict().expect("state");
        write_inputs(&network, Mode::Eval, SHAPE, "e");
        let inputs = input_values(&network, Mode::Eval, SHAPE, "e");
        let probabilities = network.forward_eval(SHAPE).expect("evaluation");
        let run = |store| reference((&config, SHAPE), (Mode::Eval, Lowering::Plain), &state, &inputs, store).result;
        check("probabilities", &as_f64(&probabilities), &[run(round)], &run(|v| v));
        // Tables follow the running statistics: those of a step enter the next evaluation.
        write_inputs(&network, Mode::Train, SHAPE, "x");
        network.forward_backward(SHAPE, &LABELS, 0).expect("step");
        network.update_running_statistics(SHAPE).expect("running");
        write_inputs(&network, Mode::Eval, SHAPE, "e");
        assert_ne!(network.forward_eval(SHAPE).expect("evaluation"), probabilities);
    }
}

/// Losses of a few steps on the same clips, and the network after them.
fn train(device: &Device) -> (Vec<Vec<f32>>, Network) {
    let mut network = network(device, &tiny(Arch::Slow), SMALL);
    let mut losses = vec![];
    for step in 0..4 {
        write_inputs(&network, Mode::Train, SMALL, "x");
        losses.push(network.forward_backward(SMALL, &LABELS[..3], step).expect("step"));
        network.sgd_step(3e-4, &SgdConfig::default()).expect("sgd");
        network.update_running_statistics(SMALL).expect("running");
    }
    (losses, network)
}

#[test]
fn training_learns_and_gives_the_same_bits_again() {
    for device in &executors::with_kernels() {
        let (losses, mut trained) = train(device);
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        assert!(losses.iter().flatten().all(|l| l.is_finite()), "{losses:?}");
        assert!(mean(&losses[3]) < mean(&losses[0]), "{losses:?}");
        let (again, other) = train(device);
        assert_eq!(losses, again);
        let state = trained.state_dict().expect("state");
        assert!(state == other.state_dict().expect("state"), "{device}: another state");

        // Copies and tables follow what they are made of: a network that is given the state computes the same.
        let mut loaded = network(device, &tiny(Arch::Slow), SMALL);
        loaded.load_state_dict(&state).expect("load");
        let results = [&mut trained, &mut loaded].map(|network| {
            write_inputs(network, Mode::Train, SMALL, "x");
            let losses = network.forward_train(SMALL, &LABELS[..3], 4).expect("forward");
            write_inputs(network, Mode::Eval, SMALL, "e");
            (losses, network.forward_eval(SMALL).expect("evaluation"))
        });
        assert_eq!(results[0], results[1]);
    }
}

/// A clip that is not a number is caught where statistics are formed, although a ReLU on load would hide it, and whether or not the
/// caller asks the optimizer for a step.
#[test]
fn a_bad_clip_makes_the_losses_bad_and_the_next_step_is_good() {
    for device in &executors::with_kernels() {
        let mut network = network(device, &tiny(Arch::Slow), SMALL);
        write_inputs(&network, Mode::Train, SMALL, "x");
        let good = network.forward_train(SMALL, &LABELS[..3], 0).expect("step");
        let state = network.state_dict().expect("state");
        for has_update in [false, true] {
            let input = network.inputs(Mode::Train, SMALL).expect("inputs")[0].tensor.clone();
            input.memory().part(0, 1).expect("part").write(&[bf16::NAN]).expect("write");
            let bad = network.forward_backward(SMALL, &LABELS[..3], 0).expect("step");
            assert!(bad.iter().all(|l| l.is_nan()), "{bad:?}");
            if has_update {
                network.sgd_step(LR, &SgdConfig::default()).expect("sgd");
                assert!(network.is_update_skipped().expect("guard"));
                assert!(network.state_dict().expect("state") == state, "{device}: a skipped step changed something");
            }
            write_inputs(&network, Mode::Train, SMALL, "x");
            assert_eq!(network.forward_backward(SMALL, &LABELS[..3], 0).expect("step"), good);
        }
        network.sgd_step(LR, &SgdConfig::default()).expect("sgd");
        assert!(!network.is_update_skipped().expect("guard"));
        assert!(network.state_dict().expect("state") != state, "{device}: a good step changed nothing");
    }
}
