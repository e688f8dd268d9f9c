//! A step's launches are the same bytes each time, and as a graph give the same bits as one by one.

use half::bf16;
use vcycle::device::{Buffer, DType, Device};
use vcycle::labels::Labels;
use vcycle::model::network::{Captured, PreciseStatistics};
use vcycle::model::{Arch, Mode, Model, ModelConfig, Network, StepInputs, StepResults, StepTargets};
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;

use crate::executors;
use crate::golden::fill;

const SHAPES: [StepShape; 2] = [StepShape::square(4, 2, 32, 2), StepShape::square(2, 4, 32, 1)];

const EVAL_SHAPES: [StepShape; 2] = [StepShape::square(2, 2, 48, 1), StepShape::square(1, 4, 32, 1)];

fn network(device: &Device) -> Network {
    let config =
        ModelConfig { width_per_group: 8, dropout_rate: 0.5, fc_init_std: 0.1, ..ModelConfig::new(Arch::Slow, 18, 4) };
    let mut network = Network::new(device, Model::new(&config).expect("model"), 5).expect("network");
    network.prepare(&SHAPES, &EVAL_SHAPES).expect("prepare");
    network
}

/// Noise that differs from number to number, behind a `first` value.
fn fill_inputs(network: &Network, mode: Mode, shape: StepShape, number: u64, first: f32) {
    for (i, input) in network.inputs(mode, shape).expect("inputs").iter().enumerate() {
        let mut values = fill::f32(&format!("x{number} {i}"), input.tensor.shape().num_elements(), 1.0, 0.0);
        values[0] = first;
        match input.tensor.memory().dtype() {
            DType::F32 => input.tensor.memory().write(&values),
            _ => input.tensor.memory().write(&values.into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
        }
        .expect("write");
    }
}

/// A step of noise that differs from step to step; the one of number 2 is not finite.
fn train_step(network: &mut Network, number: u64, is_soft: bool) {
    let shape = SHAPES[number as usize % 2];
    fill_inputs(network, Mode::Train, shape, number, if number == 2 { f32::NAN } else { 0.5 });
    let labels = Labels::Classes((0..shape.clips as u32).map(|i| (i + number as u32) % 4).collect());
    let soft = vec![0.25; 4 * shape.clips];
    let targets = if is_soft { StepTargets::Soft(&soft) } else { StepTargets::Labels(&labels) };
    let inputs = StepInputs { targets, step_idx: number, lr: 0.1 / (number + 1) as f32 };
    network.train_step(shape, &inputs, &SgdConfig::default()).expect("step");
}

/// Nine steps through two shapes, the last three with shared targets: what they did, and all that they left.
fn run(device: &Device, uses_graphs: bool) -> (Vec<StepResults>, Vec<u32>, Vec<Captured>) {
    let mut network = network(device);
    network.use_graphs(uses_graphs);
    let (mut results, mut captured, mut made) = (vec![], vec![], 0);
    for number in 0..9 {
        if number == 1 {
            made = Buffer::count_made_on_this_thread();
        }
        train_step(&mut network, number, number >= 6);
        captured.extend(network.take_captured());
        if number > 0 {
            results.extend(network.take_results().expect("results"));
        }
    }
    results.extend(network.take_results().expect("results"));
    assert_eq!(Buffer::count_made_on_this_thread(), made, "{device}: device memory was allocated after the first step");
    let momentum = network.optimizer_state().expect("momenta").momentum;
    let arrays = network.state_dict().expect("state").into_iter().chain(momentum);
    (results, arrays.flat_map(|a| a.values).map(f32::to_bits).collect(), captured)
}

#[test]
fn a_run_gives_the_same_bits_with_graphs_and_without() {
    for device in executors::all() {
        let (plain, graphs) = (run(&device, false), run(&device, true));
        assert!(plain.1 == graphs.1, "{device}: parameters, statistics or momenta have other bits");
        let bits = |results: &[StepResults]| -> Vec<_> {
            let of = |r: &StepResults| r.losses.iter().chain(&r.logits).map(|v| v.to_bits()).collect::<Vec<_>>();
            results.iter().map(|r| (of(r), r.hits, r.state.skipped, r.state.grad_norm.to_bits())).collect()
        };
        assert!(bits(&plain.0) == bits(&graphs.0), "{device}: {:?}\n{:?}", plain.0, graphs.0);
        let skipped: Vec<u32> = plain.0.iter().map(|r| r.state.skipped).collect();
        assert_eq!(skipped, [0, 0, 1, 0, 0, 0, 0, 0, 0]);
        // One graph a shape and kind of targets, captured in its second step. The last shape came once with shared targets.
        let shapes: Vec<StepShape> = graphs.2.iter().map(|c| c.shape).collect();
        let expected = [SHAPES[0], SHAPES[1], SHAPES[0]];
        assert_eq!(shapes, if device == Device::Cpu { &[][..] } else { &expected[..] });
        assert!(plain.2.is_empty() && graphs.2.iter().all(|c| c.num_launches > 40), "{:?}", graphs.2);
    }
}

#[test]
fn the_launches_of_a_step_are_the_same_bytes_every_time() {
    for device in executors::with_kernels() {
        let mut network = network(&device);
        train_step(&mut network, 0, false);
        let first = network.capture(SHAPES[0]).expect("capture");
        // Another shape, a skipped step, other clips, labels, rates and masks.
        (1..4).for_each(|number| train_step(&mut network, number, false));
        let again = network.capture(SHAPES[0]).expect("capture");
        assert_eq!(first.first_difference(&again), None, "{device}");
        assert!(first.first_difference(&network.capture(SHAPES[1]).expect("capture")).is_some());
    }
}

/// Epochs of a step, precise statistics of three batches and four evaluations: scores and running statistics.
fn evaluations(device: &Device, uses_graphs: bool) -> (Vec<u32>, Vec<String>) {
    let mut network = network(device);
    network.use_graphs(uses_graphs);
    let (mut values, mut captured) = (vec![], vec![]);
    for epoch in 0..3u64 {
        train_step(&mut network, 2 * epoch + 1, false);
        let mut statistics = PreciseStatistics::new(&network).expect("sums");
        let mut made = 0;
        for batch in 0..3 {
            fill_inputs(&network, Mode::Train, SHAPES[0], 10 * epoch + batch, 0.5);
            network.forward_train(SHAPES[0], &[0u32, 1, 2, 3], batch).expect("forward");
            statistics.add(&network, SHAPES[0]).expect("add");
            captured.extend(network.take_captured());
            if batch == 0 {
                made = Buffer::count_made_on_this_thread();
            }
        }
        statistics.apply(&mut network).expect("apply");
        for batch in 0..4 {
            let shape = EVAL_SHAPES[batch as usize % 2];
            fill_inputs(&network, Mode::Eval, shape, 100 * epoch + batch, 0.5);
            values.extend(network.forward_eval(shape).expect("evaluation"));
            values.extend(network.eval_logits(shape).expect("logits"));
            captured.extend(network.take_captured());
        }
        let now = Buffer::count_made_on_this_thread();
        assert_eq!(now, made, "{device}: device memory was allocated after the first batch");
    }
    values.extend(network.state_dict().expect("state").into_iter().flat_map(|a| a.values));
    (values.into_iter().map(f32::to_bits).collect(), captured.iter().map(Captured::to_string).collect())
}

#[test]
fn evaluations_and_precise_statistics_have_the_same_bits_with_graphs_and_without() {
    for device in executors::all() {
        let (plain, graphs) = (evaluations(&device, false), evaluations(&device, true));
        assert!(plain.0 == graphs.0, "{device}: scores or statistics have other bits");
        assert!(plain.1.is_empty());
        // One graph a shape, captured in the second batch; that of the training step in the second epoch.
        let said: Vec<&str> = graphs.1.iter().map(|line| line.split(" (").next().unwrap_or("")).collect();
        let statistics = format!("graph: a forward pass for batch-norm statistics at {}", SHAPES[0]);
        let [first, second] = EVAL_SHAPES.map(|shape| format!("graph: an evaluation at {shape}"));
        let expected = [statistics, first, second, format!("graph: a step at {}", SHAPES[1])];
        assert_eq!(said, if device == Device::Cpu { &[][..] } else { &expected[..] });
    }
}
