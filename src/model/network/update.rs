//! The optimizer's step: what it needs besides the arrays, and what keeps a step that went wrong from harm.

use super::{Network, flat};
use crate::device::{Device, Slice};
use crate::error::Result;
use crate::model::plan::Mode;
use crate::ops::sgd::{self, Guard, LossScaling, RangeTable, Sgd, State};
use crate::optimizer::{SgdConfig, param_ranges};
use crate::shape::StepShape;

/// What the optimizer leaves for its next step, and its memory.
pub(super) struct Updates {
    state: Slice,
    /// The ranges of the last update, and its scratch memory.
    table: Option<(RangeTable, Slice)>,
}

impl Updates {
    pub fn new(device: &Device) -> Result<Updates> {
        Ok(Updates { state: State::new(1.0).to_device(device)?, table: None })
    }
}

impl Network {
    /// One optimizer step from the gradients of the last [`Network::forward_backward`], clipped as `config` asks. It is without
    /// effect where a gradient is not finite, and with kernels where a statistic is not: see [`Network::is_update_skipped`].
    pub fn sgd_step(&mut self, lr: f32, config: &SgdConfig) -> Result<()> {
        let op = Sgd {
            lr,
            momentum: config.momentum,
            dampening: config.dampening,
            nesterov: config.nesterov,
            first_step: !self.has_momentum,
        };
        let (a, ranges) = (&self.arrays, param_ranges(&self.model, config));
        let (table, workspace) = match self.updates.table.take() {
            Some(table) if table.0.ranges() == ranges => table,
            _ => {
                let table = RangeTable::new(self.stream.device(), &ranges, a.params.len())?;
                let workspace = flat(self.stream.device(), table.workspace_bytes().div_ceil(4))?;
                (table, workspace)
            }
        };
        let guard = Guard {
            state: &self.updates.state,
            workspace: &workspace,
            skip_flag: self.kernel.as_ref().map(|kernel| &kernel.skip),
            scaling: LossScaling::FIXED,
            max_grad_norm: config.clip_grad_l2norm.unwrap_or(f32::INFINITY),
            max_grad_value: config.clip_grad_val.unwrap_or(f32::INFINITY),
        };
        let copy = self.kernel.as_ref().map(|kernel| &kernel.copies);
        let arrays = sgd::Arrays { copy, ..sgd::Arrays::new(&a.params, &a.grads, &a.momentum) };
        sgd::step_all(&self.stream, &op, &table, &arrays, Some(&guard))?;
        self.updates.table = Some((table, workspace));
        self.running_changed();
        self.has_momentum = true;
        Ok(())
    }

    /// Whether the last [`Network::sgd_step`] was without effect: where a gradient, or with kernels a statistic, was not finite.
    /// Waits for the device.
    pub fn is_update_skipped(&self) -> Result<bool> {
        Ok(State::read(&self.updates.state)?.skipped != 0)
    }

    /// l2 norm of all gradients of the last [`Network::sgd_step`], before clipping; NaN where one was not finite. Waits for the
    /// device.
    pub fn last_grad_norm(&self) -> Result<f32> {
        Ok(State::read(&self.updates.state)?.grad_norm)
    }

    /// Whether every batch-norm statistic of the last training step at `shape` is finite. Reads them back; with kernels the losses
    /// of [`Network::forward_backward`] tell as much.
    pub fn are_statistics_finite(&self, shape: StepShape) -> Result<bool> {
        let step = self.step(Mode::Train, shape)?;
        for (_, _, stats) in step.plan.statistics() {
            if step.tensors[stats].memory().read::<f32>()?.iter().any(|v| !v.is_finite()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Momenta were written from the host.
    pub(super) fn momenta_changed(&mut self) -> Result<()> {
        self.updates.state = State::new(1.0).to_device(self.stream.device())?;
        Ok(())
    }
}
