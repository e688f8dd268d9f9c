//! The backward pass of a batch norm, and its form with fixed statistics (MODEL.FROZEN_BN): gradients of `forward_eval`.

use super::{BatchNorm, cpu};
use crate::device::cpu::scratch::{self, Scratch};
use crate::device::{DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;

/// Gradients of [`forward_eval`](super::forward_eval): statistics are constants, so `grad_input` is the masked gradient times
/// gamma / deviation. The rest is as in [`backward`](super::backward); `op.splits` plays no part. On the CPU only.
///
/// # Errors
/// Sizes that do not fit `op`; an executor with kernels.
#[allow(clippy::too_many_arguments)]
pub fn backward_eval(
    stream: &Stream,
    op: &BatchNorm,
    input: &Tensor,
    output: &Tensor,
    grad_output: &Tensor,
    gamma: &Slice,
    [running_mean, running_var]: [&Slice; 2],
    grad_input: &Tensor,
    grad_residual: Option<(&Tensor, bool)>,
    [grad_gamma, grad_beta]: [&Slice; 2],
    workspace: &Slice,
) -> Result<()> {
    const OP: &str = "batch_norm backward_eval";
    // All splits have the same statistics; gradients of gamma and beta are summed in their order.
    let op = &BatchNorm { splits: op.part.map_or(1, |part| part.splits_of(op.shape.n)), ..*op };
    op.check(OP)?;
    if *stream.device() != Device::Cpu {
        return Err(Error::unsupported(OP, "there is no kernel for it; use the CPU"));
    }
    let tensors = [("input", input), ("output", output), ("grad_output", grad_output), ("grad_input", grad_input)];
    for (name, tensor) in tensors.into_iter().chain(grad_residual.map(|(r, _)| ("grad_residual", r))) {
        check::tensor(OP, name, tensor, op.shape)?;
    }
    for (name, slice) in [
        ("gamma", gamma),
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("grad_gamma", grad_gamma),
        ("grad_beta", grad_beta),
    ] {
        check::slice(OP, name, slice, op.shape.c, DType::F32)?;
    }
    check::workspace(OP, workspace, super::workspace_bytes(stream, op))?;
    let stats = with_host([running_mean, running_var], [], |[mean, var], []| {
        let (mean, var, c) = (mean.get::<f32>()?, var.get::<f32>()?, op.shape.c);
        let mut stats = scratch::take::<f32>(op.splits * 3 * c);
        for of_split in stats.chunks_mut(3 * c) {
            of_split[..c].copy_from_slice(mean);
            (0..c).for_each(|ch| of_split[c + ch] = (1.0 / (f64::from(var[ch]) + f64::from(op.eps)).sqrt()) as f32);
            of_split[2 * c..].copy_from_slice(var);
        }
        Ok(stats)
    })?;
    let of =
        Backward { input, output, grad_output, gamma, grad_input, grad_residual, grad_gamma, grad_beta, workspace };
    of.on_host(op, &stats, |op, stats, gamma, sums| cpu::slopes(op, stats, gamma, &scratch::filled(sums.len(), 0.0)))
}

/// What the backward pass reads and writes.
pub(super) struct Backward<'a> {
    pub input: &'a Tensor,
    pub output: &'a Tensor,
    pub grad_output: &'a Tensor,
    pub gamma: &'a Slice,
    pub grad_input: &'a Tensor,
    pub grad_residual: Option<(&'a Tensor, bool)>,
    pub grad_gamma: &'a Slice,
    pub grad_beta: &'a Slice,
    pub workspace: &'a Slice,
}

impl Backward<'_> {
    /// Sums for gamma and beta, then the pass that writes the gradients; `slopes` makes of the sums what that pass multiplies by.
    pub fn on_host(
        &self,
        op: &BatchNorm,
        stats: &[f32],
        slopes: impl Fn(&BatchNorm, &[f32], &[f32], &[f64]) -> Scratch<f32>,
    ) -> Result<()> {
        let Backward { input, output, grad_output, gamma, grad_input, grad_residual, .. } = *self;
        let empty = gamma.part(0, 0)?;
        let mask = if op.relu { output.memory() } else { &empty };
        let reads = [input.memory(), mask, grad_output.memory()];
        let writes = [self.grad_gamma, self.grad_beta, self.workspace];
        let sums = with_host(reads, writes, |[x, y, g], [dgamma, dbeta, workspace]| {
            let y = op.relu.then_some(output.view(y.get()?));
            let (x, g) = (input.view(x.get()?), grad_output.view(g.get()?));
            Ok(cpu::gradient_sums(op, x, y, g, stats, dgamma.into_mut()?, dbeta.into_mut()?, workspace.into_mut()?))
        })?;
        let in_input = check::same_memory(grad_output, grad_input);
        let in_residual =
            grad_residual.is_some_and(|(r, accumulate)| !accumulate && check::same_memory(grad_output, r));
        let from = if in_input || in_residual { &empty } else { grad_output.memory() };
        let residual = grad_residual.map_or(&empty, |(r, _)| r.memory());
        let reads = [input.memory(), mask, from, gamma];
        with_host(reads, [grad_input.memory(), residual], |[x, y, g, gamma], [dx, dr]| {
            let y = op.relu.then_some(output.view(y.get()?));
            let g = match (in_input, in_residual) {
                (true, _) => cpu::GradAt::Input,
                (_, true) => cpu::GradAt::Residual,
                _ => cpu::GradAt::Own(grad_output.view(g.get()?)),
            };
            let dr = match grad_residual {
                Some((r, accumulate)) => Some((r.view_mut(dr.into_mut()?), accumulate)),
                None => None,
            };
            let slopes = slopes(op, stats, gamma.get()?, &sums);
            cpu::gradient(op, input.view(x.get()?), y, g, &slopes, grad_input.view_mut(dx.into_mut()?), dr);
            Ok(())
        })
    }
}
