//! Which parameters are updated how: PySlowFast's parameter groups (slowfast/models/optimizer.py).

use crate::config::Config;
use crate::model::Model;
use crate::model::layers::{Param, ParamKind};
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
    /// SOLVER.ZERO_WD_1D_PARAM: no weight decay for the projection's bias.
    pub zero_wd_1d_param: bool,
    /// SOLVER.CLIP_GRAD_L2NORM: gradients are scaled down to this norm, all of them together.
    pub clip_grad_l2norm: Option<f32>,
    /// SOLVER.CLIP_GRAD_VAL: every element is cut off there.
    pub clip_grad_val: Option<f32>,
}

impl Default for SgdConfig {
    /// PySlowFast's defaults.
    fn default() -> Self {
        SgdConfig {
            momentum: 0.9,
            dampening: 0.0,
            nesterov: true,
            weight_decay: 1e-4,
            bn_weight_decay: 0.0,
            zero_wd_1d_param: false,
            clip_grad_l2norm: None,
            clip_grad_val: None,
        }
    }
}

impl SgdConfig {
    /// From SOLVER and BN of `config`.
    pub fn from_config(config: &Config) -> SgdConfig {
        let solver = &config.solver;
        SgdConfig {
            momentum: solver.momentum as f32,
            dampening: solver.dampening as f32,
            nesterov: solver.nesterov,
            weight_decay: solver.weight_decay as f32,
            bn_weight_decay: config.bn.weight_decay as f32,
            zero_wd_1d_param: solver.zero_wd_1d_param,
            // PySlowFast takes 0 for no clipping.
            clip_grad_l2norm: solver.clip_grad_l2norm.filter(|limit| *limit > 0.0).map(|limit| limit as f32),
            clip_grad_val: solver.clip_grad_val.filter(|limit| *limit > 0.0).map(|limit| limit as f32),
        }
    }

    fn weight_decay_of(&self, param: &Param) -> f32 {
        match param.kind {
            ParamKind::Gamma { .. } | ParamKind::Beta => self.bn_weight_decay,
            ParamKind::Bias if self.zero_wd_1d_param => 0.0,
            ParamKind::Bias | ParamKind::Filter | ParamKind::Projection { .. } => self.weight_decay,
        }
    }
}

/// The flat parameter array of `model` as ranges of one weight decay each, in order. Gaps between parameters are covered
/// too; they hold zeros in parameters, gradients and momenta, and stay zero.
pub fn param_ranges(model: &Model, config: &SgdConfig) -> Vec<ParamRange> {
    let mut params: Vec<&Param> = model.params.iter().collect();
    params.sort_by_key(|p| p.offset);
    let mut ranges: Vec<ParamRange> = vec![];
    for param in params {
        let weight_decay = config.weight_decay_of(param);
        match ranges.last_mut() {
            Some(range) if range.weight_decay == weight_decay => {
                range.len = param.offset + param.stored_len() - range.start
            }
            _ => ranges.push(ParamRange { start: param.offset, len: param.stored_len(), weight_decay }),
        }
    }
    ranges
}
