//! What executors with kernels hold beside the f32 arrays: 16-bit copies of the parameters and tables of the running statistics.

use half::{bf16, f16};

use super::Network;
use crate::device::{Buffer, DType, Device, Slice};
use crate::error::Result;
use crate::model::layers::Model;
use crate::ops::batch_norm::{self, BatchNorm};
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
}

impl KernelArrays {
    pub fn new(device: &Device, model: &Model, dtype: DType) -> Result<KernelArrays> {
        let len = model.params_len;
        let copies = Buffer::zeroed(device, len * dtype.size_bytes())?.slice_of(dtype, 0, len)?;
        let copy = model.params.iter().map(|p| copies.part(p.offset, p.stored_len())).collect::<Result<Vec<_>>>()?;
        let tables = super::flat(device, model.running_len)?;
        // Offsets of a running pair are apart by the channels rounded up: the pair's place holds a table without a gap.
        let running = model.norms.iter().map(|n| tables.part(n.mean_offset, 2 * n.c)).collect::<Result<Vec<_>>>()?;
        Ok(KernelArrays { copies, copy, running, is_running_fresh: false })
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
            let op = BatchNorm { shape, splits: 1, eps: self.model.config.bn_eps, relu: false, part: None };
            let (gamma, beta) = (&self.arrays.param[norm.gamma], &self.arrays.param[norm.beta]);
            batch_norm::running_scale_shift(&self.stream, &op, [mean, var], gamma, beta, table)?;
        }
        kernel.is_running_fresh = true;
        Ok(())
    }
}
