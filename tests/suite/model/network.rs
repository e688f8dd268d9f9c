//! Networks: repeatable, gradients true, state in and out, shapes that share memory.

use vcycle::device::{DType, Device};
use vcycle::labels::Labels;
use vcycle::model::network::{PreciseStatistics, fold_sub_batch_norm};
use vcycle::model::{
    Arch, HeadActivation, Loss, Lowering, Mode, Model, ModelConfig, NamedArray, Network, Plan, Transform,
};
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;

use crate::golden::fill;

fn tiny(arch: Arch) -> ModelConfig {
    ModelConfig { width_per_group: 8, dropout_rate: 0.0, ..ModelConfig::new(arch, 18, 4) }
}

fn network(config: &ModelConfig, seed: u64) -> Network {
    Network::new(&Device::Cpu, Model::new(config).expect("model"), seed).expect("network")
}

fn write_random(network: &Network, mode: Mode, shape: StepShape, name: &str) {
    for (i, input) in network.inputs(mode, shape).expect("inputs").iter().enumerate() {
        let values = fill::f32(&format!("{name}{i}"), input.tensor.shape().num_elements(), 1.0, 0.0);
        input.tensor.memory().write(&values).expect("write");
    }
}

fn labels(shape: StepShape) -> Vec<u32> {
    (0..shape.clips as u32).map(|i| i % 4).collect()
}

/// Trains a few steps through two shapes; returns losses and the state.
fn train(config: &ModelConfig, threads: usize) -> (Vec<f32>, Vec<NamedArray>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
    pool.install(|| {
        let mut network = network(config, 3);
        let shapes = [StepShape::square(4, 4, 32, 2), StepShape::square(2, 8, 48, 1)];
        network.prepare(&shapes, &[]).expect("prepare");
        let mut losses = vec![];
        for step in 0..4 {
            let shape = shapes[step % 2];
            write_random(&network, Mode::Train, shape, &format!("step{step}"));
            losses.extend(network.forward_backward(shape, labels(shape), step as u64).expect("step"));
            network.update_running_statistics(shape).expect("running");
            network.sgd_step(0.05, &SgdConfig::default()).expect("sgd");
        }
        (losses, network.state_dict().expect("state"))
    })
}

#[test]
fn two_runs_give_the_same_bits_with_any_number_of_threads() {
    let config = ModelConfig { dropout_rate: 0.5, ..tiny(Arch::SlowFast) };
    let first = train(&config, 1);
    assert!(first.0.iter().all(|l| l.is_finite()));
    for threads in [1, 2, 3] {
        let again = train(&config, threads);
        assert_eq!(first.0, again.0, "losses with {threads} threads");
        assert!(first.1 == again.1, "state with {threads} threads");
    }
}

/// Directional derivative against central differences of the loss. f32 sums limit it to about 1 %.
#[test]
fn gradients_agree_with_finite_differences() {
    for (arch, transform, frozen_bn) in [
        (Arch::SlowFast, Transform::Bottleneck, false),
        (Arch::I3d, Transform::Basic, false),
        (Arch::Slow, Transform::Bottleneck, false),
        (Arch::SlowFast, Transform::Bottleneck, true),
    ] {
        let config = ModelConfig { transform, frozen_bn, fc_init_std: 0.05, ..tiny(arch) };
        let mut network = network(&config, 1);
        let shape = StepShape::square(4, 8, 32, 2);
        network.prepare(&[shape], &[]).expect("prepare");
        write_random(&network, Mode::Train, shape, "x");
        let mut start = match frozen_bn {
            true => with_statistics_of(&config, shape),
            false => network.state_dict().expect("state"),
        };
        // Small residual branches: a smooth loss, and yet every branch has a gradient.
        let last = if transform == Transform::Basic { "branch2.b_bn.weight" } else { "branch2.c_bn.weight" };
        start.iter_mut().filter(|a| a.name.ends_with(last)).for_each(|a| a.values.fill(0.2));
        network.load_state_dict(&start).expect("state");
        let mean_loss = |network: &mut Network| -> f64 {
            let losses = network.forward_backward(shape, labels(shape), 0).expect("step");
            losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
        };
        mean_loss(&mut network);
        let grads = network.gradients().expect("gradients");
        // Along the gradient of each kind of parameter the loss must change as the gradient says.
        for part in
            ["s1", "branch1.weight", "branch2.a.weight", "branch2.b.weight", "_bn.weight", "_bn.bias", "head", "fuse"]
        {
            let norm2: f64 = norm2(grads.iter().filter(|g| g.name.contains(part)));
            if norm2 == 0.0 {
                assert!(part == "fuse" && arch != Arch::SlowFast, "{part} has no gradient");
                continue;
            }
            let mut loss_at = |distance: f64| {
                let mut state = start.clone();
                for grad in grads.iter().filter(|g| g.name.contains(part)) {
                    let array = state.iter_mut().find(|a| a.name == grad.name).expect("parameter");
                    let scale = (distance / norm2.sqrt()) as f32;
                    array.values.iter_mut().zip(&grad.values).for_each(|(v, g)| *v += scale * g);
                }
                network.load_state_dict(&state).expect("state");
                mean_loss(&mut network)
            };
            let expected = norm2.sqrt();
            let h = 5e-4 / expected; // the loss changes by about 0.001 between the two points
            let slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
            assert!((slope - expected).abs() <= 0.01 * expected, "{arch:?} {part}: {slope}, gradient {expected}");
        }
    }
}

/// The first values with the statistics of the batch that they are tried on: as far from kinks as batch norm keeps them.
fn with_statistics_of(config: &ModelConfig, shape: StepShape) -> Vec<NamedArray> {
    let mut network = network(&ModelConfig { frozen_bn: false, ..config.clone() }, 1);
    network.prepare(&[shape], &[]).expect("prepare");
    write_random(&network, Mode::Train, shape, "x");
    network.forward_train(shape, labels(shape), 0).expect("forward");
    let mut statistics = PreciseStatistics::new(&network).expect("sums");
    statistics.add(&network, shape).expect("add");
    statistics.apply(&mut network).expect("apply");
    network.state_dict().expect("state")
}

fn norm2<'a>(arrays: impl Iterator<Item = &'a NamedArray>) -> f64 {
    arrays.flat_map(|a| &a.values).map(|&v| f64::from(v).powi(2)).sum()
}

#[test]
fn state_goes_out_and_in() {
    let config = tiny(Arch::SlowFast);
    let shape = StepShape::square(2, 8, 32, 1);
    let step = |network: &mut Network, i: u64| -> Vec<f32> {
        write_random(network, Mode::Train, shape, &format!("step{i}"));
        let losses = network.forward_backward(shape, labels(shape), i).expect("step");
        network.update_running_statistics(shape).expect("running");
        network.sgd_step(0.05, &SgdConfig::default()).expect("sgd");
        losses
    };
    let mut a = network(&config, 1);
    a.prepare(&[shape], &[shape]).expect("prepare");
    (0..2).for_each(|i| drop(step(&mut a, i)));
    let mut b = network(&config, 2);
    b.prepare(&[shape], &[shape]).expect("prepare");
    b.load_state_dict(&a.state_dict().expect("state")).expect("load");
    b.load_optimizer_state(&a.optimizer_state().expect("momenta")).expect("load momenta");
    for i in 2..4 {
        assert_eq!(step(&mut a, i), step(&mut b, i));
    }
    assert!(a.state_dict().expect("a") == b.state_dict().expect("b"));
    assert_eq!(a.state_dict().expect("a").iter().find(|x| x.name.ends_with("tracked")).expect("count").values, [4.0]);
}

#[test]
fn a_state_of_another_model_is_refused_and_changes_nothing() {
    let mut network = network(&tiny(Arch::Slow), 1);
    let before = network.state_dict().expect("state");
    let refused = |network: &mut Network, state: Vec<NamedArray>, word: &str| {
        let message = network.load_state_dict(&state).expect_err("must be refused").to_string();
        assert!(message.contains(word), "{message}");
    };
    let wide = ModelConfig { width_per_group: 16, ..tiny(Arch::Slow) };
    refused(&mut network, self::network(&wide, 1).state_dict().expect("state"), "shape");
    refused(&mut network, before[1..].to_vec(), "missing");
    refused(&mut network, [before.clone(), vec![before[0].clone()]].concat(), "twice");
    let stranger = NamedArray { name: "s9.weight".into(), shape: vec![1], values: vec![0.0] };
    refused(&mut network, [before.clone(), vec![stranger]].concat(), "s9.weight");
    assert!(network.state_dict().expect("state") == before);
    assert!(network.optimizer_state().is_err(), "nothing is prepared for training");
}

/// MODEL.FROZEN_BN: the same numbers in training as in evaluation, and a step that leaves the statistics as they are.
#[test]
fn frozen_batch_norms_normalise_by_the_running_statistics() {
    let config = ModelConfig { frozen_bn: true, zero_init_final_bn: false, ..tiny(Arch::I3d) };
    let shape = StepShape::square(2, 8, 32, 2);
    let mut network = network(&config, 1);
    network.prepare(&[shape], &[shape]).expect("prepare");
    let mut state = network.state_dict().expect("state");
    for array in state.iter_mut().filter(|a| a.name.contains("running_")) {
        let offset = if array.name.ends_with("var") { 0.8 } else { 0.0 };
        array.values = fill::f32(&array.name, array.values.len(), 0.2, offset);
    }
    network.load_state_dict(&state).expect("load");
    write_random(&network, Mode::Eval, shape, "x");
    network.forward_eval(shape).expect("eval");
    let expected = network.eval_logits(shape).expect("logits");
    write_random(&network, Mode::Train, shape, "x");
    network.forward_backward(shape, labels(shape), 0).expect("step");
    assert_eq!(network.train_logits(shape).expect("logits"), expected);
    network.update_running_statistics(shape).expect("running");
    network.sgd_step(0.1, &SgdConfig::default()).expect("sgd");
    for (before, after) in state.iter().zip(network.state_dict().expect("state")) {
        let is_statistic = before.name.contains("running_") || before.name.ends_with("tracked");
        assert_eq!(before.values == after.values, is_statistic, "{}", before.name);
    }
    let stream = Device::Cpu.stream().expect("stream");
    let lowering = Lowering::Fused(DType::Bf16);
    let error = Plan::with_lowering(&stream, network.model(), shape, Mode::Train, 4, lowering).expect_err("kernels");
    assert!(error.to_string().contains("MODEL.FROZEN_BN") && error.to_string().contains("--device cpu"), "{error}");
}

#[test]
fn parameters_start_as_pyslowfast_does() {
    let config = ModelConfig::new(Arch::SlowFast, 50, 10);
    let state = network(&config, 7).state_dict().expect("state");
    let of = |name: &str| state.iter().find(|a| a.name == name).unwrap_or_else(|| panic!("{name}"));
    let filter = of("s4.pathway0_res1.branch2.a.weight"); // [256, 1024, 3, 1, 1]
    let std = (norm2(std::iter::once(filter)) / filter.values.len() as f64).sqrt();
    let expected = (2.0 / (256.0 * 3.0_f64)).sqrt();
    assert!((std - expected).abs() < 0.01 * expected, "{std} {expected}");
    let mean = filter.values.iter().map(|&v| f64::from(v)).sum::<f64>() / filter.values.len() as f64;
    assert!(mean.abs() < 4.0 * expected / (filter.values.len() as f64).sqrt());
    let projection = of("head.projection.weight");
    let std = (norm2(std::iter::once(projection)) / projection.values.len() as f64).sqrt();
    assert!((std - 0.01).abs() < 0.0005, "{std}");
    assert!(of("s2.pathway0_res0.branch2.c_bn.weight").values.iter().all(|&v| v == 0.0));
    assert!(of("s2.pathway0_res0.branch1_bn.weight").values.iter().all(|&v| v == 1.0));
    assert!(of("s1_fuse.bn.running_var").values.iter().all(|&v| v == 1.0));
    let zero_conv = ModelConfig { zero_init_final_conv: true, ..ModelConfig::new(Arch::C2d, 50, 10) };
    for array in network(&zero_conv, 7).state_dict().expect("state").iter().filter(|a| a.shape.len() == 5) {
        assert_eq!(array.values.iter().all(|&v| v == 0.0), array.name.ends_with("branch2.c.weight"), "{}", array.name);
    }
    // The stream is keyed by the name: another network starts the same layer the same way.
    let other = network(&ModelConfig::new(Arch::SlowFast, 101, 10), 7).state_dict().expect("state");
    assert!(other.iter().find(|a| a.name == filter.name).expect("filter") == filter);
    assert!(
        network(&config, 8).state_dict().expect("state").iter().find(|a| a.name == filter.name).expect("filter")
            != filter
    );
}

/// The loss of sets of classes is the reference's, its gradients make it fall, and cross-entropy takes no sets.
#[test]
fn sets_of_classes_are_trained_by_binary_cross_entropy() {
    let shape = StepShape::square(3, 4, 32, 1);
    let sets = Labels::Sets(vec![vec![0, 3], vec![], vec![1]]);
    let mut network = network(&ModelConfig { loss: Loss::BinaryCrossEntropy, ..tiny(Arch::Slow) }, 1);
    network.prepare(&[shape], &[]).expect("prepare");
    write_random(&network, Mode::Train, shape, "sets");
    let first = network.forward_backward(shape, &sets, 0).expect("step");
    let logits: Vec<f64> = network.train_logits(shape).expect("logits").iter().map(|&l| f64::from(l)).collect();
    let targets: Vec<f64> = sets.multi_hot(4).iter().map(|&t| f64::from(t)).collect();
    for (clip, &loss) in first.iter().enumerate() {
        let rows = (4 * clip..4 * clip + 4).map(|i| (logits[i], targets[i]));
        let want = rows.map(|(x, t)| (1.0 + x.exp()).ln() - t * x).sum::<f64>() / 4.0;
        assert!((f64::from(loss) - want).abs() < 1e-5, "clip {clip}: {loss}, expected {want}");
    }
    let mut last = first.clone();
    for step in 0..12 {
        network.sgd_step(0.05, &SgdConfig::default()).expect("sgd");
        write_random(&network, Mode::Train, shape, "sets");
        last = network.forward_backward(shape, &sets, step).expect("step");
    }
    assert!(last.iter().sum::<f32>() < 0.7 * first.iter().sum::<f32>(), "{first:?} to {last:?}");
    // A single label is a set of one.
    assert!(network.forward_backward(shape, &[0, 1, 2], 0).is_ok());
    let mut single = self::network(&tiny(Arch::Slow), 1);
    single.prepare(&[shape], &[]).expect("prepare");
    let error = single.forward_backward(shape, &sets, 0).unwrap_err().to_string();
    assert!(error.contains("bce_logit"), "{error}");
}

#[test]
fn wrong_labels_and_shapes_are_refused() {
    let mut network = network(&tiny(Arch::Slow), 1);
    let shape = StepShape::square(2, 4, 32, 1);
    network.prepare(&[shape], &[]).expect("prepare");
    let message = |r: vcycle::Result<Vec<f32>>| r.expect_err("must be refused").to_string();
    assert!(message(network.forward_backward(shape, &[0, 4], 0)).contains("4 classes"));
    assert!(message(network.forward_backward(shape, &[0], 0)).contains("expected 2"));
    assert!(message(network.forward_backward(StepShape::square(2, 8, 32, 1), &[0, 0], 0)).contains("not prepared"));
    assert!(message(network.forward_eval(shape)).contains("not prepared"));
}

/// PySlowFast's ResNetBasicHead: the training crop's window slides over the map of a larger one, and the scores are the mean of what the
/// activation makes of each place.
#[test]
fn the_head_slides_over_larger_crops() {
    let larger = StepShape { height_px: 96, ..StepShape::square(2, 4, 64, 1) };
    for activation in [HeadActivation::Softmax, HeadActivation::Sigmoid, HeadActivation::None] {
        let config = ModelConfig { head_grid: Some((4, 32)), head_activation: activation, ..tiny(Arch::SlowFast) };
        let mut network = network(&config, 1);
        network.prepare(&[], &[larger]).expect("prepare");
        write_random(&network, Mode::Eval, larger, "x");
        let scores = network.forward_eval(larger).expect("eval");
        let logits = network.eval_logits(larger).expect("logits");
        let (windows, classes) = (6, 4);
        assert_eq!((scores.len(), logits.len()), (2 * classes, 2 * windows * classes));
        for (clip, scores) in scores.chunks(classes).enumerate() {
            let mut expected = vec![0.0; classes];
            for logits in logits.chunks(classes).skip(clip * windows).take(windows) {
                let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                for (to, &x) in expected.iter_mut().zip(logits) {
                    let x = f64::from(x);
                    *to += match activation {
                        HeadActivation::Softmax => x.exp() / sum,
                        HeadActivation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                        HeadActivation::None => x,
                    } / windows as f64;
                }
            }
            for (got, want) in scores.iter().zip(&expected) {
                assert!((f64::from(*got) - want).abs() <= 1e-6 * (1.0 + want.abs()), "{activation:?}: {got} {want}");
            }
        }
        let error = network.prepare(&[], &[StepShape::square(2, 4, 31, 1)]).err();
        assert!(error.is_none(), "a crop with the same map: {error:?}");
    }
    let config = ModelConfig { head_grid: Some((8, 64)), ..tiny(Arch::Slow) };
    let error = network(&config, 1).prepare(&[], &[StepShape::square(2, 8, 32, 1)]).expect_err("too small").to_string();
    assert!(error.contains("training grid 8x64") && error.contains("a larger one"), "{error}");
}

/// One shape is worked on in the memory of a larger one; the answer must not depend on what was there.
#[test]
fn shapes_share_memory_without_a_trace() {
    let config = tiny(Arch::SlowFast);
    let (small, large) = (StepShape::square(2, 4, 32, 1), StepShape::square(4, 8, 64, 2));
    let losses = |shapes: &[StepShape]| {
        let mut network = network(&config, 1);
        network.prepare(shapes, &[]).expect("prepare");
        let mut last = vec![];
        for &shape in shapes.iter().rev() {
            write_random(&network, Mode::Train, shape, "x");
            last = network.forward_backward(shape, labels(shape), 0).expect("step");
        }
        (last, network.gradients().expect("gradients"))
    };
    let (alone, after_larger) = (losses(&[small]), losses(&[small, large]));
    assert!(alone == after_larger);
}

#[test]
fn precise_statistics_of_one_batch_are_that_batch() {
    let config = tiny(Arch::I3d);
    let shape = StepShape::square(4, 8, 32, 1);
    let mut network = network(&config, 1);
    network.prepare(&[shape], &[shape]).expect("prepare");
    let mut precise = PreciseStatistics::new(&network).expect("sums");
    assert!(precise.apply(&mut network).is_err(), "no batch yet");
    write_random(&network, Mode::Train, shape, "x");
    network.forward_train(shape, labels(shape), 0).expect("forward");
    let train_logits = network.train_logits(shape).expect("logits");
    precise.add(&network, shape).expect("add");
    precise.apply(&mut network).expect("apply");
    write_random(&network, Mode::Eval, shape, "x");
    network.forward_eval(shape).expect("eval");
    for (train, eval) in train_logits.iter().zip(network.eval_logits(shape).expect("logits")) {
        assert!((train - eval).abs() <= 1e-4, "{train} {eval}");
    }
}

#[test]
fn folding_sub_batch_norm() {
    let array = |name: &str, values: &[f32]| NamedArray {
        name: name.into(),
        shape: vec![values.len()],
        values: values.to_vec(),
    };
    let state = [
        array("s1.pathway0_stem.bn.weight", &[1.0, 1.0]),
        array("s1.pathway0_stem.bn.bn.running_mean", &[9.0, 9.0]),
        array("s1.pathway0_stem.bn.bn.running_var", &[9.0, 9.0]),
        array("s1.pathway0_stem.bn.split_bn.running_mean", &[1.0, 2.0, 3.0, 2.0]),
        array("s1.pathway0_stem.bn.split_bn.running_var", &[1.0, 4.0, 2.0, 6.0]),
        array("s2_fuse.bn.running_mean", &[5.0]),
    ];
    let names: Vec<String> = fold_sub_batch_norm(&state, false).expect("fold").into_iter().map(|a| a.name).collect();
    let expected = [
        "s1.pathway0_stem.bn.weight",
        "s1.pathway0_stem.bn.running_mean",
        "s1.pathway0_stem.bn.running_var",
        "s2_fuse.bn.running_mean",
    ];
    assert_eq!(names, expected);
    let folded = fold_sub_batch_norm(&state, true).expect("fold");
    assert_eq!(folded[1].values, [2.0, 2.0]);
    assert_eq!(folded[2].values, [1.5 + 1.0, 5.0]);
    assert_eq!(fold_sub_batch_norm(&state, false).expect("fold")[1].values, [9.0, 9.0]);
}
