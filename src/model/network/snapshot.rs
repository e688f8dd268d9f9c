//! A copy of all that a checkpoint holds of a network, made quickly; it is brought into PySlowFast's form elsewhere.

use super::Network;
use super::state::{LossScale, NamedArray, OptimizerState, export};
use crate::error::Result;
use crate::model::layers::{Norm, Param, ParamKind};
use crate::ops::sgd;

/// Parameters, running statistics and momenta in host memory, as they lie on the device.
#[derive(Clone, Debug)]
pub struct Snapshot {
    params: Vec<Param>,
    norms: Vec<Norm>,
    values: Vec<f32>,
    /// Running mean and variance of each norm.
    running: Vec<[Vec<f32>; 2]>,
    tracked: u64,
    /// Empty where nothing is trained.
    momentum: Vec<f32>,
    has_momentum: bool,
    loss_scale: Option<LossScale>,
}

impl Network {
    /// Copies the state to the host; waits for the device. [`Snapshot::state_dict`] and [`Snapshot::optimizer_state`] then need no
    /// device and may run in another thread.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let state = sgd::State::read(&self.block.state)?;
        let loss_scale = LossScale { scale: state.loss_scale, good_steps: state.good_steps };
        let running = self.arrays.norm.iter().map(|(mean, var)| Ok([mean.read()?, var.read()?]));
        Ok(Snapshot {
            params: self.model.params.clone(),
            norms: self.model.norms.clone(),
            values: self.arrays.params.read()?,
            running: running.collect::<Result<_>>()?,
            tracked: self.count_batches_tracked()?,
            momentum: self.arrays.momentum.read()?,
            has_momentum: state.is_momentum_empty == 0,
            loss_scale: self.scales_loss().then_some(loss_scale),
        })
    }
}

impl Snapshot {
    /// As [`Network::state_dict`].
    pub fn state_dict(&self) -> Vec<NamedArray> {
        let mut state = vec![];
        let mut norms = self.norms.iter().zip(&self.running);
        for param in &self.params {
            state.push(export(param, &self.values[param.offset..][..param.stored_len()]));
            if param.kind != ParamKind::Beta {
                continue;
            }
            if let Some((norm, [mean, var])) = norms.next() {
                let array = |suffix: &str, shape: Vec<usize>, values: Vec<f32>| NamedArray {
                    name: format!("{}.{suffix}", norm.name),
                    shape,
                    values,
                };
                state.push(array("running_mean", vec![norm.c], mean.clone()));
                state.push(array("running_var", vec![norm.c], var.clone()));
                state.push(array("num_batches_tracked", vec![], vec![self.tracked as f32]));
            }
        }
        state
    }

    /// As [`Network::optimizer_state`], without momenta where nothing is trained.
    pub fn optimizer_state(&self) -> OptimizerState {
        let parts = self.params.iter().filter(|_| !self.momentum.is_empty());
        let momentum = parts.map(|p| export(p, &self.momentum[p.offset..][..p.stored_len()])).collect();
        OptimizerState { has_momentum: self.has_momentum, momentum, loss_scale: self.loss_scale }
    }

    /// That of the optimizer's state.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }
}
