//! Training steps as a run queues them: the device has optimizer, running statistics and the decision to skip; shapes change in between.

use half::{bf16, f16};
use vcycle::device::{Buffer, DType, Device};
use vcycle::labels::Labels;
use vcycle::model::plan::StepOp;
use vcycle::model::{
    Arch, LossScale, Lowering, Mode, Model, ModelConfig, NamedArray, Network, Plan, StepInputs, StepResults,
    StepTargets,
};
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;

use super::fused_step::{as_f64, check_to, fill_state, gradient_groups, gram, of, running_after, tiny};
use super::reference::{Reference, stored};
use crate::executors;
use crate::golden::fill;

const FINE: StepShape = StepShape::square(4, 8, 48, 2);
const COARSE: StepShape = StepShape::square(6, 8, 40, 3);
const STEPS: [StepShape; 3] = [FINE, COARSE, FINE];
const LR: f32 = 0.01;
/// Numbers of the first steps of runs. The rule is asked of all together: in one, an array or two are further off by the luck of a few ReLUs
/// (see gram.rs).
const RUNS: [usize; 3] = [0, 10, 20];

/// A 16-bit type: its rounding on two grids that are as fine, its relative rounding error, and the loss scale of its tests.
struct Storage {
    dtype: DType,
    round: [fn(f64) -> f64; 2],
    rounding: f64,
    loss_scale: f32,
}

const STORAGES: [Storage; 2] = [
    Storage {
        dtype: DType::Bf16,
        round: [to_bf16, |v| to_bf16(v * 1.37) / 1.37],
        rounding: 1.0 / 256.0,
        loss_scale: 1.0,
    },
    Storage {
        dtype: DType::F16,
        round: [to_f16, |v| to_f16(v * 1.37) / 1.37],
        rounding: 1.0 / 2048.0,
        loss_scale: 1024.0,
    },
];

fn to_bf16(v: f64) -> f64 {
    bf16::from_f64(v).to_f64()
}

fn to_f16(v: f64) -> f64 {
    f16::from_f64(v).to_f64()
}

fn labels(shape: StepShape, step: usize) -> Vec<u32> {
    (0..shape.clips).map(|clip| (clip * 3 + step) as u32 % 4).collect()
}

fn network(device: &Device, config: &ModelConfig, dtype: DType) -> Network {
    let mut network = Network::with_storage(device, Model::new(config).expect("model"), 5, dtype).expect("network");
    fill_state(&mut network);
    network.prepare(&[FINE, COARSE], &[]).expect("prepare");
    network
}

/// The clip's channels of each input of step number `step`, as `dtype` holds them.
fn clips(network: &Network, shape: StepShape, step: usize, dtype: DType) -> Vec<Vec<f64>> {
    let round = if dtype == DType::F16 { to_f16 } else { to_bf16 };
    let channels = network.model().config.input_channels;
    let inputs = network.inputs(Mode::Train, shape).expect("inputs").iter().enumerate();
    inputs
        .map(|(i, input)| {
            let len = input.tensor.shape().num_positions() * channels;
            fill::f32(&format!("x{step}{i}"), len, 1.0, 0.0).into_iter().map(|v| round(f64::from(v))).collect()
        })
        .collect()
}

fn write_clips(network: &Network, shape: StepShape, step: usize, dtype: DType) {
    let (channels, stored) = (network.model().config.input_channels, network.stored_channels());
    let inputs = network.inputs(Mode::Train, shape).expect("inputs");
    for (input, values) in inputs.iter().zip(clips(network, shape, step, dtype)) {
        let mut padded = vec![0f64; input.tensor.shape().num_positions() * stored];
        for (to, from) in padded.chunks_mut(stored).zip(values.chunks(channels)) {
            to[..channels].copy_from_slice(from);
        }
        let memory = input.tensor.memory();
        match memory.dtype() {
            DType::Bf16 => memory.write(&padded.into_iter().map(bf16::from_f64).collect::<Vec<_>>()),
            DType::F16 => memory.write(&padded.into_iter().map(f16::from_f64).collect::<Vec<_>>()),
            _ => memory.write(&padded.into_iter().map(|v| v as f32).collect::<Vec<_>>()),
        }
        .expect("write");
    }
}

/// Queues step number `step`.
fn queue(network: &mut Network, shape: StepShape, step: usize, dtype: DType) {
    write_clips(network, shape, step, dtype);
    let labels = Labels::Classes(labels(shape, step));
    let inputs = StepInputs { targets: StepTargets::Labels(&labels), step_idx: step as u64, lr: LR };
    network.train_step(shape, &inputs, &SgdConfig::default()).expect("step");
}

fn taken(network: &mut Network) -> StepResults {
    network.take_results().expect("results").expect("a step was queued")
}

/// What three steps leave: their losses, how far each parameter moved, running statistics.
struct Trace {
    losses: Vec<Vec<f64>>,
    moves: Vec<Vec<f64>>,
    running: Vec<Vec<f64>>,
}

impl Trace {
    fn new(model: &Model, losses: Vec<Vec<f64>>, [before, after]: [&[NamedArray]; 2]) -> Trace {
        let moved = |name: &str| of(after, name).iter().zip(of(before, name)).map(|(a, b)| a - b).collect();
        let norms = model.norms.iter();
        Trace {
            losses,
            moves: model.params.iter().map(|p| moved(&p.name)).collect(),
            running: norms
                .flat_map(|n| ["mean", "var"].map(|what| of(after, &format!("{}.running_{what}", n.name))))
                .collect(),
        }
    }
}

/// By [`Network::train_step`] from step number `first` on, results a step late.
fn trace(network: &mut Network, first: usize, dtype: DType) -> Trace {
    let before = network.state_dict().expect("state");
    let mut losses = vec![];
    let mut note = |results: StepResults| {
        assert_eq!(results.state.skipped, 0);
        losses.push(as_f64(&results.losses));
    };
    let mut num_made = 0;
    for (i, shape) in STEPS.into_iter().enumerate() {
        queue(network, shape, first + i, dtype);
        if i == 0 {
            num_made = Buffer::count_made_on_this_thread();
        } else {
            note(taken(network));
        }
    }
    assert_eq!(Buffer::count_made_on_this_thread(), num_made, "memory was allocated after the first step");
    note(taken(network));
    assert!(network.take_results().expect("results").is_none());
    Trace::new(network.model(), losses, [&before, &network.state_dict().expect("state")])
}

/// By references that round whatever is stored with `store`; torch's SGD with Nesterov's momentum.
fn rounded(
    config: &ModelConfig,
    network: &Network,
    state: &[NamedArray],
    first: usize,
    storage: &Storage,
    store: fn(f64) -> f64,
) -> Trace {
    let (stream, model) = (Device::Cpu.stream().expect("stream"), Model::new(config).expect("model"));
    let sgd = SgdConfig::default();
    let (lr, mu) = (f64::from(LR), f64::from(sgd.momentum));
    let (mut now, mut losses) = (state.to_vec(), vec![]);
    let mut momenta: Vec<Vec<f64>> = vec![];
    for (i, shape) in STEPS.into_iter().enumerate() {
        let mut plan = Plan::with_lowering(&stream, &model, shape, Mode::Train, 3, Lowering::Plain).expect("plan");
        for op in &mut plan.forward {
            if let StepOp::CrossEntropy { scale, .. } = op {
                *scale *= storage.loss_scale;
            }
        }
        let (inputs, labels) = (clips(network, shape, first + i, storage.dtype), labels(shape, first + i));
        let mut step = Reference::new(&model, &plan, &now, &inputs, &labels, store);
        step.run();
        losses.push(step.read(plan.result));
        let mut running = running_after(&model, &plan, &now, &step).into_iter();
        let mut next = now.clone();
        let array = |next: &mut [NamedArray], name: &str| next.iter().position(|a| a.name == name).expect("array");
        for (p, param) in model.params.iter().enumerate() {
            let at = array(&mut next, &param.name);
            let decay = f64::from(if param.kind.is_norm() { sgd.bn_weight_decay } else { sgd.weight_decay });
            let mut values = stored(&next[at]);
            let g: Vec<f64> = step.grads[p].iter().map(|g| g / f64::from(storage.loss_scale)).collect();
            let g: Vec<f64> = g.iter().zip(&values).map(|(g, v)| g + decay * v).collect();
            match momenta.get_mut(p) {
                Some(m) => m.iter_mut().zip(&g).for_each(|(m, g)| *m = mu * *m + g),
                None => momenta.push(g.clone()),
            }
            values.iter_mut().zip(&g).zip(&momenta[p]).for_each(|((v, g), m)| *v -= lr * (g + mu * m));
            next[at].values = in_order(&next[at], &values);
        }
        for norm in &model.norms {
            for what in ["mean", "var"] {
                let at = array(&mut next, &format!("{}.running_{what}", norm.name));
                next[at].values = running.next().expect("statistics").iter().map(|&v| v as f32).collect();
            }
        }
        now = next;
    }
    Trace::new(&model, losses, [state, &now])
}

/// From storage order back to PySlowFast's.
fn in_order(array: &NamedArray, values: &[f64]) -> Vec<f32> {
    if array.shape.len() != 5 {
        return values.iter().map(|&v| v as f32).collect();
    }
    let (c_in, taps) = (array.shape[1], array.shape[2..].iter().product::<usize>());
    let of_output =
        |filter: &[f64]| (0..taps * c_in).map(|i| filter[i % taps * c_in + i / taps] as f32).collect::<Vec<_>>();
    values.chunks(c_in * taps).flat_map(of_output).collect()
}

/// Traces of one run: the kernels', those of networks that round what is stored, and the CPU executor's.
struct Run {
    got: Trace,
    rounded: [Trace; 2],
    want: Trace,
}

fn run(device: &Device, config: &ModelConfig, storage: &Storage, first: usize) -> Run {
    let dtype = storage.dtype;
    let (mut kernels, mut cpu) = (network(device, config, dtype), network(&Device::Cpu, config, dtype));
    let mut optimizer = kernels.optimizer_state().expect("state");
    if let Some(scale) = &mut optimizer.loss_scale {
        scale.scale = storage.loss_scale;
    }
    kernels.load_optimizer_state(&optimizer).expect("load");
    let state = cpu.state_dict().expect("state");
    let rounded = storage.round.map(|store| rounded(config, &cpu, &state, first, storage, store));
    Run { got: trace(&mut kernels, first, dtype), rounded, want: trace(&mut cpu, first, dtype) }
}

/// Three steps over two shapes with splits agree with the CPU executor as well as steps do that round what is stored.
#[test]
fn steps_across_shapes_are_as_exact_as_their_storage() {
    let (standard, [bf16, f16]) = (tiny(Arch::SlowFast), &STORAGES);
    for device in &executors::with_kernels() {
        for (config, storage) in [(&standard, bf16), (&standard, f16), (&gram(standard.clone()), f16)] {
            check_runs(device, config, storage);
        }
    }
}

fn check_runs(device: &Device, config: &ModelConfig, storage: &Storage) {
    let runs = RUNS.map(|first| run(device, config, storage, first));
    let name = format!("{device} {:?} {:?}", storage.dtype, config.gram);
    let check = |what: &str, of: &dyn Fn(&Trace) -> Vec<f64>| {
        let all = |trace: &dyn Fn(&Run) -> &Trace| runs.iter().flat_map(|run| of(trace(run))).collect::<Vec<_>>();
        let rounded = [0, 1].map(|i| all(&|run| &run.rounded[i]));
        let (got, want) = (all(&|run| &run.got), all(&|run| &run.want));
        check_to(storage.rounding, &format!("{name} {what}"), &got, &rounded, &want)
    };
    for step in 0..STEPS.len() {
        check(&format!("losses of step {step}"), &|t| t.losses[step].clone());
    }
    let model = Model::new(config).expect("model");
    let mut errors: Vec<(f64, f64)> = vec![];
    for params in gradient_groups(&model) {
        let what = format!("way of {}", model.params[params[0]].name);
        errors.push(check(&what, &|t| params.iter().flat_map(|&p| t.moves[p].clone()).collect()));
    }
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("{name}: relative error of the parameters' ways: {:.3?}", errors[errors.len() / 2]);
    for i in 0..runs[0].got.running.len() {
        check(&format!("running statistic {i}"), &|t| t.running[i].clone());
    }
}

/// A loss scale that is too large for f16: the step is skipped, the scale is halved, nothing else changes, and the run goes on.
#[test]
fn an_overflow_of_f16_halves_the_scale_and_the_run_goes_on() {
    let config = tiny(Arch::SlowFast);
    for device in &executors::with_kernels() {
        let mut network = network(device, &config, DType::F16);
        let first = network.optimizer_state().expect("state");
        assert_eq!(first.loss_scale, Some(LossScale { scale: 65536.0, good_steps: 0 }));
        // 2^20 / 4 clips times a gradient of the logits of about 1 is beyond 65504.
        let scale = LossScale { scale: 1_048_576.0, good_steps: 7 };
        let mut planted = first.clone();
        planted.loss_scale = Some(scale);
        network.load_optimizer_state(&planted).expect("load");
        let state = network.state_dict().expect("state");
        queue(&mut network, FINE, 0, DType::F16);
        let results = taken(&mut network);
        assert_eq!((results.state.skipped, results.state.num_skipped), (1, 1), "{device}");
        assert!(results.losses.iter().all(|l| l.is_finite()), "{device}: {:?}", results.losses);
        assert!(network.state_dict().expect("state") == state, "{device}: a skipped step changed something");
        let optimizer = network.optimizer_state().expect("state");
        assert_eq!(optimizer.loss_scale, Some(LossScale { scale: scale.scale / 2.0, good_steps: 0 }), "{device}");
        assert!(!optimizer.has_momentum && optimizer.momentum == first.momentum, "{device}: the momenta");
        let mut halved = 1;
        let results = loop {
            queue(&mut network, FINE, 0, DType::F16);
            let results = taken(&mut network);
            if results.state.skipped == 0 {
                break results;
            }
            halved += 1;
            assert!(halved < 16, "{device}: the scale is {}", results.state.loss_scale);
        };
        let expected = scale.scale / (1u32 << halved) as f32;
        assert_eq!((results.state.loss_scale, results.state.good_steps), (expected, 1), "{device}");
        assert!(results.state.grad_norm.is_finite() && results.state.grad_norm > 0.0);
        let optimizer = network.optimizer_state().expect("state");
        assert!(
            optimizer.has_momentum && network.state_dict().expect("state") != state,
            "{device}: nothing was learnt"
        );
    }
}

/// State goes from any executor to any other: the same values, momenta and loss scale, and the next step begins there.
#[test]
fn a_state_goes_from_one_executor_to_another() {
    let config = ModelConfig { dropout_rate: 0.5, ..tiny(Arch::Slow) };
    let devices = executors::all();
    for (from, to) in devices.iter().flat_map(|from| devices.iter().map(move |to| (from, to))) {
        let (mut left, mut right) = (network(from, &config, DType::F16), network(to, &config, DType::F16));
        queue(&mut left, COARSE, 0, DType::F16);
        let (state, optimizer) = (left.state_dict().expect("state"), left.optimizer_state().expect("state"));
        assert!(state.iter().any(|a| a.name.ends_with("num_batches_tracked") && a.values == [1.0]), "{from}");
        right.load_state_dict(&state).expect("load");
        right.load_optimizer_state(&optimizer).expect("load");
        assert!(right.state_dict().expect("state") == state, "{from} to {to}");
        let loaded = right.optimizer_state().expect("state");
        assert!(
            loaded.momentum == optimizer.momentum && loaded.has_momentum == optimizer.has_momentum,
            "{from} to {to}"
        );
        if from == to {
            assert_eq!(loaded.loss_scale, optimizer.loss_scale);
            taken(&mut left);
            for network in [&mut left, &mut right] {
                queue(network, FINE, 1, DType::F16);
            }
            let [mut a, mut b] = [taken(&mut left), taken(&mut right)];
            // Counters of a network begin with its loading.
            (a.state.num_taken, b.state.num_taken) = (0, 0);
            assert_eq!(a, b, "{from}");
            assert!(left.state_dict().expect("state") == right.state_dict().expect("state"), "{from}");
        }
    }
}
