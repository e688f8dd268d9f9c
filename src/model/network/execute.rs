//! Runs the ops of a plan in order.

use std::time::Instant;

use super::Network;
use super::prepare::PreparedStep;
use crate::device::cpu::scratch;
use crate::device::{Device, Slice, nvtx};
use crate::error::Result;
use crate::model::plan::StepOp;
use crate::ops::attention::{self, Heads};
use crate::ops::dropout::{self, Dropout};
use crate::ops::sgd::State;
use crate::ops::softmax_loss::{Extras, Targets};
use crate::ops::{batch_norm, conv3d, linear, pool3d, softmax_loss};

/// Which half of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

impl Network {
    /// Queues forward and backward of all micro-batches of the prepared step number `step`.
    pub(super) fn run_training(&mut self, step: usize) -> Result<()> {
        self.micro_batches(step).try_for_each(|part| {
            self.run(part, Pass::Forward)?;
            self.run(part, Pass::Backward)
        })
    }

    /// Queues all ops of one pass of the prepared step number `step`. With a profile, waits after each op and notes its
    /// time.
    pub(super) fn run(&mut self, step: usize, pass: Pass) -> Result<()> {
        let num_ops = match pass {
            Pass::Forward => self.steps[step].plan.forward.len(),
            Pass::Backward => self.steps[step].plan.backward.len(),
        };
        let first = if pass == Pass::Forward { 0 } else { self.steps[step].plan.forward.len() };
        for i in 0..num_ops {
            self.poison(step, first + i)?;
            let start = self.profile.is_some().then(Instant::now);
            let prepared = &self.steps[step];
            let op = match pass {
                Pass::Forward => &prepared.plan.forward[i],
                Pass::Backward => &prepared.plan.backward[i],
            };
            let _range = nvtx::range(|| prepared.plan.op_name(op));
            self.launch(prepared, op)?;
            if let (Some(start), Some(profile)) = (start, &mut self.profile) {
                self.stream.synchronize()?;
                profile.add(op, &prepared.plan, start.elapsed());
            }
        }
        if *self.device() == Device::Cpu {
            scratch::level();
        }
        self.poison(step, first + num_ops)
    }

    pub(super) fn launch(&self, step: &PreparedStep, op: &StepOp) -> Result<()> {
        let (s, x, a) = (&self.stream, &step.tensors, &self.arrays);
        let workspace = &self.workspace;
        match *op {
            StepOp::Conv { ref op, filter, bias, input, output } => {
                let bias = bias.map(|b| &a.param[b]);
                conv3d::forward(s, op, &x[input], &a.param[filter], bias, &x[output], workspace)
            }
            StepOp::ConvGradFilter { ref op, filter, bias, input, grad_output } => {
                let bias = bias.map(|b| &a.grad[b]);
                conv3d::grad_filter(s, op, &x[input], &x[grad_output], &a.grad[filter], bias, workspace)
            }
            StepOp::ConvGradInput { ref op, filter, grad_output, grad_input, accumulate } => {
                let filter = &a.param[filter];
                conv3d::grad_input(s, op, &x[grad_output], filter, &x[grad_input], accumulate, workspace)
            }
            StepOp::BatchNormTrain { .. } | StepOp::BatchNormEval { .. } | StepOp::BatchNormBackward { .. } => {
                self.launch_batch_norm(step, op)
            }
            StepOp::Pool { ref op, input, output, indices } => {
                pool3d::forward(s, op, &x[input], &x[output], memory(step, indices))
            }
            StepOp::PoolGradInput { ref op, grad_output, indices, grad_input, accumulate } => {
                pool3d::grad_input(s, op, &x[grad_output], memory(step, indices), &x[grad_input], accumulate)
            }
            StepOp::Attention { .. } | StepOp::AttentionBackward { .. } => self.launch_attention(step, op),
            StepOp::Dropout { rate, input, output } => {
                let first_clip = step.plan.part.map_or(0, |part| part.first_clip);
                let op = Dropout { rate, seed: self.seed, step: 0, first_clip };
                dropout::apply_step(s, &op, &self.block.step_idx, &x[input], &x[output])
            }
            StepOp::Linear { weight, bias, input, output, .. } => {
                let (weight, bias) = (self.weights(weight), Some(&a.param[bias]));
                linear::forward_with(s, step.plan.part, &x[input], weight, bias, &x[output], workspace)
            }
            StepOp::LinearBackward { weight, bias, input, grad_output, grad_input, .. } => {
                let (grad_weight, grad_bias) = (&a.grad[weight], Some(&a.grad[bias]));
                let (weight, grad_input) = (self.weights(weight), &x[grad_input]);
                let (input, grad_output) = (&x[input], &x[grad_output]);
                linear::backward_with(
                    s,
                    step.plan.part,
                    input,
                    weight,
                    grad_output,
                    grad_input,
                    grad_weight,
                    grad_bias,
                    workspace,
                )
            }
            StepOp::CrossEntropy { .. } | StepOp::BinaryCrossEntropy { .. } => self.launch_loss(step, op),
            StepOp::Softmax { logits, probabilities } => softmax_loss::softmax(s, &x[logits], &x[probabilities]),
            StepOp::Sigmoid { logits, probabilities } => softmax_loss::sigmoid(s, &x[logits], &x[probabilities]),
            StepOp::Fused(ref op) => self.launch_fused(step, op),
        }
    }

    fn launch_loss(&self, step: &PreparedStep, op: &StepOp) -> Result<()> {
        let (s, x, block) = (&self.stream, &step.tensors, &self.block);
        let loss_scale = State::loss_scale(&block.state)?;
        let extras = Extras { counters: None, loss_scale: Some(&loss_scale), skip: Some(&block.skip) };
        match *op {
            StepOp::CrossEntropy { logits, scale, loss, grad_logits } => {
                let (targets, counters) = match self.is_soft {
                    true => (Targets::Soft(&step.targets), None),
                    false => (Targets::Labels { labels: &step.labels, smoothing: 0.0 }, Some(&block.counters)),
                };
                let (loss, grad, extras) = (x[loss].memory(), &x[grad_logits], Extras { counters, ..extras });
                softmax_loss::cross_entropy_with(s, &x[logits], &targets, scale, loss, grad, &extras)
            }
            StepOp::BinaryCrossEntropy { logits, scale, loss, grad_logits } => {
                let (loss, grad) = (x[loss].memory(), &x[grad_logits]);
                softmax_loss::binary_cross_entropy(s, &x[logits], &step.targets, scale, loss, grad, &extras)
            }
            _ => Ok(()),
        }
    }

    /// A parameter in the type that the ops take: f32, or its 16-bit copy.
    fn weights(&self, param: usize) -> &Slice {
        self.kernel.as_ref().map_or(&self.arrays.param[param], |kernel| &kernel.copy[param])
    }

    fn launch_attention(&self, step: &PreparedStep, op: &StepOp) -> Result<()> {
        let (s, x) = (&self.stream, &step.tensors);
        let of = |[query, key, value]: [usize; 3]| Heads { query: &x[query], key: &x[key], value: &x[value] };
        let none = self.workspace.part(0, 0)?;
        let sums = |tensor| memory(step, tensor).unwrap_or(&none);
        match *op {
            StepOp::Attention { instantiation, heads, output, log2_sum, .. } => {
                attention::forward(s, instantiation, &of(heads), &x[output], sums(log2_sum))
            }
            StepOp::AttentionBackward { instantiation, heads, output, log2_sum, grad_output, grads, .. } => {
                let (inputs, grads, sums) = (of(heads), of(grads), sums(log2_sum));
                let (output, grad_output) = (&x[output], &x[grad_output]);
                attention::backward(s, instantiation, &inputs, output, sums, grad_output, &grads, &self.workspace)
            }
            _ => Ok(()),
        }
    }

    fn launch_batch_norm(&self, step: &PreparedStep, op: &StepOp) -> Result<()> {
        let (s, x, a) = (&self.stream, &step.tensors, &self.arrays);
        let workspace = &self.workspace;
        match *op {
            StepOp::BatchNormTrain { ref op, norm, input, residual, output, stats } => {
                let norm = &self.model.norms[norm];
                let (gamma, beta) = (&a.param[norm.gamma], &a.param[norm.beta]);
                let (residual, stats) = (residual.map(|r| &x[r]), x[stats].memory());
                batch_norm::forward_train(s, op, &x[input], gamma, beta, residual, &x[output], stats, workspace)?;
                batch_norm::flag_non_finite(op, stats, &self.block.skip)
            }
            StepOp::BatchNormEval { ref op, norm, input, residual, output } => {
                let (mean, var) = &a.norm[norm];
                let norm = &self.model.norms[norm];
                let (gamma, beta) = (&a.param[norm.gamma], &a.param[norm.beta]);
                let residual = residual.map(|r| &x[r]);
                batch_norm::forward_eval(s, op, &x[input], gamma, beta, mean, var, residual, &x[output])
            }
            StepOp::BatchNormBackward {
                ref op,
                norm,
                input,
                output,
                grad_output,
                stats,
                grad_input,
                grad_residual,
            } => {
                let (mean, var) = &a.norm[norm];
                let norm = &self.model.norms[norm];
                let (x_in, y, dy, dx) = (&x[input], &x[output], &x[grad_output], &x[grad_input]);
                let residual = grad_residual.map(|(r, accumulate)| (&x[r], accumulate));
                let (gamma, dgamma, dbeta) = (&a.param[norm.gamma], &a.grad[norm.gamma], &a.grad[norm.beta]);
                match stats.map(|stats| x[stats].memory()) {
                    Some(stats) => {
                        batch_norm::backward(s, op, x_in, y, dy, gamma, stats, dx, residual, dgamma, dbeta, workspace)
                    }
                    None => {
                        let (running, grads) = ([mean, var], [dgamma, dbeta]);
                        batch_norm::backward_eval(s, op, x_in, y, dy, gamma, running, dx, residual, grads, workspace)
                    }
                }
            }
            _ => Ok(()),
        }
    }
}

fn memory(step: &PreparedStep, tensor: Option<usize>) -> Option<&Slice> {
    tensor.map(|t| step.tensors[t].memory())
}
