//! The backward half of the fused form: the layers in the reverse of the order in which they ran.
//!
//! A value's gradient is complete when the last of its readers has written to it: that writer applies the ReLU's mask and forms
//! the sums of the batch norms before it. The end of a block hands its masked gradient on to the shortcut, in the same memory.
//!
//! The gradient behind a batch norm is formed on load, by grad_input and by grad_filter; where the latter would do so several times,
//! grad_input stores it. Where memory limits a pointwise convolution one kernel makes both gradients. A stem gathers its own through the max pool behind it: it is in memory nowhere.

use super::{Done, Form, FusedOp, FusedPlanner, GatherPool, Load, LoadGrad, NormGrad, PlannedMask, StoreGrad, Table};
use crate::error::Result;
use crate::model::layers::{Layer, LayerOp, NormId, ParamId, ValueId};
use crate::model::plan::{StepOp, TensorId};
use crate::ops::conv3d::{self, Conv3d};
use crate::ops::pool3d::Pool3d;
use crate::shape::ActivationShape;

impl FusedPlanner<'_> {
    /// Plans the backward pass, after `forward`.
    pub(in crate::model::plan) fn backward(&mut self) -> Result<()> {
        for done in self.done.clone().into_iter().rev() {
            self.layer_backward(&done)?;
        }
        Ok(())
    }

    fn layer_backward(&mut self, done: &Done) -> Result<()> {
        let layer = &self.base.model.layers[done.layer];
        let (x, y) = (layer.inputs[0], layer.output);
        match layer.op {
            LayerOp::Conv { filter, .. } if self.forms[y] == Form::Passed => {
                let input = done.load.unwrap_or(Load::stored(self.base.plan.values[x]));
                self.gram_backward(layer, filter, input)?;
            }
            LayerOp::Conv { filter, bias, .. } => {
                let input = done.load.unwrap_or(Load::stored(self.base.plan.values[x]));
                self.conv_backward(layer, filter, bias, input)?;
            }
            LayerOp::BatchNorm { .. } => {
                if let Some(&residual) = layer.inputs.get(1) {
                    self.hand_on(y, residual)?;
                }
            }
            LayerOp::MaxPool { .. } | LayerOp::GlobalAveragePool => self.pool_backward(layer, done.indices)?,
            LayerOp::Attention { .. } => {
                if let Some(forward) = &done.attention {
                    let op = self.base.attention_backward(layer, forward);
                    self.base.plan.backward.push(op);
                }
            }
            LayerOp::Concat => self.concat_backward(layer)?,
            LayerOp::Dropout { rate } => {
                let grad = self.base.grad(y);
                self.base.grads[x] = Some(grad);
                self.base.is_grad_written[x] = true;
                self.base.plan.backward.push(StepOp::Dropout { rate, input: grad, output: grad });
            }
            LayerOp::Linear { weight, bias } => {
                let (input, grad_output) = (self.base.plan.values[x], self.base.grad(y));
                let (grad_input, _) = self.base.grad_to_write(x);
                let macs = 2 * (self.base.shapes[x].num_elements() * self.base.shapes[y].c) as u64;
                let op = StepOp::LinearBackward { weight, bias, input, grad_output, grad_input, macs };
                self.base.plan.backward.push(op);
            }
        }
        Ok(())
    }

    /// Both gradients of convolution `layer`, by one kernel where there is one.
    fn conv_backward(&mut self, layer: &Layer, filter: ParamId, bias: Option<ParamId>, input: Load) -> Result<()> {
        let (x, y) = (layer.inputs[0], layer.output);
        let (op, grad_output) = (self.base.conv_op(layer), self.grad_of_convolution(y)?);
        if x < self.base.model.num_pathways() {
            let pool = self.norm_of(y).and_then(|norm| self.norms[norm]?.pool).map(|(pool, _)| pool);
            self.push_back(FusedOp::ConvGradFilter { op, filter, bias, input, grad_output, pool });
            return Ok(());
        }
        let (grad_input, store) = self.grad_to_write(x)?;
        if bias.is_none() && self.is_at_once(&op) && self.reads_once(&input, &grad_output, &store, grad_input) {
            self.push_back(FusedOp::ConvBackward { op, filter, input, grad_output, store, grad_input });
            return Ok(());
        }
        let store_dy = self.stored_grad(&op, &input, &grad_output);
        let of_input = FusedOp::ConvGradInput { op, filter, grad_output, store_dy, store, grad_input };
        let grad_output = store_dy.map_or(grad_output, |g| LoadGrad { g, norm: None });
        let of_filter = FusedOp::ConvGradFilter { op, filter, bias, input, grad_output, pool: None };
        // Whoever stores the gradient comes first.
        let ops = if store_dy.is_some() { [of_input, of_filter] } else { [of_filter, of_input] };
        ops.into_iter().for_each(|op| self.push_back(op));
        Ok(())
    }

    /// Whether both gradients of `op` come from one kernel, as far as that is known without its operands.
    pub(super) fn is_at_once(&self, op: &Conv3d) -> bool {
        self.base.model.config.fused_conv_backward && conv3d::backward_fits(self.stream, op, self.base.plan.splits())
    }

    /// Whether the one kernel takes these operands: the mask is the input's own, and all rows come in chunks of 8 channels.
    fn reads_once(&self, input: &Load, grad: &LoadGrad, store: &StoreGrad, grad_input: TensorId) -> bool {
        let has_own_mask = match store.mask {
            PlannedMask::None => true,
            PlannedMask::Output(output) => output == input.tensor && input.scale_shift.is_none(),
            PlannedMask::Recomputed(table, y) => y == input.tensor && input.scale_shift == Some(Table::Batch(table)),
        };
        let stored = grad.norm.map(|(_, y)| y).into_iter().chain(store.norms.iter().map(|norm| norm.y));
        let has_chunks = [input.tensor, grad.g, grad_input].into_iter().chain(stored).all(|t| self.base.has_chunks(t));
        has_own_mask && has_chunks && input.join.is_none()
    }

    pub(super) fn push_back(&mut self, op: FusedOp) {
        self.base.plan.backward.push(StepOp::Fused(op));
    }

    /// A max pool takes the batch norm before it along. The end of a block gets its mask and sums by passes of its own.
    fn pool_backward(&mut self, layer: &Layer, indices: Option<TensorId>) -> Result<()> {
        let (x, grad_output) = (layer.inputs[0], self.base.grad(layer.output));
        let op = self.base.pool_op(layer);
        let (grad_input, store) = self.grad_to_write(x)?;
        let StoreGrad { accumulate, mask, norms } = store;
        if let (PlannedMask::Recomputed(scale_shift, _), [norm], Some(indices), false) =
            (mask, &norms[..], indices, accumulate)
        {
            let norm = *norm;
            let gathers = self.gathers_through(x, &op, grad_output);
            if let (true, Some(tensors)) = (gathers, &mut self.norms[norm.norm]) {
                tensors.pool = Some((GatherPool { op, indices, scale_shift }, grad_output));
            }
            let grad_input = (!gathers).then_some(grad_input);
            self.push_back(FusedOp::PoolGradNorm { op, grad_output, indices, scale_shift, norm, grad_input });
            return Ok(());
        }
        let (to, grad_output) = (self.base.viewed(grad_input, op.input), self.base.viewed(grad_output, op.output()));
        let back = StepOp::PoolGradInput { op, grad_output, indices, grad_input: to, accumulate };
        self.base.plan.backward.push(back);
        self.mask_and_sum(self.base.shapes[x], grad_input, mask, &norms);
        Ok(())
    }

    /// What a last writer does on its way, by passes of their own: the sums of `norms`, then the mask, in place. The pass that masks
    /// also makes the gradient behind the first of the norms.
    fn mask_and_sum(&mut self, shape: ActivationShape, grad_output: TensorId, mask: PlannedMask, norms: &[NormGrad]) {
        for &norm in norms {
            self.push_back(FusedOp::GradSums { shape, grad_output, mask, norm });
        }
        if let Some(&norm) = norms.first() {
            let name = format!("grad {}", self.base.plan.tensors[norm.y].name);
            let grad_input = self.base.dense(name, shape, self.base.plan.lowering.dtype());
            self.push_back(FusedOp::Gradient { shape, grad_output, mask, norm, grad_input });
            if let Some(tensors) = &mut self.norms[norm.norm] {
                tensors.grad = Some(grad_input);
            }
        }
    }

    /// Whether the convolution before the batch norm `x` reads the gradient behind `pool`: one whose input needs none itself, a stem.
    fn gathers_through(&self, x: ValueId, pool: &Pool3d, grad_output: TensorId) -> bool {
        let conv = self.maker(x).and_then(|norm| self.maker(norm.inputs[0]));
        let is_stem = |layer: &&Layer| {
            matches!(layer.op, LayerOp::Conv { .. }) && layer.inputs[0] < self.base.model.num_pathways()
        };
        let has_chunks = self.base.has_chunks(grad_output);
        let is_alone = self.base.num_readers[x] == 1;
        let stem = conv.filter(is_stem).map(|layer| self.base.conv_op(layer));
        is_alone && has_chunks && stem.is_some_and(|op| conv3d::gathers_through(&op, pool))
    }

    /// The batch norm that reads `y`.
    pub(super) fn norm_of(&self, y: ValueId) -> Option<NormId> {
        match self.base.model.layers[self.norm_of[y]?].op {
            LayerOp::BatchNorm { norm, .. } => Some(norm),
            _ => None,
        }
    }

    /// A tensor for the gradient of a convolution's output, where it is better stored than formed by both of its readers.
    fn stored_grad(&mut self, op: &Conv3d, input: &Load, grad: &LoadGrad) -> Option<TensorId> {
        let (splits, (_, y)) = (self.base.plan.splits(), grad.norm?);
        if !conv3d::prefers_stored_grad(self.stream, op, splits, input.scale_shift.is_some()) {
            return None;
        }
        let name = format!("grad {}", self.base.plan.tensors[y].name);
        Some(self.base.dense(name, op.output(), self.base.plan.lowering.dtype()))
    }

    /// The layer that makes `value`; values are numbered in the order of the layers, after the inputs.
    fn maker(&self, value: ValueId) -> Option<&Layer> {
        value.checked_sub(self.base.model.num_pathways()).map(|i| &self.base.model.layers[i])
    }

    /// The gradient of a convolution's output `y`: that of the batch norm after it. That of a shortcut has the gradient of the
    /// block's end, where the ReLU is.
    fn grad_of_convolution(&mut self, y: ValueId) -> Result<LoadGrad> {
        let Some(layer) = self.norm_of[y].map(|i| &self.base.model.layers[i]) else {
            return Ok(LoadGrad { g: self.base.grad(y), norm: None });
        };
        let LayerOp::BatchNorm { norm, relu } = layer.op else { return self.unsupported(y, "derive") };
        let mut end = layer.output;
        if !relu && layer.inputs.len() == 1 {
            let joins = |l: &&Layer| l.inputs.get(1) == Some(&layer.output);
            match self.base.model.layers.iter().find(joins) {
                Some(join) => end = join.output,
                None => return self.unsupported(y, "derive"),
            }
        }
        if let Some(grad) = self.norms[norm].and_then(|tensors| tensors.grad) {
            return Ok(LoadGrad { g: grad, norm: None });
        }
        let pooled = self.norms[norm].and_then(|tensors| tensors.pool).map(|(_, grad)| grad);
        match self.norms[norm].and_then(|tensors| Some((tensors.grad_table?, tensors.y))) {
            Some(norm) => Ok(LoadGrad { g: pooled.unwrap_or_else(|| self.base.grad(end)), norm: Some(norm) }),
            None => self.unsupported(y, "derive"),
        }
    }

    /// The gradient of `value` as something that is written next, and what its writer does with it.
    pub(super) fn grad_to_write(&mut self, value: ValueId) -> Result<(TensorId, StoreGrad)> {
        let (grad, accumulate) = self.base.grad_to_write(value);
        self.readers_left[value] -= 1;
        let mut store = StoreGrad { accumulate, ..StoreGrad::default() };
        if self.readers_left[value] == 0 {
            store.mask = self.mask(value)?;
            store.norms = self.norm_grads(value)?;
        }
        Ok((grad, store))
    }

    /// The ReLU that made `value`.
    fn mask(&mut self, value: ValueId) -> Result<PlannedMask> {
        let Some(layer) = self.maker(value).cloned() else { return Ok(PlannedMask::None) };
        let stored = self.base.plan.values[value];
        match layer.op {
            LayerOp::BatchNorm { norm, relu: true } if layer.inputs.len() == 1 => match self.norms[norm] {
                Some(tensors) => Ok(PlannedMask::Recomputed(tensors.scale_shift, tensors.y)),
                None => self.unsupported(value, "mask"),
            },
            LayerOp::BatchNorm { relu: true, .. } => Ok(PlannedMask::Output(stored)),
            LayerOp::Concat if self.is_masked_as_a_whole(&layer) => Ok(PlannedMask::Output(stored)),
            _ => Ok(PlannedMask::None),
        }
    }

    /// Whether each part of a concatenation ends in a ReLU. Of a pool over a ReLU nothing is lost with the mask: where its maximum
    /// is 0 the ReLU was closed.
    pub(super) fn is_masked_as_a_whole(&self, concat: &Layer) -> bool {
        concat.inputs.iter().all(|&part| self.is_behind_relu(part))
    }

    fn is_behind_relu(&self, value: ValueId) -> bool {
        let Some(layer) = self.maker(value) else { return false };
        match layer.op {
            LayerOp::BatchNorm { relu, .. } => relu,
            LayerOp::MaxPool { .. } => self.is_behind_relu(layer.inputs[0]),
            _ => false,
        }
    }

    /// The batch norms whose sum is `value` before its ReLU.
    fn norms_before(&self, value: ValueId) -> Vec<NormId> {
        let Some(layer) = self.maker(value) else { return vec![] };
        let LayerOp::BatchNorm { norm, .. } = layer.op else { return vec![] };
        let shortcut = layer.inputs.get(1).and_then(|&residual| self.maker(residual));
        let shortcut = shortcut.and_then(|l| match l.op {
            LayerOp::BatchNorm { norm, relu: false } if l.inputs.len() == 1 => Some(norm),
            _ => None,
        });
        [norm].into_iter().chain(shortcut).collect()
    }

    /// The batch norms that `value` is made of, with new tables for their gradients. One in Gram form makes its own.
    fn norm_grads(&mut self, value: ValueId) -> Result<Vec<NormGrad>> {
        let mut grads = vec![];
        for norm in self.norms_before(value) {
            if self.grams[norm].is_some() {
                continue;
            }
            let Some(tensors) = self.norms[norm] else { return self.unsupported(value, "derive") };
            let info = &self.base.model.norms[norm];
            let (name, len) = (format!("grad {}", info.name), self.base.plan.splits() * 3 * info.c);
            let grad_table = self.table(name, len);
            if let Some(tensors) = &mut self.norms[norm] {
                tensors.grad_table = Some(grad_table);
            }
            grads.push(NormGrad { norm, y: tensors.y, stats: tensors.stats, grad_table });
        }
        Ok(grads)
    }

    /// The end of a block, `value`, gives its masked gradient to the shortcut `residual`, which takes over the memory: the layers
    /// of the block are done with it before anything is added.
    fn hand_on(&mut self, value: ValueId, residual: ValueId) -> Result<()> {
        let is_normalised = self
            .maker(residual)
            .is_some_and(|l| matches!(l.op, LayerOp::BatchNorm { relu: false, .. }) && l.inputs.len() == 1);
        if is_normalised {
            return Ok(());
        }
        self.readers_left[residual] -= 1;
        let is_part = self.base.part_of[residual].is_some();
        if self.base.is_grad_written[residual] || self.readers_left[residual] == 0 || is_part {
            return self.unsupported(residual, "hand a gradient on to");
        }
        let grad = self.base.grad(value);
        self.base.grads[residual] = Some(grad);
        self.base.is_grad_written[residual] = true;
        Ok(())
    }

    /// The gradients of the parts lie inside the gradient of the whole. Where its last writer has masked them, what is left are the
    /// sums of their batch norms. Where a part ends without a ReLU (a non-local block), the others are masked here.
    fn concat_backward(&mut self, layer: &Layer) -> Result<()> {
        self.base.concat_backward(layer);
        let is_masked = self.is_masked_as_a_whole(layer);
        for &part in &layer.inputs {
            let (shape, grad_output, norms) = (self.base.shapes[part], self.base.grad(part), self.norm_grads(part)?);
            if !is_masked && self.is_behind_relu(part) {
                let mask = PlannedMask::Output(self.base.plan.values[part]);
                self.mask_and_sum(shape, grad_output, mask, &norms);
                continue;
            }
            for norm in norms {
                self.push_back(FusedOp::GradSums { shape, grad_output, mask: PlannedMask::None, norm });
            }
        }
        Ok(())
    }
}
