//! The forward half of the fused form.

use super::{Done, Form, FusedOp, FusedPlanner, Load, LoadJoin, NormStatistics, NormTensors, Table};
use crate::device::DType;
use crate::error::Result;
use crate::model::layers::{Layer, LayerOp, NormId, ParamId, ValueId};
use crate::model::plan::{Mode, StepOp, TensorId};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::pool3d::PoolKind;
use crate::shape::ActivationShape;

impl FusedPlanner<'_> {
    /// Plans the forward pass.
    pub(in crate::model::plan) fn forward(&mut self) -> Result<()> {
        self.base.prepare_values()?;
        for pathway in 0..self.base.model.num_pathways() {
            self.forms[pathway] = Form::Stored(self.base.plan.values[pathway]);
        }
        for layer in 0..self.base.model.layers.len() {
            self.run(layer)?;
        }
        self.base.finish_forward();
        Ok(())
    }

    /// Plans layer `i`, unless that was done early.
    fn run(&mut self, i: usize) -> Result<()> {
        if std::mem::replace(&mut self.is_done[i], true) {
            return Ok(());
        }
        let layer = &self.base.model.layers[i];
        let (mut load, mut indices, mut attention) = (None, None, None);
        match layer.op {
            LayerOp::Conv { filter, bias, .. } => load = Some(self.conv(i, layer, filter, bias)?),
            LayerOp::BatchNorm { norm, relu } => self.batch_norm(layer, norm, relu)?,
            LayerOp::MaxPool { .. } | LayerOp::GlobalAveragePool => indices = self.pool(layer)?,
            LayerOp::Attention { .. } => attention = Some(self.attention(layer)),
            LayerOp::Concat => self.concat(layer)?,
            LayerOp::Dropout { rate } => {
                let input = self.stored(layer.inputs[0])?;
                self.base.plan.values[layer.output] = input;
                self.forms[layer.output] = Form::Stored(input);
                if self.base.plan.mode == Mode::Train {
                    self.base.plan.forward.push(StepOp::Dropout { rate, input, output: input });
                }
            }
            LayerOp::Linear { weight, bias } => {
                let input = self.stored(layer.inputs[0])?;
                let shape = self.base.shapes[layer.output];
                // The logits: what the loss reads is f32 everywhere.
                let output = self.base.dense(layer.name.clone(), shape, DType::F32);
                self.base.plan.values[layer.output] = output;
                self.forms[layer.output] = Form::Stored(output);
                let macs = (self.base.shapes[layer.inputs[0]].num_elements() * shape.c) as u64;
                self.base.plan.forward.push(StepOp::Linear { weight, bias, input, output, macs });
            }
        }
        self.done.push(Done { layer: i, load, indices, attention });
        Ok(())
    }

    pub(super) fn push(&mut self, op: FusedOp) {
        self.base.plan.forward.push(StepOp::Fused(op));
    }

    /// A max pool takes a batch norm and ReLU on load; the end of a block is stored before.
    fn pool(&mut self, layer: &Layer) -> Result<Option<TensorId>> {
        let (op, x) = (self.base.pool_op(layer), layer.inputs[0]);
        let normalised = match self.forms[x] {
            Form::Normalised { y, norm, relu: true } if op.kind == PoolKind::Max => Some((y, self.scale_shift(norm))),
            _ => {
                self.apply(x)?;
                None
            }
        };
        let output = self.base.value_tensor(layer.output);
        let needs_indices = op.kind == PoolKind::Max && self.base.plan.mode == Mode::Train;
        let index_dtype = if op.kernel.iter().product::<usize>() <= 256 { DType::U8 } else { DType::U32 };
        let indices =
            needs_indices.then(|| self.base.dense(format!("{} indices", layer.name), op.output(), index_dtype));
        match normalised {
            Some((input, scale_shift)) => self.push(FusedOp::Pool { op, input, scale_shift, output, indices }),
            None => {
                let input = self.stored(x)?;
                let (input, output) = (self.base.viewed(input, op.input), self.base.viewed(output, op.output()));
                self.base.plan.forward.push(StepOp::Pool { op, input, output, indices });
            }
        }
        self.forms[layer.output] = Form::Stored(output);
        Ok(indices)
    }

    /// Queries, keys and values are stored by their convolutions.
    fn attention(&mut self, layer: &Layer) -> StepOp {
        let op = self.base.attention_forward(layer);
        self.base.plan.forward.push(op.clone());
        self.forms[layer.output] = Form::Stored(self.base.value_tensor(layer.output));
        op
    }

    fn conv(&mut self, i: usize, layer: &Layer, filter: ParamId, bias: Option<ParamId>) -> Result<Load> {
        let op = self.base.conv_op(layer);
        let gram = self.gram_of(layer, bias);
        let input = self.load(layer.inputs[0], i)?;
        if let Some(norm_layer) = gram {
            return self.gram_forward(layer, filter, input, norm_layer);
        }
        let output = self.base.value_tensor(layer.output);
        self.forms[layer.output] = Form::Stored(output);
        let statistics = match self.norm_of[layer.output] {
            Some(norm_layer) if self.base.plan.mode == Mode::Train => Some(self.statistics(norm_layer, output)?),
            _ => None,
        };
        // Statistics on store are those of the sums alone.
        let (on_store, after) = if bias.is_some() { (None, statistics) } else { (statistics, None) };
        self.push(FusedOp::Conv { op, filter, bias, input, statistics: on_store, output });
        if let Some(statistics) = after {
            self.push(FusedOp::Statistics { input: output, statistics });
        }
        // Backward reads what was stored on the way.
        Ok(input.join.and_then(|j| j.output).map_or(input, Load::stored))
    }

    /// The tables of the batch norm of layer `norm_layer`, which reads `y`.
    fn statistics(&mut self, norm_layer: usize, y: TensorId) -> Result<NormStatistics> {
        let layer = &self.base.model.layers[norm_layer];
        let LayerOp::BatchNorm { norm, .. } = layer.op else { return self.unsupported(layer.output, "normalise") };
        let to = self.new_statistics(layer, norm)?;
        let NormStatistics { stats, scale_shift, .. } = to;
        self.norms[norm] = Some(NormTensors { y, stats, scale_shift, grad_table: None, grad: None, pool: None });
        Ok(to)
    }

    /// The op and new tables of the batch norm of `layer`.
    pub(super) fn new_statistics(&mut self, layer: &Layer, norm: NormId) -> Result<NormStatistics> {
        let (shape, splits) = (self.base.shapes[layer.output], self.base.plan.splits());
        let op =
            BatchNorm { shape, splits, eps: self.base.model.config.bn_eps, relu: false, part: self.base.plan.part };
        self.base.check_variance(layer, &op)?;
        let stats = self.table(format!("{} statistics", layer.name), splits * 3 * shape.c);
        let scale_shift = self.table(format!("{} scale and shift", layer.name), splits * 2 * shape.c);
        Ok(NormStatistics { op, norm, stats, scale_shift })
    }

    pub(super) fn table(&mut self, name: String, len: usize) -> TensorId {
        self.base.dense(name, ActivationShape::new(1, 1, 1, 1, len), DType::F32)
    }

    fn batch_norm(&mut self, layer: &Layer, norm: NormId, relu: bool) -> Result<()> {
        if self.forms[layer.inputs[0]] == Form::Passed {
            return Ok(());
        }
        let y = self.stored(layer.inputs[0])?;
        self.forms[layer.output] = match layer.inputs.get(1) {
            None => Form::Normalised { y, norm, relu },
            Some(&residual) => Form::Join { y, norm, residual, relu },
        };
        // No convolution takes a sum without a ReLU on load.
        if layer.inputs.len() == 2 && !relu { self.apply(layer.output) } else { Ok(()) }
    }

    pub(super) fn scale_shift(&self, norm: NormId) -> Table {
        match self.norms[norm] {
            Some(tensors) => Table::Batch(tensors.scale_shift),
            None => Table::Running(norm),
        }
    }

    /// The tensor of a value that lies in memory.
    fn stored(&self, value: ValueId) -> Result<TensorId> {
        match self.forms[value] {
            Form::Stored(tensor) => Ok(tensor),
            _ => self.unsupported(value, "read"),
        }
    }

    /// How layer `reader` reads `value`. The end of a block is stored on the way.
    fn load(&mut self, value: ValueId, reader: usize) -> Result<Load> {
        match self.forms[value] {
            Form::Stored(tensor) => Ok(Load::stored(tensor)),
            Form::Normalised { y, norm, relu: true } => {
                Ok(Load { tensor: y, scale_shift: Some(self.scale_shift(norm)), join: None })
            }
            Form::Join { .. } => {
                if !self.can_store(reader) {
                    let able = |&layer: &usize| {
                        !self.is_done[layer]
                            && self.base.model.layers[layer].inputs[0] == value
                            && self.can_store(layer)
                    };
                    match (reader + 1..self.base.model.layers.len()).find(able) {
                        Some(layer) => self.run(layer)?,
                        None => self.apply(value)?,
                    }
                    return self.load(value, reader);
                }
                let load = self.join(value, true)?;
                if let Some(output) = load.join.and_then(|j| j.output) {
                    self.forms[value] = Form::Stored(output);
                }
                Ok(load)
            }
            Form::Normalised { .. } | Form::Unknown | Form::Passed => self.unsupported(value, "read"),
        }
    }

    /// Whether layer `i` is a convolution that stores what its prologue makes.
    fn can_store(&self, i: usize) -> bool {
        let layer = &self.base.model.layers[i];
        matches!(layer.op, LayerOp::Conv { .. }) && super::reads_each_position_once(&self.base.conv_op(layer))
    }

    /// The end of a block as an op reads it.
    fn join(&mut self, value: ValueId, store: bool) -> Result<Load> {
        let Form::Join { y, norm, residual, .. } = self.forms[value] else { return self.unsupported(value, "join") };
        let (residual, residual_scale_shift) = match self.forms[residual] {
            Form::Stored(tensor) => (tensor, None),
            Form::Normalised { y, norm, relu: false } => (y, Some(self.scale_shift(norm))),
            _ => return self.unsupported(residual, "add"),
        };
        let output = store.then(|| self.base.value_tensor(value));
        let join = LoadJoin { residual, residual_scale_shift, output };
        Ok(Load { tensor: y, scale_shift: Some(self.scale_shift(norm)), join: Some(join) })
    }

    /// Stores `value` by a pass of its own.
    fn apply(&mut self, value: ValueId) -> Result<()> {
        let relu = !matches!(self.forms[value], Form::Join { relu: false, .. });
        let input = match self.forms[value] {
            Form::Stored(_) => return Ok(()),
            Form::Normalised { y, norm, relu: true } => {
                Load { tensor: y, scale_shift: Some(self.scale_shift(norm)), join: None }
            }
            Form::Join { .. } => self.join(value, false)?,
            Form::Normalised { .. } | Form::Unknown | Form::Passed => return self.unsupported(value, "store"),
        };
        let output = self.base.value_tensor(value);
        self.push(FusedOp::Apply { shape: self.base.shapes[value], input, relu, output });
        self.forms[value] = Form::Stored(output);
        Ok(())
    }

    fn concat(&mut self, layer: &Layer) -> Result<()> {
        for &part in &layer.inputs {
            self.apply(part)?;
        }
        self.forms[layer.output] = Form::Stored(self.base.value_tensor(layer.output));
        Ok(())
    }
}
