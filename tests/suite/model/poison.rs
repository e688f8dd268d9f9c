//! NaN in all memory that an op may not read changes no bit of a step: no op reads what another's storage left, none reads more than
//! was written, none writes over what is still needed, and scratch memory is scratch.

use half::{bf16, f16};
use vcycle::device::{DType, Device};
use vcycle::model::plan::{Access, Place, StepOp, assign_offsets};
use vcycle::model::{Arch, GramUse, Lowering, Mode, Model, ModelConfig, Network, Plan};
use vcycle::ops::attention::Instantiation;
use vcycle::shape::StepShape;

use super::with_non_local;
use crate::executors;
use crate::golden::fill;

/// The second split is smaller than the first.
const SHAPE: StepShape = StepShape::square(3, 8, 32, 2);
const LABELS: [u32; 3] = [0, 3, 1];

/// Both pathways and laterals, with batch norms in either form; blocks that convolve in time; attention.
fn configs() -> [ModelConfig; 4] {
    let tiny = |arch| ModelConfig {
        width_per_group: 8,
        beta_inv: 2,
        dropout_rate: 0.5,
        fc_init_std: 0.1,
        zero_init_final_bn: false,
        ..ModelConfig::new(arch, 18, 4)
    };
    let gram = ModelConfig { gram: GramUse::Always, ..tiny(Arch::SlowFast) };
    [
        tiny(Arch::SlowFast),
        gram,
        tiny(Arch::I3d),
        with_non_local(tiny(Arch::Slow), Instantiation::Softmax, 2, [1, 2, 2]),
    ]
}

fn network(device: &Device, config: &ModelConfig, storage: DType) -> Network {
    Network::with_storage(device, Model::new(config).expect("model"), 5, storage).expect("network")
}

/// By little enough that the gradients of noise fit f16.
fn scale_loss(network: &mut Network) {
    let mut optimizer = network.optimizer_state().expect("state");
    if let Some(scale) = &mut optimizer.loss_scale {
        scale.scale = 64.0;
        network.load_optimizer_state(&optimizer).expect("load");
    }
}

fn write_inputs(network: &Network, mode: Mode) {
    for (i, input) in network.inputs(mode, SHAPE).expect("inputs").iter().enumerate() {
        let values = fill::f32(&format!("x{i}"), input.tensor.shape().num_elements(), 1.0, 0.0);
        match input.tensor.memory().dtype() {
            DType::F32 => input.tensor.memory().write(&values),
            DType::F16 => input.tensor.memory().write(&values.into_iter().map(f16::from_f32).collect::<Vec<_>>()),
            _ => input.tensor.memory().write(&values.into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
        }
        .expect("write");
    }
}

/// The bits of everything that a training step and an evaluation leave.
fn results(network: &mut Network, evaluates: bool) -> vcycle::Result<Vec<(String, Vec<u32>)>> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut found = vec![];
    write_inputs(network, Mode::Train);
    found.push(("losses".into(), bits(&network.forward_backward(SHAPE, &LABELS, 7)?)));
    found.push(("logits".into(), bits(&network.train_logits(SHAPE)?)));
    found.extend(network.gradients()?.into_iter().map(|a| (a.name, bits(&a.values))));
    network.update_running_statistics(SHAPE)?;
    found.extend(network.state_dict()?.into_iter().map(|a| (a.name, bits(&a.values))));
    if evaluates {
        write_inputs(network, Mode::Eval);
        found.push(("scores".into(), bits(&network.forward_eval(SHAPE)?)));
        found.push(("logits of the evaluation".into(), bits(&network.eval_logits(SHAPE)?)));
    }
    Ok(found)
}

#[test]
fn memory_that_nothing_needs_may_hold_anything() {
    for device in executors::all() {
        // Both forms of batch norm.
        let f16 = configs().into_iter().take(2).map(|config| (config, DType::F16)).filter(|_| device != Device::Cpu);
        for (config, storage) in configs().map(|config| (config, DType::Bf16)).into_iter().chain(f16) {
            let run = |is_poisoned: bool| {
                let mut network = network(&device, &config, storage);
                network.prepare(&[SHAPE], &[SHAPE]).expect("prepare");
                scale_loss(&mut network);
                network.poison_dead_memory(is_poisoned);
                results(&mut network, true).expect("step")
            };
            for (clean, poisoned) in run(false).iter().zip(&run(true)) {
                let values: Vec<f32> = clean.1.iter().map(|&bits| f32::from_bits(bits)).collect();
                assert!(values.iter().all(|v| v.is_finite()), "{device} {storage:?} {:?}: {}", config.arch, clean.0);
                assert!(clean == poisoned, "{device} {storage:?} {:?}: {} has other bits", config.arch, clean.0);
            }
        }
    }
}

/// Whether the last op of `storage`'s life reads it, or the host does after the step.
fn is_read_last(plan: &Plan, storage: usize) -> bool {
    // What the host reads after every step has memory of its own.
    let is_of = |tensor: usize| matches!(plan.tensors[tensor].place, Place::Arena { storage: s, .. } if s == storage);
    if is_of(plan.result) || is_of(plan.logits) {
        return false;
    }
    let last_op = plan.storages[storage].last_op;
    let Some(op) = plan.ops().nth(last_op) else { return true };
    // Without a ReLU its backward is given the output and does not look at it.
    let unread = match *op {
        StepOp::BatchNormBackward { ref op, output, .. } if !op.relu => Some(output),
        _ => None,
    };
    let mut is_read = false;
    op.visit(&mut |access| {
        let is_here = matches!(plan.tensors[access.tensor()].place, Place::Arena { storage: s, .. } if s == storage);
        is_read |= is_here && !matches!(access, Access::Write(_)) && unread != Some(access.tensor());
    });
    is_read
}

/// The test above can fail: where a plan takes a storage's life to end one op early, it does.
#[test]
fn a_lifetime_that_ends_one_op_early_is_seen() {
    for config in configs() {
        let mut network = network(&Device::Cpu, &config, DType::Bf16);
        let (stream, state) = (Device::Cpu.stream().expect("stream"), network.state_dict().expect("state"));
        let plan = Plan::with_lowering(&stream, network.model(), SHAPE, Mode::Train, 3, Lowering::Plain).expect("plan");
        let mut run = |plan: &Plan| {
            network.load_state_dict(&state).expect("load");
            network.prepare_plans(vec![plan.clone()]).expect("prepare");
            network.poison_dead_memory(true);
            results(&mut network, false)
        };
        let clean = run(&plan).expect("step");
        let mut num_planted = 0;
        // Some of each kind: activations, statistics, indices, gradients.
        for storage in (0..plan.storages.len()).step_by(5) {
            let life = &plan.storages[storage];
            if life.first_op >= life.last_op || !is_read_last(&plan, storage) {
                continue;
            }
            let mut wrong = plan.clone();
            wrong.storages[storage].last_op -= 1;
            wrong.arena_bytes = assign_offsets(&mut wrong.storages);
            let name =
                wrong.tensors.iter().find(|t| matches!(t.place, Place::Arena { storage: s, .. } if s == storage));
            let name = name.map_or("?", |t| t.name.as_str());
            // An op may refuse what it finds, such as the place of a maximum.
            let is_seen = run(&wrong).map_or(true, |found| found != clean);
            assert!(is_seen, "{:?}: the life of {name} is one op shorter, and nothing is seen", config.arch);
            num_planted += 1;
        }
        assert!(num_planted >= 10, "{num_planted}");
    }
}
