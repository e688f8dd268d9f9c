//! Runs the ops of the fused form.

use super::Network;
use super::kernel_arrays::KernelArrays;
use super::prepare::PreparedStep;
use crate::device::{Slice, Tensor};
use crate::error::{Error, Result};
use crate::model::plan::TensorId;
use crate::model::plan::fused::{FusedOp, Load, LoadGrad, NormGrad, NormStatistics, PlannedMask, StoreGrad, Table};
use crate::ops::batch_norm::{self, BatchNorm, GradTables, Tables};
use crate::ops::conv3d::{
    self, Epilogue, Evaluation, GradEpilogue, GradFilterSources, GradNorm, GradPool, GradTable, Join, Mask, Prologue,
    Statistics,
};
use crate::ops::pool3d::{self, NormBefore};
use crate::shape::{ActivationShape, Part};

/// What the ops of one step refer to.
pub(super) struct Run<'a> {
    pub network: &'a Network,
    pub kernel: &'a KernelArrays,
    pub step: &'a PreparedStep,
    pub splits: usize,
    part: Option<Part>,
}

impl Network {
    pub(super) fn launch_fused(&self, step: &PreparedStep, op: &FusedOp) -> Result<()> {
        let kernel = self.kernel.as_ref().ok_or_else(|| {
            Error::unsupported(
                "network",
                format!("{:?} does not run the fused form; plan the plain one", self.device()),
            )
        })?;
        let (splits, part) = (step.plan.splits(), step.plan.part);
        Run { network: self, kernel, step, splits, part }.launch(op)
    }
}

impl<'a> Run<'a> {
    fn launch(&self, op: &FusedOp) -> Result<()> {
        let (s, x, workspace) = (&self.network.stream, &self.step.tensors, &self.network.workspace);
        match *op {
            FusedOp::Conv { ref op, filter, bias, ref input, ref statistics, output } => {
                let (prologue, epilogue) = (self.prologue(input), self.epilogue(bias, statistics.as_ref()));
                let filter = &self.kernel.copy[filter];
                let input = &x[input.tensor];
                conv3d::forward_fused(s, op, input, prologue.as_ref(), filter, &epilogue, &x[output], workspace)
            }
            FusedOp::ConvGradFilter { ref op, filter, bias, ref input, ref grad_output, pool } => {
                let from = GradFilterSources {
                    input: &x[input.tensor],
                    prologue: self.prologue(input),
                    grad_output: &x[grad_output.g],
                    grad_table: self.grad_table(grad_output, None),
                    pool: pool.map(|pool| GradPool {
                        op: pool.op,
                        indices: x[pool.indices].memory(),
                        scale_shift: x[pool.scale_shift].memory(),
                    }),
                };
                let grads = &self.network.arrays.grad;
                conv3d::grad_filter_fused(s, op, &from, &grads[filter], bias.map(|b| &grads[b]), workspace)
            }
            FusedOp::ConvGradInput { ref op, filter, ref grad_output, store_dy, ref store, grad_input } => {
                let (norms, to) = (self.grad_norms(store), &x[grad_input]);
                let epilogue = self.grad_epilogue(store, &norms, to);
                let (table, filter) = (self.grad_table(grad_output, store_dy), &self.kernel.copy[filter]);
                let g = &x[grad_output.g];
                conv3d::grad_input_fused(s, op, g, table.as_ref(), filter, &epilogue, to, workspace)
            }
            FusedOp::ConvBackward { .. } => self.conv_backward(op),
            FusedOp::GramMoments { .. }
            | FusedOp::GramStatistics { .. }
            | FusedOp::ConvNormalise { .. }
            | FusedOp::GramProducts { .. }
            | FusedOp::GramGradient { .. }
            | FusedOp::GramGradInput { .. } => self.gram(op),
            FusedOp::Statistics { input, ref statistics } => self.form_statistics(input, statistics),
            FusedOp::Apply { shape, ref input, relu, output } => self.apply((shape, relu), input, output),
            FusedOp::GradSums { shape, grad_output, mask, ref norm } => {
                let (op, mask, to) = (self.batch_norm(shape), self.mask(mask), self.grad_tables(norm));
                batch_norm::gradient_sums(s, &op, &x[norm.y], &x[grad_output], mask, &to, workspace)
            }
            FusedOp::Gradient { shape, grad_output, mask, ref norm, grad_input } => {
                let (op, table, g) = (self.batch_norm(shape), x[norm.grad_table].memory(), &x[grad_output]);
                let masked = Some((g, false));
                batch_norm::gradient(s, &op, &x[norm.y], g, self.mask(mask), table, &x[grad_input], masked)
            }
            FusedOp::Pool { ref op, input, scale_shift, output, indices } => {
                let prologue =
                    pool3d::Prologue { scale_shift: self.table(scale_shift), splits: self.splits, part: self.part };
                let indices = indices.map(|i| x[i].memory());
                pool3d::forward_normalised(s, op, &prologue, &x[input], &x[output], indices)
            }
            FusedOp::PoolGradNorm { ref op, grad_output, indices, scale_shift, ref norm, grad_input } => {
                let (scale_shift, tables) = (x[scale_shift].memory(), self.grad_tables(norm));
                let before = NormBefore { splits: self.splits, part: self.part, y: &x[norm.y], scale_shift, tables };
                let (indices, to) = (x[indices].memory(), grad_input.map(|g| &x[g]));
                pool3d::grad_norm(s, op, &x[grad_output], indices, &before, to, workspace)
            }
        }
    }

    fn conv_backward(&self, op: &FusedOp) -> Result<()> {
        let FusedOp::ConvBackward { ref op, filter, ref input, ref grad_output, ref store, grad_input } = *op else {
            return Err(Error::unsupported("network", format!("{op:?} as both gradients of a convolution")));
        };
        let (s, x, workspace) = (&self.network.stream, &self.step.tensors, &self.network.workspace);
        let (norms, to) = (self.grad_norms(store), &x[grad_input]);
        let from = GradFilterSources {
            input: &x[input.tensor],
            prologue: self.prologue(input),
            grad_output: &x[grad_output.g],
            grad_table: self.grad_table(grad_output, None),
            pool: None,
        };
        let (copy, grad) = (&self.kernel.copy[filter], &self.network.arrays.grad[filter]);
        let epilogue = self.grad_epilogue(store, &norms, to);
        conv3d::backward_fused(s, op, &from, copy, &epilogue, to, grad, workspace)
    }

    pub(super) fn grad_norms(&self, store: &StoreGrad) -> Vec<GradNorm<'a>> {
        store.norms.iter().map(|norm| self.grad_norm(norm)).collect()
    }

    pub(super) fn grad_epilogue<'e>(
        &self,
        store: &StoreGrad,
        norms: &'e [GradNorm<'e>],
        to: &'e Tensor,
    ) -> GradEpilogue<'e>
    where
        'a: 'e,
    {
        let x = &self.step.tensors;
        let mask = match store.mask {
            PlannedMask::None => Mask::None,
            PlannedMask::Output(output) => Mask::Output(&x[output]),
            PlannedMask::Recomputed(table, y) => Mask::Recomputed { scale_shift: x[table].memory(), y: &x[y] },
        };
        GradEpilogue { add: store.accumulate.then_some(to), mask, splits: self.splits, norms }
    }

    fn batch_norm(&self, shape: ActivationShape) -> BatchNorm {
        BatchNorm { shape, splits: self.splits, eps: self.network.model.config.bn_eps, relu: true, part: self.part }
    }

    fn table(&self, table: Table) -> &'a Slice {
        match table {
            Table::Batch(tensor) => self.step.tensors[tensor].memory(),
            Table::Running(norm) => &self.kernel.running[norm],
        }
    }

    pub(super) fn prologue(&self, load: &Load) -> Option<Prologue<'a>> {
        let x = &self.step.tensors;
        let join = load.join.map(|join| Join {
            residual: &x[join.residual],
            residual_scale_shift: join.residual_scale_shift.map(|table| self.table(table)),
            output: join.output.map(|output| &x[output]),
        });
        load.scale_shift.map(|table| Prologue { scale_shift: self.table(table), splits: self.splits, join })
    }

    fn epilogue(&self, bias: Option<usize>, of: Option<&NormStatistics>) -> Epilogue<'a> {
        let Some(&NormStatistics { op, norm, stats, scale_shift }) = of else {
            let bias = bias.map(|b| &self.network.arrays.param[b]);
            return bias
                .map_or(Epilogue::None, |b| Epilogue::Evaluation(Evaluation { bias: Some(b), ..Default::default() }));
        };
        let (x, norm) = (&self.step.tensors, &self.network.model.norms[norm]);
        let params = &self.network.arrays.param;
        Epilogue::Statistics(Statistics {
            splits: op.splits,
            eps: op.eps,
            gamma: &params[norm.gamma],
            beta: &params[norm.beta],
            running: None,
            stats: x[stats].memory(),
            scale_shift: x[scale_shift].memory(),
            skip: Some(&self.network.block.skip),
        })
    }

    fn form_statistics(&self, input: TensorId, of: &NormStatistics) -> Result<()> {
        let (x, norm) = (&self.step.tensors, &self.network.model.norms[of.norm]);
        let params = &self.network.arrays.param;
        let to = Tables {
            gamma: &params[norm.gamma],
            beta: &params[norm.beta],
            stats: x[of.stats].memory(),
            scale_shift: Some(x[of.scale_shift].memory()),
            running: None,
            skip: Some(&self.network.block.skip),
        };
        batch_norm::statistics(&self.network.stream, &of.op, &x[input], &to, &self.network.workspace)
    }

    fn apply(&self, (shape, relu): (ActivationShape, bool), load: &Load, output: TensorId) -> Result<()> {
        let (s, x) = (&self.network.stream, &self.step.tensors);
        let Some(Prologue { scale_shift, join, .. }) = self.prologue(load) else {
            return Err(Error::unsupported("network", "a pass that stores what is stored"));
        };
        let second = join.map(|join| (join.residual, join.residual_scale_shift));
        let op = BatchNorm { relu, ..self.batch_norm(shape) };
        batch_norm::apply(s, &op, &x[load.tensor], scale_shift, second, &x[output])
    }

    fn grad_table(&self, load: &LoadGrad, store_dy: Option<TensorId>) -> Option<GradTable<'a>> {
        let x = &self.step.tensors;
        load.norm.map(|(table, y)| GradTable {
            table: x[table].memory(),
            y: &x[y],
            splits: self.splits,
            store_dy: store_dy.map(|dy| &x[dy]),
        })
    }

    fn mask(&self, mask: PlannedMask) -> batch_norm::Mask<'a> {
        let x = &self.step.tensors;
        match mask {
            PlannedMask::None => batch_norm::Mask::None,
            PlannedMask::Output(output) => batch_norm::Mask::Output(&x[output]),
            PlannedMask::Recomputed(table, _) => batch_norm::Mask::Recomputed(x[table].memory()),
        }
    }

    fn grad_norm(&self, of: &NormGrad) -> GradNorm<'a> {
        let GradTables { gamma, stats, grad_table, grad_gamma, grad_beta } = self.grad_tables(of);
        GradNorm { y: &self.step.tensors[of.y], stats, gamma, grad_table, grad_gamma, grad_beta }
    }

    fn grad_tables(&self, of: &NormGrad) -> GradTables<'a> {
        let (x, arrays, norm) = (&self.step.tensors, &self.network.arrays, &self.network.model.norms[of.norm]);
        GradTables {
            gamma: &arrays.param[norm.gamma],
            stats: x[of.stats].memory(),
            grad_table: x[of.grad_table].memory(),
            grad_gamma: &arrays.grad[norm.gamma],
            grad_beta: &arrays.grad[norm.beta],
        }
    }
}
