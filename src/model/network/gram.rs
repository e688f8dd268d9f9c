//! Runs the ops of batch norms in Gram form, and tells which norms may not have it.

use super::Network;
use super::fused::Run;
use crate::error::{Error, Result};
use crate::model::config::GramUse;
use crate::model::layers::{LayerOp, NormId, ValueId};
use crate::model::plan::fused::{FusedOp, NormStatistics, Shortcut};
use crate::model::plan::{Lowering, TensorId};
use crate::ops::conv3d::{self, Beside, Epilogue, GradFilterSources, Normalise};
use crate::ops::gram::{self, Conditioning, GradientResults, GradientSources, MAX_AMPLIFICATION};

impl Run<'_> {
    pub(super) fn gram(&self, op: &FusedOp) -> Result<()> {
        let (s, x, workspace) = (&self.network.stream, &self.step.tensors, &self.network.workspace);
        match *op {
            FusedOp::GramMoments { ref op, ref input, moments } => {
                let prologue = self.prologue(input);
                gram::moments(s, op, &x[input.tensor], prologue.as_ref(), x[moments].memory(), workspace)
            }
            FusedOp::GramStatistics { ref op, filter, moments, ref statistics } => {
                let (filter, tables) = (&self.kernel.copy[filter], self.gram_tables(statistics));
                gram::statistics(s, op, x[moments].memory(), filter, &tables, workspace)
            }
            FusedOp::ConvNormalise { ref op, filter, ref input, scale_shift, shortcut, output } => {
                let (prologue, filter) = (self.prologue(input), &self.kernel.copy[filter]);
                let epilogue = self.normalise(scale_shift, shortcut);
                let input = &x[input.tensor];
                conv3d::forward_fused(s, op, input, prologue.as_ref(), filter, &epilogue, &x[output], workspace)
            }
            FusedOp::GramProducts { ref op, ref input, grad_output, to } => {
                let from = GradFilterSources {
                    input: &x[input.tensor],
                    prologue: self.prologue(input),
                    grad_output: &x[grad_output],
                    grad_table: None,
                    pool: None,
                };
                let (products, sums) = (x[to.products].memory(), x[to.grad_sums].memory());
                conv3d::grad_filter_of_splits(s, op, &from, self.splits, products, Some(sums), workspace)
            }
            FusedOp::GramGradInput { ref op, ref input, grad_output, from, ref store, grad_input } => {
                let (norms, to) = (self.grad_norms(store), &x[grad_input]);
                let from = Beside {
                    grad_output: &x[grad_output],
                    input: &x[input.tensor],
                    prologue: self.prologue(input),
                    filter: x[from.back_filter].memory(),
                    shift: x[from.back_shift].memory(),
                    splits: self.splits,
                };
                conv3d::grad_input_beside(s, op, &from, &self.grad_epilogue(store, &norms, to), to, workspace)
            }
            ref gradient => self.gram_gradient(gradient),
        }
    }

    fn gram_tables(&self, to: &NormStatistics) -> gram::Tables<'_> {
        let (x, params, norm) = (&self.step.tensors, &self.network.arrays.param, &self.network.model.norms[to.norm]);
        gram::Tables {
            gamma: &params[norm.gamma],
            beta: &params[norm.beta],
            stats: x[to.stats].memory(),
            scale_shift: Some(x[to.scale_shift].memory()),
            skip: Some(&self.network.block.skip),
        }
    }

    fn normalise(&self, scale_shift: TensorId, shortcut: Shortcut) -> Epilogue<'_> {
        let x = &self.step.tensors;
        Epilogue::Normalise(Normalise {
            scale_shift: x[scale_shift].memory(),
            splits: self.splits,
            residual: Some(&x[shortcut.tensor]),
            residual_scale_shift: shortcut.scale_shift.map(|table| x[table].memory()),
            relu: true,
        })
    }

    fn gram_gradient(&self, op: &FusedOp) -> Result<()> {
        let FusedOp::GramGradient { ref op, filter, norm, from, moments, stats, grad_table, to } = *op else {
            return Err(Error::unsupported("network", format!("{op:?} as an op of a batch norm in Gram form")));
        };
        let (x, arrays, norm) = (&self.step.tensors, &self.network.arrays, &self.network.model.norms[norm]);
        let from = GradientSources {
            products: x[from.products].memory(),
            grad_sums: x[from.grad_sums].memory(),
            moments: x[moments].memory(),
            stats: x[stats].memory(),
            gamma: &arrays.param[norm.gamma],
            filter: &self.kernel.copy[filter],
        };
        let to = GradientResults {
            grad_table: x[grad_table].memory(),
            back_filter: x[to.back_filter].memory(),
            back_shift: x[to.back_shift].memory(),
            grad_filter: &arrays.grad[filter],
            grad_gamma: &arrays.grad[norm.gamma],
            grad_beta: &arrays.grad[norm.beta],
        };
        gram::gradient(&self.network.stream, op, &from, &to)
    }
}

impl Network {
    /// Batch norms whose statistics moments of the convolution's input would not give exactly enough, by the parameters as they are, and
    /// by how much: docs/gram_batch_norm.md. None where nothing asks for moments.
    ///
    /// # Errors
    /// Those of reading the parameters.
    pub fn ill_conditioned_norms(&self) -> Result<Vec<(NormId, Conditioning)>> {
        let model = &self.model;
        if self.lowering == Lowering::Plain || model.config.gram == GramUse::Never {
            return Ok(vec![]);
        }
        let params = self.arrays.params.read::<f32>()?;
        let values = |id: usize| &params[model.params[id].offset..][..model.params[id].stored_len()];
        let maker = |value: ValueId| value.checked_sub(model.num_pathways()).map(|i| &model.layers[i]);
        let mut found = vec![];
        for end in &model.layers {
            let LayerOp::BatchNorm { norm, relu: true } = end.op else { continue };
            let Some((conv, before)) = maker(end.inputs[0]).and_then(|conv| Some((conv, maker(conv.inputs[0])?)))
            else {
                continue;
            };
            let LayerOp::Conv { filter, kernel: [1, 1, 1], stride: [1, 1, 1], groups: 1, .. } = conv.op else {
                continue;
            };
            let LayerOp::BatchNorm { norm: before, relu: true } = before.op else { continue };
            let of = &model.norms[before];
            let got = gram::conditioning(values(filter), values(of.gamma), values(of.beta), model.config.bn_eps);
            if !got.is_good() {
                found.push((norm, got));
            }
        }
        Ok(found)
    }

    /// Names of the batch norms that keep the standard form whatever VCYCLE.GRAM_BATCH_NORM says: those that were ill-conditioned when shapes
    /// were prepared, and those of [`Network::keep_standard`].
    pub fn standard_norms(&self) -> Vec<String> {
        self.model.standard_norms.iter().map(|&norm| self.model.norms[norm].name.clone()).collect()
    }

    /// Lets these batch norms have the standard form from the next [`Network::prepare`] on: the form decides bits, so a run that goes on must
    /// have those of its beginning.
    ///
    /// # Errors
    /// A name that is no batch norm's.
    pub fn keep_standard(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            let norm = self.model.norms.iter().position(|norm| norm.name == *name).ok_or_else(|| {
                Error::Config(format!(
                    "batch norm {name} is to keep the standard form, but the model has none of that name"
                ))
            })?;
            self.model.keep_standard(norm);
        }
        Ok(())
    }

    /// Norms that are ill-conditioned now keep the standard form from here on; the log says which.
    pub(super) fn refuse_ill_conditioned(&mut self) -> Result<()> {
        for (norm, Conditioning { amplification, channel }) in self.ill_conditioned_norms()? {
            let name = &self.model.norms[norm].name;
            tracing::warn!(
                "{name} keeps the standard form of batch norm: moments of its convolution's input would amplify roundings \
                 {amplification:.0} times in channel {channel}, at most {MAX_AMPLIFICATION} is allowed"
            );
            self.model.keep_standard(norm);
        }
        Ok(())
    }
}
