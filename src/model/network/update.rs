//! The optimizer's step: what it needs besides the arrays, and what keeps a step that went wrong from harm.

use super::state::LossScale;
use super::{Network, flat};
use crate::device::{DType, Slice};
use crate::error::Result;
use crate::model::plan::{Lowering, Mode};
use crate::ops::sgd::{self, Guard, LossScaling, RangeTable, Sgd, State};
use crate::optimizer::{SgdConfig, param_ranges};
use crate::shape::StepShape;

/// As torch.amp.GradScaler begins.
pub(crate) const FIRST_LOSS_SCALE: f32 = 65536.0;

/// What updates with one configuration need.
pub(super) struct Update {
    config: SgdConfig,
    table: RangeTable,
    /// Scratch memory.
    workspace: Slice,
}

impl Network {
    /// One optimizer step from the gradients of the last [`Network::forward_backward`], clipped as `config` asks. It is without
    /// effect where a gradient, a statistic or a loss is not finite: see [`Network::is_update_skipped`].
    pub fn sgd_step(&mut self, lr: f32, config: &SgdConfig) -> Result<()> {
        self.prepare_update(config)?;
        self.launch_update(lr, None)?;
        self.running_changed();
        Ok(())
    }

    /// Makes what updates with `config` need, where that has changed.
    pub(super) fn prepare_update(&mut self, config: &SgdConfig) -> Result<()> {
        if self.update.as_ref().is_some_and(|update| update.config == *config) {
            return Ok(());
        }
        let device = self.stream.device();
        let table = RangeTable::new(device, &param_ranges(&self.model, config), self.arrays.params.len())?;
        let workspace = flat(device, table.workspace_bytes().div_ceil(4))?;
        self.update = Some(Update { config: *config, table, workspace });
        self.drop_graphs();
        Ok(())
    }

    /// Queues the optimizer's step with the learning rate that lies on the device.
    pub(super) fn queue_update(&self) -> Result<()> {
        self.launch_update(0.0, Some(&self.block.lr))
    }

    fn launch_update(&self, lr: f32, lr_on_device: Option<&Slice>) -> Result<()> {
        let Some(Update { config, table, workspace }) = &self.update else { return Ok(()) };
        let op = Sgd {
            lr,
            momentum: config.momentum,
            dampening: config.dampening,
            nesterov: config.nesterov,
            // The state knows.
            first_step: false,
        };
        let guard = Guard {
            state: &self.block.state,
            workspace,
            skip_flag: Some(&self.block.skip),
            scaling: if self.scales_loss() { LossScaling::DYNAMIC } else { LossScaling::FIXED },
            max_grad_norm: config.clip_grad_l2norm.unwrap_or(f32::INFINITY),
            max_grad_value: config.clip_grad_val.unwrap_or(f32::INFINITY),
        };
        let (a, copy) = (&self.arrays, self.kernel.as_ref().map(|kernel| &kernel.copies));
        let arrays = sgd::Arrays { copy, lr: lr_on_device, ..sgd::Arrays::new(&a.params, &a.grads, &a.momentum) };
        sgd::step_all(&self.stream, &op, table, &arrays, Some(&guard))
    }

    /// Whether the last [`Network::sgd_step`] was without effect: where a gradient, a statistic or a loss was not finite. Waits for the
    /// device.
    pub fn is_update_skipped(&self) -> Result<bool> {
        Ok(State::read(&self.block.state)?.skipped != 0)
    }

    /// l2 norm of all gradients of the last [`Network::sgd_step`], before clipping; NaN where one was not finite. Waits for the
    /// device.
    pub fn last_grad_norm(&self) -> Result<f32> {
        Ok(State::read(&self.block.state)?.grad_norm)
    }

    /// Whether every batch-norm statistic of the last training step at `shape` is finite. Reads them back.
    pub fn are_statistics_finite(&self, shape: StepShape) -> Result<bool> {
        let step = self.step(Mode::Train, shape)?;
        for (_, _, stats) in &step.statistics {
            if stats.read::<f32>()?.iter().any(|v| !v.is_finite()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether gradients would vanish without a factor.
    pub(crate) fn scales_loss(&self) -> bool {
        self.lowering == Lowering::Fused(DType::F16)
    }

    /// The state of an optimizer that goes on with given momenta, or has none yet, and with a given loss scale where there is one.
    pub(super) fn reset_update_state(&mut self, has_momentum: bool, scale: Option<LossScale>) -> Result<()> {
        let mut state = first_state(self.lowering, has_momentum);
        if let Some(LossScale { scale, good_steps }) = scale.filter(|_| self.scales_loss()) {
            (state.loss_scale, state.good_steps) = (scale, good_steps);
        }
        self.block.state.write(bytemuck::cast_slice::<State, u32>(&[state]))
    }
}

/// Before the first step of a run, or of its continuation.
pub(super) fn first_state(lowering: Lowering, has_momentum: bool) -> State {
    let scale = if lowering == Lowering::Fused(DType::F16) { FIRST_LOSS_SCALE } else { 1.0 };
    State { is_momentum_empty: u32::from(!has_momentum), ..State::new(scale) }
}
