//! Derives the backward ops by walking the layers in reverse.
//!
//! A value that several layers read gets its gradient from each of them: the first to run overwrites, the others add. A
//! batch norm works in place: the gradient of its output becomes the gradient of its input.

use super::{Planner, StepOp, TensorId};
use crate::error::{Error, Result};
use crate::model::layers::{Layer, LayerOp, ValueId};
use crate::ops::attention::Instantiation;
use crate::ops::pool3d::PoolKind;

impl Planner<'_> {
    /// Plans the backward pass, after `forward`.
    pub(super) fn backward(&mut self) -> Result<()> {
        let forward = self.plan.forward.clone();
        // One forward op a layer, in order; a concatenation has none.
        let is_loss = |op: &&StepOp| matches!(op, StepOp::CrossEntropy { .. } | StepOp::BinaryCrossEntropy { .. });
        let mut ops = forward.iter().rev().skip_while(is_loss);
        for layer in self.model.layers.iter().rev() {
            if layer.op == LayerOp::Concat {
                self.concat_backward(layer);
                continue;
            }
            let op = ops.next().ok_or_else(|| Error::unsupported("plan", "a layer without a forward op"))?;
            self.layer_backward(layer, op)?;
        }
        Ok(())
    }

    /// The gradients of the parts lie inside the gradient of the whole: they are there as soon as it is.
    pub(super) fn concat_backward(&mut self, layer: &Layer) {
        for &part in &layer.inputs {
            self.grad(part);
            self.is_grad_written[part] = self.is_grad_written[layer.output];
        }
    }

    /// The gradient tensor of `value`, made when first asked for.
    pub(super) fn grad(&mut self, value: ValueId) -> TensorId {
        if let Some(tensor) = self.grads[value] {
            return tensor;
        }
        let (name, shape) = (format!("grad {}", self.model.values[value].name), self.shapes[value]);
        let tensor = match self.part_of[value] {
            Some((whole, start)) => {
                let whole = self.grad(whole);
                self.channels_of(name, shape, whole, start)
            }
            None => self.dense(name, shape, self.plan.lowering.dtype()),
        };
        self.grads[value] = Some(tensor);
        tensor
    }

    /// The gradient of `value` as something that is written next, and whether the writer must add to it.
    pub(super) fn grad_to_write(&mut self, value: ValueId) -> (TensorId, bool) {
        let tensor = self.grad(value);
        (tensor, std::mem::replace(&mut self.is_grad_written[value], true))
    }

    /// `from` takes over the gradient tensor of `to`: the op works in place.
    fn grad_in_place(&mut self, from: ValueId, to: ValueId) -> Result<TensorId> {
        let tensor = self.grad(to);
        if self.num_readers[from] != 1 || self.part_of[from].is_some() {
            let name = &self.model.values[from].name;
            return Err(Error::unsupported("plan", format!("{name} is read by more than one layer")));
        }
        self.grads[from] = Some(tensor);
        self.is_grad_written[from] = true;
        Ok(tensor)
    }

    fn layer_backward(&mut self, layer: &Layer, forward: &StepOp) -> Result<()> {
        let (x, y) = (layer.inputs[0], layer.output);
        match *forward {
            StepOp::Conv { op, filter, bias, input, .. } => {
                let grad_output = self.grad(y);
                self.plan.backward.push(StepOp::ConvGradFilter { op, filter, bias, input, grad_output });
                if x >= self.model.num_pathways() {
                    let (grad_input, accumulate) = self.grad_to_write(x);
                    self.plan.backward.push(StepOp::ConvGradInput { op, filter, grad_output, grad_input, accumulate });
                }
            }
            StepOp::BatchNormTrain { op, norm, input, output, .. }
            | StepOp::BatchNormEval { op, norm, input, output, .. } => {
                let stats = match *forward {
                    StepOp::BatchNormTrain { stats, .. } => Some(stats),
                    _ => None,
                };
                let grad_output = self.grad(y);
                let grad_input = self.grad_in_place(x, y)?;
                let grad_residual = layer.inputs.get(1).map(|&residual| self.grad_to_write(residual));
                self.plan.backward.push(StepOp::BatchNormBackward {
                    op,
                    norm,
                    input,
                    output,
                    grad_output,
                    stats,
                    grad_input,
                    grad_residual,
                });
            }
            StepOp::Pool { op, indices, .. } => {
                let grad_output = self.grad(y);
                let grad_output = self.viewed(grad_output, op.output());
                let (grad_input, accumulate) = self.grad_to_write(x);
                let grad_input = self.viewed(grad_input, op.input);
                let indices = indices.filter(|_| op.kind == PoolKind::Max);
                self.plan.backward.push(StepOp::PoolGradInput { op, grad_output, indices, grad_input, accumulate });
            }
            StepOp::Attention { .. } => {
                let op = self.attention_backward(layer, forward);
                self.plan.backward.push(op);
            }
            StepOp::Dropout { rate, .. } => {
                let grad = self.grad(y);
                self.grads[x] = Some(grad);
                self.is_grad_written[x] = true;
                self.plan.backward.push(StepOp::Dropout { rate, input: grad, output: grad });
            }
            StepOp::Linear { weight, bias, input, macs, .. } => {
                let grad_output = self.grad(y);
                let (grad_input, _) = self.grad_to_write(x);
                let macs = 2 * macs;
                self.plan.backward.push(StepOp::LinearBackward { weight, bias, input, grad_output, grad_input, macs });
            }
            StepOp::ConvGradFilter { .. }
            | StepOp::ConvGradInput { .. }
            | StepOp::BatchNormBackward { .. }
            | StepOp::PoolGradInput { .. }
            | StepOp::AttentionBackward { .. }
            | StepOp::LinearBackward { .. }
            | StepOp::CrossEntropy { .. }
            | StepOp::BinaryCrossEntropy { .. }
            | StepOp::Softmax { .. }
            | StepOp::Sigmoid { .. }
            | StepOp::Fused(_) => {
                return Err(Error::unsupported("plan", format!("{} has no backward form", layer.name)));
            }
        }
        Ok(())
    }

    /// The gradient of `forward`, the attention of `layer`: its queries, keys and values have no other readers.
    pub(super) fn attention_backward(&mut self, layer: &Layer, forward: &StepOp) -> StepOp {
        let StepOp::Attention { instantiation, heads, output, log2_sum, macs } = *forward else {
            unreachable!("{} is no attention", layer.name)
        };
        let grad = self.grad(layer.output);
        let grad_output = self.viewed(grad, self.plan.tensors[output].shape);
        let mut grads = [0; 3];
        for ((to, &head), &value) in grads.iter_mut().zip(&heads).zip(&layer.inputs) {
            let (grad, _) = self.grad_to_write(value);
            *to = self.viewed(grad, self.plan.tensors[head].shape);
        }
        // Two products of matrices for each of forward's, and for the softmax the scores again.
        let macs = if instantiation == Instantiation::Softmax { macs / 2 * 5 } else { macs * 2 };
        StepOp::AttentionBackward { instantiation, heads, output, log2_sum, grad_output, grads, macs }
    }
}
