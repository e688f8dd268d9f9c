//! Networks that no golden file has: groups of channels, dilation, the stride in the first filter, blocks on both pathways.

use vcycle::device::Device;
use vcycle::model::{Arch, Mode, Model, ModelConfig, Network, Transform};
use vcycle::ops::attention::Instantiation;
use vcycle::shape::StepShape;

use super::l2;
use super::non_local::lively;
use super::reference::{Reference, stored};
use crate::golden::fill;

const SHAPE: StepShape = StepShape::square(4, 8, 32, 2);
const LABELS: [u32; 4] = [0, 3, 1, 2];

fn tiny(arch: Arch) -> ModelConfig {
    let config = ModelConfig::new(arch, 18, 4);
    ModelConfig { width_per_group: 8, dropout_rate: 0.0, fc_init_std: 0.1, ..config }
}

/// ResNeXt's groups with the stride in the 1x1x1; the dilation that detection gives the last stage instead of a stride, in both kinds of
/// block; networks without temporal pooling; non-local blocks at the end of both pathways, in groups and with pools of their own.
fn variants() -> Vec<(&'static str, ModelConfig)> {
    let dilated = |arch: Arch, transform: Transform| {
        let mut config = ModelConfig { transform, ..tiny(arch) };
        config.spatial_strides[3].fill(1);
        config.spatial_dilations[3].fill(2);
        config
    };
    let mut blocks = ModelConfig { beta_inv: 2, ..tiny(Arch::SlowFast) };
    blocks.non_local.instantiation = Instantiation::Softmax;
    for (pathway, group) in [(0, 1), (1, 4)] {
        blocks.non_local.location[2][pathway] = vec![0, 1];
        blocks.non_local.group[2][pathway] = group;
        blocks.non_local.pool[2][pathway] = [1, 2, 1 + pathway];
    }
    vec![
        ("groups", ModelConfig { num_groups: 4, stride_1x1: true, ..tiny(Arch::Slow) }),
        ("groups and basic blocks", ModelConfig { num_groups: 2, transform: Transform::Basic, ..tiny(Arch::C2d) }),
        ("dilation", dilated(Arch::SlowFast, Transform::Bottleneck)),
        ("dilation in basic blocks", dilated(Arch::SlowI3d, Transform::Basic)),
        ("no temporal pooling", tiny(Arch::SlowC2d)),
        ("blocks on both pathways", blocks),
    ]
}

/// Loss and every gradient of a step, to the tolerance of golden's models: an input within rounding of a ReLU's kink falls to either
/// side, and attention adds its own.
#[test]
fn variants_agree_with_f64() {
    for (what, config) in variants() {
        let has_attention = config.non_local.location.iter().flatten().any(|blocks| !blocks.is_empty());
        let (of_loss, of_gradient) = if has_attention { (1e-4, 5e-2) } else { (1e-5, 1e-2) };
        let mut network = Network::new(&Device::Cpu, Model::new(&config).expect("model"), 5).expect("network");
        network.prepare(&[SHAPE], &[]).expect("prepare");
        let state = lively(&mut network);
        let inputs = network.inputs(Mode::Train, SHAPE).expect("inputs").iter().enumerate();
        let inputs: Vec<Vec<f64>> = inputs
            .map(|(i, input)| {
                let values = fill::f32(&format!("x{i}"), input.tensor.shape().num_elements(), 1.0, 0.0);
                input.tensor.memory().write(&values).expect("write");
                values.into_iter().map(f64::from).collect()
            })
            .collect();
        let losses = network.forward_backward(SHAPE, &LABELS, 0).expect("step");
        let (model, plan) = (network.model(), network.plan(Mode::Train, SHAPE).expect("plan"));
        let mut reference = Reference::new(model, plan, &state, &inputs, &LABELS, |v| v);
        reference.run();
        for (got, want) in losses.iter().zip(reference.read(plan.result)) {
            assert!((f64::from(*got) - want).abs() <= of_loss * want, "{what}: loss {got}, expected {want}");
        }
        let total = reference.grads.iter().map(|g| l2(g).powi(2)).sum::<f64>().sqrt();
        let gradients = network.gradients().expect("gradients");
        for ((param, got), exact) in model.params.iter().zip(gradients).zip(&reference.grads) {
            let error: Vec<f64> = stored(&got).iter().zip(exact).map(|(a, b)| a - b).collect();
            let (error, norm) = (l2(&error), l2(exact));
            assert!(error <= of_gradient * norm + 1e-5 * total, "{what}: {}: {error:e} of {norm:e}", param.name);
        }
    }
}
