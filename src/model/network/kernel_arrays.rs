//! What executors with kernels hold beside the f32 arrays: 16-bit copies of the parameters, tables of the running statistics, and
//! what keeps a step that went wrong from harm.

use half::{bf16, f16};

use super::{Arrays, Network};
use crate::device::{Buffer, DType, Device, Slice, Stream};
use crate::error::Result;
use crate::model::layers::Model;
use crate::ops::batch_norm::{self, BatchNorm};
use crate::ops::sgd::{self, Guard, LossScaling, ParamRange, RangeTable, Sgd, State};
use crate::shape::ActivationShape;

/// The arrays, and their parts by parameter and norm.
pub(super) struct KernelArrays {
    /// All parameters in 16 bits, where they lie in the f32 array.
    pub copies: Slice,
    pub copy: Vec<Slice>,
    /// Scale and shift from the running statistics of each norm, `[2][c]`.
    pub running: Vec<Slice>,
    /// Whether `running` follows from the parameters and running statistics as they are.
    pub is_running_fresh: bool,
    /// One u32: 1 after a statistic that was not finite, until the optimizer reads it.
    pub skip: Slice,
    /// Whether the host has seen that flag: the next step clears it.
    is_skip_seen: bool,
    /// What the optimizer leaves for its next step.
    state: Slice,
    /// The ranges of the last update, and its scratch memory.
    updates: Option<(RangeTable, Slice)>,
}

impl KernelArrays {
    pub fn new(device: &Device, model: &Model, dtype: DType) -> Result<KernelArrays> {
        let len = model.params_len;
        let copies = Buffer::zeroed(device, len * dtype.size_bytes())?.slice_of(dtype, 0, len)?;
        let copy = model.params.iter().map(|p| copies.part(p.offset, p.stored_len())).collect::<Result<Vec<_>>>()?;
        let tables = super::flat(device, model.running_len)?;
        // Offsets of a running pair are apart by the channels rounded up: the pair's place holds a table without a gap.
        let running = model.norms.iter().map(|n| tables.part(n.mean_offset, 2 * n.c)).collect::<Result<Vec<_>>>()?;
        let skip = Buffer::zeroed(device, 4)?.slice_of(DType::U32, 0, 1)?;
        let state = State::new(1.0).to_device(device)?;
        let (is_running_fresh, is_skip_seen) = (false, false);
        Ok(KernelArrays { copies, copy, running, is_running_fresh, skip, is_skip_seen, state, updates: None })
    }

    /// An optimizer step, without effect where a gradient or a statistic of the step before it is not finite.
    pub fn update(&mut self, stream: &Stream, op: &Sgd, ranges: &[ParamRange], a: &Arrays) -> Result<()> {
        let (table, workspace) = match self.updates.take() {
            Some(updates) if updates.0.ranges() == ranges => updates,
            _ => {
                let table = RangeTable::new(stream.device(), ranges, a.params.len())?;
                let workspace = super::flat(stream.device(), table.workspace_bytes().div_ceil(4))?;
                (table, workspace)
            }
        };
        let guard = Guard {
            state: &self.state,
            workspace: &workspace,
            skip_flag: Some(&self.skip),
            scaling: LossScaling::FIXED,
            max_grad_norm: f32::INFINITY,
        };
        let arrays = sgd::Arrays { copy: Some(&self.copies), ..sgd::Arrays::new(&a.params, &a.grads, &a.momentum) };
        sgd::step_all(stream, op, &table, &arrays, Some(&guard))?;
        self.updates = Some((table, workspace));
        self.is_running_fresh = false;
        Ok(())
    }

    /// Rounds all parameters.
    fn copy_from(&self, params: &Slice) -> Result<()> {
        let values = params.read::<f32>()?;
        match self.copies.dtype() {
            DType::F16 => self.copies.write(&values.into_iter().map(f16::from_f32).collect::<Vec<_>>()),
            _ => self.copies.write(&values.into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
        }
    }
}

impl Network {
    /// Parameters or running statistics were written from the host.
    pub(super) fn values_changed(&mut self) -> Result<()> {
        if let Some(kernel) = &mut self.kernel {
            kernel.is_running_fresh = false;
            kernel.copy_from(&self.arrays.params)?;
        }
        Ok(())
    }

    /// Parameters or running statistics were changed by the device.
    pub(super) fn running_changed(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            kernel.is_running_fresh = false;
        }
    }

    /// Makes the tables that evaluation reads, unless nothing has changed since they were made.
    pub(super) fn refresh_running_tables(&mut self) -> Result<()> {
        let Some(kernel) = self.kernel.as_mut().filter(|k| !k.is_running_fresh) else { return Ok(()) };
        for ((norm, (mean, var)), table) in self.model.norms.iter().zip(&self.arrays.norm).zip(&kernel.running) {
            let shape = ActivationShape::new(1, 1, 1, 1, norm.c);
            let op = BatchNorm { shape, splits: 1, eps: self.model.config.bn_eps, relu: false };
            let (gamma, beta) = (&self.arrays.param[norm.gamma], &self.arrays.param[norm.beta]);
            batch_norm::running_scale_shift(&self.stream, &op, [mean, var], gamma, beta, table)?;
        }
        kernel.is_running_fresh = true;
        Ok(())
    }

    /// A new step begins.
    pub(super) fn clear_skip_flag(&mut self) -> Result<()> {
        let Some(kernel) = self.kernel.as_mut().filter(|k| k.is_skip_seen) else { return Ok(()) };
        kernel.is_skip_seen = false;
        kernel.skip.write(&[0u32])
    }

    /// Where a statistic of the step was not finite, its losses are NaN: a ReLU on load may have hidden what went wrong.
    pub(super) fn with_skip_flag(&mut self, losses: Vec<f32>) -> Result<Vec<f32>> {
        let Some(kernel) = &mut self.kernel else { return Ok(losses) };
        kernel.is_skip_seen = kernel.skip.read::<u32>()?[0] != 0;
        Ok(if kernel.is_skip_seen { vec![f32::NAN; losses.len()] } else { losses })
    }

    /// Whether the last [`Network::sgd_step`] was without effect: with kernels, where a gradient or a statistic was not finite.
    /// Waits for the device.
    pub fn is_update_skipped(&self) -> Result<bool> {
        self.kernel.as_ref().map_or(Ok(false), |kernel| Ok(State::read(&kernel.state)?.skipped != 0))
    }

    /// Momenta were written from the host.
    pub(super) fn momenta_changed(&mut self) -> Result<()> {
        if let Some(kernel) = &mut self.kernel {
            kernel.state = State::new(1.0).to_device(self.stream.device())?;
        }
        Ok(())
    }
}
