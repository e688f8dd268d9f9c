//! Lowers the layers to forward ops and gives every value its tensor.

use super::{Mode, Planner, StepOp, TensorId};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::model::config::Loss;
use crate::model::layers::{Layer, LayerOp, NormId, ValueId};
use crate::ops::attention::Instantiation;
use crate::ops::batch_norm::BatchNorm;
use crate::ops::conv3d::Conv3d;
use crate::ops::pool3d::{Pool3d, PoolKind};
use crate::shape::ActivationShape;

impl Planner<'_> {
    /// Plans the forward pass. The order is: shapes of all values, then their tensors (a concatenation before its
    /// parts, which lie inside it), then the ops.
    pub(super) fn forward(&mut self) -> Result<()> {
        self.prepare_values()?;
        for layer in &self.model.layers {
            self.layer_forward(layer)?;
        }
        self.finish_forward();
        Ok(())
    }

    /// Shapes of all values; the inputs' tensors.
    pub(super) fn prepare_values(&mut self) -> Result<()> {
        self.head_shapes = self.shapes_at_head_grid()?;
        for layer in &self.model.layers {
            let shape = self.output_shape(layer)?;
            self.shapes.push(shape);
        }
        self.find_parts()?;
        let num_values = self.model.values.len();
        self.plan.values = vec![usize::MAX; num_values];
        for pathway in 0..self.model.num_pathways() {
            let (input, shape) = (self.plan.inputs[pathway], self.shapes[pathway]);
            self.plan.values[pathway] = self.channels_of(format!("input.{pathway}"), shape, input, 0);
        }
        Ok(())
    }

    fn output_shape(&self, layer: &Layer) -> Result<ActivationShape> {
        debug_assert_eq!(layer.output, self.shapes.len(), "values are numbered in the order of the layers");
        let input = self.shapes[layer.inputs[0]];
        let c = self.model.values[layer.output].c;
        Ok(match &layer.op {
            LayerOp::Conv { .. } => {
                let op = self.conv_op(layer);
                op.check()?;
                op.output()
            }
            LayerOp::MaxPool { kernel, padding, time_groups, .. } => {
                let input = self.in_time_groups(layer, input, *time_groups)?;
                if (0..3).any(|i| [input.t, input.h, input.w][i] + 2 * padding[i] < kernel[i]) {
                    let (grid, name) = (self.plan.shape, &layer.name);
                    return Err(Error::shape("plan", format!("grid {grid}: {name} cannot pool {input} by {kernel:?}")));
                }
                // The runs of a clip lie behind one another: to all but the pool and the attention it stays one clip, since the gradient
                // of a filter is a sum over whole clips.
                let output = self.pool_op(layer).output();
                ActivationShape { n: output.n / time_groups, t: output.t * time_groups, ..output }
            }
            LayerOp::BatchNorm { .. } | LayerOp::Concat => {
                if layer.inputs.iter().any(|&i| self.shapes[i].with_channels(c) != input.with_channels(c)) {
                    let shapes: Vec<String> = layer.inputs.iter().map(|&i| self.shapes[i].to_string()).collect();
                    let grid = self.plan.shape;
                    return Err(Error::shape(
                        "plan",
                        format!("grid {grid}: {} joins {}", layer.name, shapes.join(", ")),
                    ));
                }
                input.with_channels(c)
            }
            LayerOp::GlobalAveragePool => {
                self.check_head_window(layer)?;
                self.pool_op(layer).output()
            }
            LayerOp::Attention { time_groups, .. } => {
                self.in_time_groups(layer, input, *time_groups)?;
                input
            }
            LayerOp::Dropout { .. } | LayerOp::Linear { .. } => input.with_channels(c),
        })
    }

    /// `shape` with each run of frames as a clip of its own.
    fn in_time_groups(&self, layer: &Layer, shape: ActivationShape, groups: usize) -> Result<ActivationShape> {
        if !shape.t.is_multiple_of(groups) {
            let (grid, name) = (self.plan.shape, &layer.name);
            let message = format!("grid {grid}: {name} cannot cut {} frames into NONLOCAL.GROUP {groups}", shape.t);
            return Err(Error::shape("plan", message));
        }
        Ok(time_groups(shape, groups))
    }

    /// Notes which values lie inside a concatenation.
    fn find_parts(&mut self) -> Result<()> {
        for layer in self.model.layers.iter().filter(|l| l.op == LayerOp::Concat) {
            let mut start = 0;
            for &part in &layer.inputs {
                if self.num_readers[part] != 1 {
                    let name = &self.model.values[part].name;
                    return Err(Error::unsupported(
                        "plan",
                        format!("{name} is read by other layers besides the concatenation {}", layer.name),
                    ));
                }
                self.part_of[part] = Some((layer.output, start));
                start += self.shapes[part].c;
            }
        }
        Ok(())
    }

    /// The tensor of `value`, made when first asked for.
    pub(super) fn value_tensor(&mut self, value: ValueId) -> TensorId {
        if self.plan.values[value] != usize::MAX {
            return self.plan.values[value];
        }
        let (name, shape) = (self.model.values[value].name.clone(), self.shapes[value]);
        let tensor = match self.part_of[value] {
            Some((whole, start)) => {
                let whole = self.value_tensor(whole);
                self.channels_of(name, shape, whole, start)
            }
            None => self.dense(name, shape, self.plan.lowering.dtype()),
        };
        self.plan.values[value] = tensor;
        tensor
    }

    fn layer_forward(&mut self, layer: &Layer) -> Result<()> {
        let input = self.value_tensor(layer.inputs[0]);
        let op = match layer.op {
            LayerOp::Concat => return Ok(()),
            LayerOp::Conv { filter, bias, .. } => {
                let output = self.value_tensor(layer.output);
                StepOp::Conv { op: self.conv_op(layer), filter, bias, input, output }
            }
            LayerOp::BatchNorm { norm, relu } => self.batch_norm_forward(layer, norm, relu)?,
            LayerOp::MaxPool { .. } | LayerOp::GlobalAveragePool => {
                let op = self.pool_op(layer);
                let output = self.value_tensor(layer.output);
                let output = self.viewed(output, op.output());
                let needs_indices = op.kind == PoolKind::Max && self.plan.mode == Mode::Train;
                let indices =
                    needs_indices.then(|| self.dense(format!("{} indices", layer.name), op.output(), DType::U32));
                StepOp::Pool { op, input: self.viewed(input, op.input), output, indices }
            }
            LayerOp::Attention { .. } => self.attention_forward(layer),
            LayerOp::Dropout { rate } => {
                // In place: what was there before is not needed, neither later in forward nor in backward.
                self.plan.values[layer.output] = input;
                if self.plan.mode == Mode::Eval {
                    return Ok(());
                }
                StepOp::Dropout { rate, input, output: input }
            }
            LayerOp::Linear { weight, bias } => {
                let output = self.value_tensor(layer.output);
                let macs = (self.shapes[layer.inputs[0]].num_elements() * self.shapes[layer.output].c) as u64;
                StepOp::Linear { weight, bias, input, output, macs }
            }
        };
        self.plan.forward.push(op);
        Ok(())
    }

    /// The attention of `layer`, whose inputs lie in memory.
    pub(super) fn attention_forward(&mut self, layer: &Layer) -> StepOp {
        let LayerOp::Attention { instantiation, time_groups: groups } = layer.op else {
            unreachable!("{} is no attention", layer.name)
        };
        let query = time_groups(self.shapes[layer.inputs[0]], groups);
        let mut heads = [0; 3];
        for (head, &value) in heads.iter_mut().zip(&layer.inputs) {
            let tensor = self.value_tensor(value);
            *head = self.viewed(tensor, time_groups(self.shapes[value], groups));
        }
        let output = self.value_tensor(layer.output);
        let output = self.viewed(output, query);
        let sums = ActivationShape::new(1, 1, 1, 1, query.num_positions());
        let log2_sum = (instantiation == Instantiation::Softmax)
            .then(|| self.dense(format!("{} sums", layer.name), sums, DType::F32));
        let keys = time_groups(self.shapes[layer.inputs[1]], groups);
        // Scores, and the values that they weigh.
        let macs = 2 * (query.num_elements() * (keys.t * keys.h * keys.w)) as u64;
        StepOp::Attention { instantiation, heads, output, log2_sum, macs }
    }

    fn batch_norm_forward(&mut self, layer: &Layer, norm: NormId, relu: bool) -> Result<StepOp> {
        let input = self.value_tensor(layer.inputs[0]);
        let shape = self.shapes[layer.output];
        let op =
            BatchNorm { shape, splits: self.plan.splits(), eps: self.model.config.bn_eps, relu, part: self.plan.part };
        let residual = layer.inputs.get(1).map(|&r| self.value_tensor(r));
        if self.plan.mode == Mode::Eval || self.model.config.frozen_bn {
            // In training the backward pass reads the input.
            let in_place = self.plan.mode == Mode::Eval
                && self.part_of[layer.output].is_none()
                && self.num_readers[layer.inputs[0]] == 1;
            if in_place {
                self.plan.values[layer.output] = input;
            }
            let output = self.value_tensor(layer.output);
            return Ok(StepOp::BatchNormEval { op, norm, input, residual, output });
        }
        self.check_variance(layer, &op)?;
        let output = self.value_tensor(layer.output);
        let stats_shape = ActivationShape::new(1, 1, 1, 1, op.stats_len());
        let stats = self.dense(format!("{} statistics", layer.name), stats_shape, DType::F32);
        Ok(StepOp::BatchNormTrain { op, norm, input, residual, output, stats })
    }

    /// Every split has a variance.
    pub(super) fn check_variance(&self, layer: &Layer, op: &BatchNorm) -> Result<()> {
        let smallest = op.clips_of_split(op.splits_used() - 1).len() * op.shape.t * op.shape.h * op.shape.w;
        if smallest < 2 {
            let (grid, splits) = (self.plan.shape, op.splits);
            let message =
                format!("grid {grid} in {splits} splits: {} has one value a channel, no variance", layer.name);
            return Err(Error::shape("plan", message));
        }
        Ok(())
    }

    pub(super) fn finish_forward(&mut self) {
        let logits_value = self.model.values.len() - 1;
        let (logits, shape) = (self.plan.values[logits_value], self.shapes[logits_value]);
        self.plan.logits = logits;
        self.plan.result = match self.plan.mode {
            Mode::Train => {
                let loss = self.dense("loss".into(), shape.with_channels(1), DType::F32);
                let grad_logits = self.dense("grad logits".into(), shape, self.plan.lowering.dtype());
                self.grads[logits_value] = Some(grad_logits);
                self.is_grad_written[logits_value] = true;
                let scale = 1.0 / self.plan.shape.clips as f32;
                self.plan.forward.push(match self.model.config.loss {
                    Loss::CrossEntropy => StepOp::CrossEntropy { logits, scale, loss, grad_logits },
                    Loss::BinaryCrossEntropy => StepOp::BinaryCrossEntropy { logits, scale, loss, grad_logits },
                });
                loss
            }
            Mode::Eval => self.scores(logits),
        };
    }

    /// The convolution of `layer`. Must only be called for a convolution.
    pub(super) fn conv_op(&self, layer: &Layer) -> Conv3d {
        let LayerOp::Conv { kernel, stride, padding, dilation, groups, .. } = layer.op else {
            unreachable!("{} is no convolution", layer.name)
        };
        let (input, c_out) = (self.shapes[layer.inputs[0]], self.model.values[layer.output].c);
        Conv3d { input, c_out, filter: kernel, stride, padding, dilation, groups, part: self.plan.part }
    }

    /// The pool of `layer`. Must only be called for a pool.
    pub(super) fn pool_op(&self, layer: &Layer) -> Pool3d {
        let input = self.shapes[layer.inputs[0]];
        match layer.op {
            LayerOp::MaxPool { kernel, stride, padding, time_groups: groups } => {
                let input = time_groups(input, groups);
                Pool3d { kind: PoolKind::Max, input, kernel, stride, padding }
            }
            LayerOp::GlobalAveragePool => {
                let kernel = self.head_window(layer.inputs[0]);
                Pool3d { kind: PoolKind::Average, input, kernel, stride: [1; 3], padding: [0; 3] }
            }
            _ => unreachable!("{} is no pool", layer.name),
        }
    }
}

/// `shape` with `groups` runs of frames as clips.
fn time_groups(shape: ActivationShape, groups: usize) -> ActivationShape {
    ActivationShape { n: shape.n * groups, t: shape.t / groups, ..shape }
}
