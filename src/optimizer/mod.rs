//! Which parameters are updated how: PySlowFast's parameter groups (slowfast/models/optimizer.py).

use crate::model::Model;
use crate::ops::sgd::ParamRange;

/// SGD as torch.optim.SGD, with PySlowFast's two weight decays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdConfig {
    /// SOLVER.MOMENTUM.
    pub momentum: f32,
    /// SOLVER.DAMPENING.
    pub dampening: f32,
    /// SOLVER.NESTEROV.
    pub nesterov: bool,
    /// SOLVER.WEIGHT_DECAY: filters and projection.
    pub weight_decay: f32,
    /// BN.WEIGHT_DECAY: gammas and betas of batch norms, with or without splits.
    pub bn_weight_decay: f32,
}

impl Default for SgdConfig {
    /// PySlowFast's values for Kinetics.
    fn default() -> Self {
        SgdConfig { momentum: 0.9, dampening: 0.0, nesterov: true, weight_decay: 1e-4, bn_weight_decay: 0.0 }
    }
}

/// The flat parameter array of `model` as two ranges: everything but batch norms, and batch norms. Gaps between parameters
/// are covered too; they hold zeros in parameters, gradients and momenta, and stay zero.
pub fn param_ranges(model: &Model, config: &SgdConfig) -> [ParamRange; 2] {
    let split = model.params_len_without_norms;
    [
        ParamRange { start: 0, len: split, weight_decay: config.weight_decay },
        ParamRange { start: split, len: model.params_len - split, weight_decay: config.bn_weight_decay },
    ]
}
