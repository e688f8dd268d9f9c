//! Steps whose memory does not suffice: micro-batches of whole batch-norm splits leave every bit as it is.

use half::bf16;
use vcycle::Error;
use vcycle::device::{CudaDevice, DType, Device, Gpu};
use vcycle::labels::Labels;
use vcycle::model::network::PreciseStatistics;
use vcycle::model::plan::{Memory, splits_at_once};
use vcycle::model::{
    Arch, Loss, Mode, Model, ModelConfig, NamedArray, Network, Plan, StepInputs, StepResults, StepTargets,
};
use vcycle::ops::attention::Instantiation;
use vcycle::optimizer::SgdConfig;
use vcycle::shape::StepShape;

use super::fused_step::{fill_state, gram, tiny};
use super::with_non_local;
use crate::executors;
use crate::golden::fill;

const CLASSES: usize = 5;
/// Four splits of a clip.
const EVEN: StepShape = StepShape::square(4, 8, 32, 4);
/// Splits of 2, 2 and 1 clips.
const RAGGED: StepShape = StepShape::square(5, 4, 32, 3);

/// The same with frames for a slow pathway.
const RAGGED_SLOWFAST: StepShape = StepShape::square(5, 8, 32, 3);

fn slowfast() -> ModelConfig {
    ModelConfig { dropout_rate: 0.5, num_classes: CLASSES, ..tiny(Arch::SlowFast) }
}

/// With attention, and a loss that compares with a target for every class.
fn non_local() -> ModelConfig {
    let config = ModelConfig { loss: Loss::BinaryCrossEntropy, num_classes: CLASSES, ..tiny(Arch::I3d) };
    with_non_local(config, Instantiation::Softmax, 1, [1, 2, 2])
}

fn network(device: &Device, config: &ModelConfig, shape: StepShape, limit: Option<usize>) -> vcycle::Result<Network> {
    let mut network = Network::new(device, Model::new(config)?, 5)?;
    fill_state(&mut network);
    limit.into_iter().for_each(|bytes| network.limit_memory(bytes));
    network.prepare(&[shape], &[])?;
    Ok(network)
}

fn memory(network: &Network) -> usize {
    Memory::of(network.model(), &network.plans().collect::<Vec<_>>()).total()
}

fn write_inputs(network: &Network, shape: StepShape, step: u64) {
    for (i, input) in network.inputs(Mode::Train, shape).expect("inputs").iter().enumerate() {
        assert_eq!(input.tensor.shape().n, shape.clips);
        let values = fill::f32(&format!("x{step} {i}"), input.tensor.shape().num_elements(), 1.0, 0.0);
        match input.tensor.memory().dtype() {
            DType::F32 => input.tensor.memory().write(&values),
            _ => input.tensor.memory().write(&values.into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
        }
        .expect("write");
    }
}

/// Two steps, of which the second is a graph where there are graphs: what they did, and all that they leave.
fn run(network: &mut Network, shape: StepShape) -> (Vec<StepResults>, Vec<NamedArray>) {
    let mut results = vec![];
    for step in 0..2u64 {
        write_inputs(network, shape, step);
        let label = |clip| (clip * 3 + step as u32) % CLASSES as u32;
        let labels = Labels::Classes((0..shape.clips as u32).map(label).collect());
        let inputs = StepInputs { targets: StepTargets::Labels(&labels), step_idx: step, lr: 0.05 };
        network.train_step(shape, &inputs, &SgdConfig::default()).expect("step");
        results.push(network.take_results().expect("results").expect("a step was queued"));
    }
    let momentum = network.optimizer_state().expect("momenta").momentum;
    let arrays = network.state_dict().expect("state").into_iter().chain(momentum).collect();
    (results, arrays)
}

#[test]
fn micro_batches_have_the_bits_of_the_whole_step() {
    for device in executors::all() {
        // Kernels alone have the Gram form.
        let gram_of_kernels = (device != Device::Cpu).then(|| (gram(slowfast()), RAGGED_SLOWFAST, [2, 3]));
        let cases = [(slowfast(), EVEN, [2, 4]), (non_local(), RAGGED, [2, 3])];
        for (config, shape, counts) in cases.into_iter().chain(gram_of_kernels) {
            let mut whole = network(&device, &config, shape, None).expect("whole");
            let (results, arrays) = run(&mut whole, shape);
            assert!(results.iter().all(|r| r.state.skipped == 0 && r.losses.len() == shape.clips), "{results:?}");
            assert_eq!(whole.plans().count(), 1);
            let mut bytes = memory(&whole);
            for count in counts {
                let case = format!("{device}: {shape} in {count} micro-batches");
                // Just too little for what came before.
                let mut cut = network(&device, &config, shape, Some(bytes - 1)).expect(&case);
                assert_eq!(cut.plans().count(), count, "{case}");
                assert!(memory(&cut) < bytes, "{case}: {} bytes", memory(&cut));
                bytes = memory(&cut);
                let got = run(&mut cut, shape);
                assert!(got.0 == results, "{case}: {:?} and {results:?}", got.0);
                let differs = got.1.iter().zip(&arrays).find(|(got, want)| got != want);
                assert!(differs.is_none(), "{case}: {}", differs.map_or("", |(a, _)| &a.name));
                assert!(cut.are_statistics_finite(shape).expect("statistics"));
            }
        }
    }
}

/// The sums are over what every split of the whole batch left, whichever micro-batch it was in.
#[test]
fn precise_statistics_have_the_bits_of_the_whole_batch() {
    for device in executors::all() {
        for (config, shape) in [(slowfast(), EVEN), (non_local(), RAGGED)] {
            let run = |network: &mut Network| {
                let mut precise = PreciseStatistics::new(network).expect("sums");
                for batch in 0..2 {
                    write_inputs(network, shape, batch);
                    network.forward_train(shape, vec![0; shape.clips], 0).expect("forward");
                    precise.add(network, shape).expect("add");
                }
                precise.apply(network).expect("apply");
                network.state_dict().expect("state")
            };
            let mut whole = network(&device, &config, shape, None).expect("whole");
            let before = whole.state_dict().expect("state");
            let mut cut = network(&device, &config, shape, Some(memory(&whole) - 1)).expect("cut");
            assert!(cut.plans().count() > 1, "{device}: {shape}");
            let (got, want) = (run(&mut cut), run(&mut whole));
            assert!(want != before, "{device}: {shape}: the statistics moved");
            let differs = got.iter().zip(&want).find(|(got, want)| got != want);
            assert!(differs.is_none(), "{device}: {shape}: {}", differs.map_or("", |(a, _)| &a.name));
        }
    }
}

/// Where statistics are fixed there are none to keep, and gradients are sums over splits all the same.
#[test]
fn fixed_statistics_can_be_cut() {
    let config = ModelConfig { frozen_bn: true, ..slowfast() };
    let mut whole = network(&Device::Cpu, &config, EVEN, None).expect("whole");
    let mut cut = network(&Device::Cpu, &config, EVEN, Some(memory(&whole) - 1)).expect("cut");
    assert_eq!(cut.plans().count(), 2);
    assert!(run(&mut cut, EVEN) == run(&mut whole, EVEN));
}

/// Nothing that a micro-batch or the end of the step needs is lost to the ones between.
#[test]
fn micro_batches_leave_nothing_in_the_arena() {
    let (device, config) = (Device::Cpu, slowfast());
    let mut whole = network(&device, &config, EVEN, None).expect("whole");
    let mut cut = network(&device, &config, EVEN, Some(memory(&whole) - 1)).expect("cut");
    cut.poison_dead_memory(true);
    assert!(run(&mut cut, EVEN) == run(&mut whole, EVEN));
}

/// The fewest micro-batches of whole splits, as even as whole splits allow.
#[test]
fn as_few_micro_batches_as_memory_allows() {
    for (splits, room, at_once, asked) in [
        (8, 79, Some(4), &[4][..]),
        (8, 40, Some(4), &[4]),
        (8, 39, Some(3), &[4, 3]),
        (8, 29, Some(2), &[4, 3, 2]),
        (8, 19, Some(1), &[4, 3, 2, 1]),
        (8, 9, None, &[4, 3, 2, 1]),
        (7, 69, Some(4), &[4]),
        (5, 29, Some(2), &[3, 2]),
        (2, 19, Some(1), &[1]),
        (1, 9, None, &[]),
    ] {
        let mut tried = vec![];
        let bytes_of = |splits| {
            tried.push(splits);
            Ok(10 * splits)
        };
        assert_eq!(splits_at_once(splits, room, bytes_of).expect("no error"), at_once, "{splits} splits in {room}");
        assert_eq!(tried, asked, "{splits} splits in {room}");
    }
    let fails = splits_at_once(4, 10, |_| Err(Error::shape("plan", "on purpose")));
    assert!(fails.unwrap_err().to_string().contains("on purpose"));
}

/// On a GPU that is only described: what is asked for stays within the limit.
#[test]
fn a_limit_holds() {
    let gpu = CudaDevice::described(Gpu::known("h100").expect("h100"));
    let config = ModelConfig { width_per_group: 16, ..ModelConfig::new(Arch::SlowFast, 18, 10) };
    let (train, eval) = (StepShape::square(64, 8, 112, 8), StepShape::square(2, 16, 112, 1));
    let mut whole = Network::new(&Device::Cuda(gpu.clone()), Model::new(&config).expect("model"), 0).expect("network");
    whole.prepare(&[train], &[eval]).expect("whole");
    let needed = Memory::of(whole.model(), &whole.plans().collect::<Vec<_>>());
    for share in [2, 3, 4] {
        let activations = needed.arena + needed.workspace;
        let limit = needed.total() - activations + activations / share;
        let model = Model::new(&config).expect("model");
        let before = gpu.asked_bytes();
        let mut cut = Network::new(&Device::Cuda(gpu.clone()), model, 0).expect("network");
        cut.limit_memory(limit);
        cut.prepare(&[train], &[eval]).expect("cut");
        let asked = (gpu.asked_bytes() - before) as usize;
        assert!(memory(&cut) <= limit && asked < limit + (1 << 20), "{asked} bytes asked for, {limit} given");
        let plans: Vec<&Plan> = cut.plans().filter(|plan| plan.mode == Mode::Train).collect();
        assert_eq!(plans.iter().map(|plan| plan.clips).sum::<usize>(), train.clips, "{share}");
        assert!(plans.len() >= share, "{} micro-batches", plans.len());
    }
}

#[test]
fn what_fits_in_no_way_is_refused() {
    let refused = |shape: StepShape, limit: usize| {
        network(&Device::Cpu, &slowfast(), shape, Some(limit)).map(drop).unwrap_err().to_string()
    };
    let error = refused(EVEN, 1 << 20);
    for part in ["4x8x32", "in micro-batches of 1 clips (1 batch-norm splits)", "gives 0.001 GiB", "choose more splits"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = refused(StepShape { splits: 1, ..EVEN }, 1 << 20);
    for part in ["4x8x32", "VCYCLE.MEMORY_FRACTION", "one batch-norm split", "BN.NUM_SPLITS", "smaller batch"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut network = Network::new(&Device::Cpu, Model::new(&slowfast()).expect("model"), 5).expect("network");
    network.limit_memory(1 << 20);
    let error = network.prepare(&[], &[EVEN]).unwrap_err().to_string();
    assert!(error.contains("an evaluation at 4x8x32") && error.contains("gives 0.001 GiB"), "{error}");
}
