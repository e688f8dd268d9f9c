//! Batch norms in Gram form (docs/gram_batch_norm.md): the last convolution of a residual block forms the block's end, and its own output is
//! nowhere. Statistics come from moments of its input; backward reads the gradient and the input alone.

use super::{Form, FusedOp, FusedPlanner, GramFilter, GramProducts, Load, Shortcut, Table};
use crate::error::Result;
use crate::model::config::GramUse;
use crate::model::layers::{Layer, LayerOp, ParamId, ValueId};
use crate::model::plan::{Mode, Plan, StepOp, TensorId};
use crate::ops::batch_norm::BatchNorm;
use crate::ops::conv3d::Conv3d;
use crate::ops::gram::{self, Gram};
use crate::shape::ActivationShape;

/// What backward needs of a batch norm in Gram form.
#[derive(Clone, Copy, Debug)]
pub(super) struct GramNorm {
    op: Gram,
    moments: TensorId,
    stats: TensorId,
    /// The end of the block, whose masked gradient begins here.
    end: ValueId,
}

impl Plan {
    /// How many batch norms of a training step have the Gram form, where any has; of its first micro-batch.
    pub fn gram_line(&self) -> Option<String> {
        let is_gram = |op: &&StepOp| matches!(op, StepOp::Fused(FusedOp::GramStatistics { .. }));
        let (grams, norms) = (self.forward.iter().filter(is_gram).count(), self.statistics().count());
        let is_first = self.part.is_none_or(|part| part.first_clip == 0);
        (grams > 0 && is_first)
            .then(|| format!("{}: {grams} of {norms} batch norms in Gram form (VCYCLE.GRAM_BATCH_NORM)", self.shape))
    }
}

impl FusedPlanner<'_> {
    /// The batch norm layer after convolution `layer`, where it takes the Gram form.
    pub(super) fn gram_of(&self, layer: &Layer, bias: Option<ParamId>) -> Option<usize> {
        let model = self.base.model;
        let norm_layer = self.norm_of[layer.output]?;
        let end = &model.layers[norm_layer];
        let (LayerOp::BatchNorm { norm, relu: true }, &[_, shortcut]) = (&end.op, &end.inputs[..]) else { return None };
        let conv = self.base.conv_op(layer);
        let is_asked = self.base.plan.mode == Mode::Train
            && model.config.gram != GramUse::Never
            && !model.standard_norms.contains(norm);
        // The kernel that forms the input's gradient normalises the input on load.
        let fits = bias.is_none()
            && is_expanding(&conv)
            && matches!(self.forms[layer.inputs[0]], Form::Normalised { relu: true, .. })
            && self.shortcut(shortcut).is_some()
            && self.is_masked_by_convolutions(end.output)
            && self.has_chunks(end.output);
        if !is_asked || !fits {
            return None;
        }
        let op = self.gram_of_batch(&conv);
        let at_once = self.is_at_once(&conv);
        let is_wanted = model.config.gram == GramUse::Always || gram::predicted_saving_s(&op, at_once) > 0.0;
        (is_wanted && gram::kernels_take(&op, self.base.plan.lowering.dtype())).then_some(norm_layer)
    }

    /// As the whole batch has it: the choice must be that of the step, in micro-batches too.
    fn gram_of_batch(&self, conv: &Conv3d) -> Gram {
        let (shape, splits) = (conv.output(), self.base.plan.splits());
        let (clips, splits) =
            self.base.plan.part.map_or((shape.n, splits), |p| (p.batch_clips, p.splits_of(p.batch_clips)));
        let shape = ActivationShape { n: clips, ..shape };
        let norm = BatchNorm { shape, splits, eps: self.base.model.config.bn_eps, relu: false, part: None };
        Gram { norm, c_in: conv.input.c }
    }

    fn shortcut(&self, value: ValueId) -> Option<Shortcut> {
        match self.forms[value] {
            Form::Stored(tensor) => Some(Shortcut { tensor, scale_shift: None }),
            Form::Normalised { y, norm, relu: false } => match self.scale_shift(norm) {
                Table::Batch(table) => Some(Shortcut { tensor: y, scale_shift: Some(table) }),
                Table::Running(_) => None,
            },
            _ => None,
        }
    }

    /// Whether the gradient of `end` gets its ReLU's mask from a convolution that writes it: a pass that masks it otherwise does so along
    /// with the gradient of a norm in standard form.
    fn is_masked_by_convolutions(&self, end: ValueId) -> bool {
        self.base.model.layers.iter().filter(|layer| layer.inputs.contains(&end)).all(|reader| match reader.op {
            LayerOp::Conv { .. } => true,
            LayerOp::BatchNorm { .. } => reader.inputs[0] != end,
            LayerOp::Concat => self.is_masked_as_a_whole(reader) && self.is_masked_by_convolutions(reader.output),
            _ => false,
        })
    }

    /// Whether `value` begins and its positions follow in chunks of 8 channels.
    fn has_chunks(&self, value: ValueId) -> bool {
        let is_chunked = |value: ValueId| self.base.shapes[value].c.is_multiple_of(8);
        self.base.part_of[value].map_or(is_chunked(value), |(whole, start)| {
            start.is_multiple_of(8) && is_chunked(whole) && is_chunked(value)
        })
    }

    /// Moments, statistics, then the convolution to the end of the block. `input` is what it reads.
    pub(super) fn gram_forward(
        &mut self,
        layer: &Layer,
        filter: ParamId,
        input: Load,
        norm_layer: usize,
    ) -> Result<Load> {
        let end = &self.base.model.layers[norm_layer];
        let (LayerOp::BatchNorm { norm, .. }, Some(shortcut)) = (&end.op, self.shortcut(end.inputs[1])) else {
            return self.unsupported(end.output, "join");
        };
        let (norm, conv) = (*norm, self.base.conv_op(layer));
        let statistics = self.new_statistics(end, norm)?;
        let op = Gram { norm: statistics.op, c_in: conv.input.c };
        let moments = self.table(format!("{} moments", end.name), op.moments_len());
        let output = self.base.value_tensor(end.output);
        self.push(FusedOp::GramMoments { op, input, moments });
        self.push(FusedOp::GramStatistics { op, filter, moments, statistics });
        let scale_shift = statistics.scale_shift;
        self.push(FusedOp::ConvNormalise { op: conv, filter, input, scale_shift, shortcut, output });
        self.grams[norm] = Some(GramNorm { op, moments, stats: statistics.stats, end: end.output });
        (self.forms[layer.output], self.forms[end.output]) = (Form::Passed, Form::Stored(output));
        Ok(input)
    }

    /// The filter's and the norm's gradients from sums of `g x'`, then the gradient of the input.
    pub(super) fn gram_backward(&mut self, layer: &Layer, filter: ParamId, input: Load) -> Result<()> {
        let (x, y) = (layer.inputs[0], layer.output);
        let Some((norm, gram)) = self.norm_of(y).and_then(|norm| Some((norm, self.grams[norm]?))) else {
            return self.unsupported(y, "derive");
        };
        let GramNorm { op, moments, stats, end } = gram;
        let (conv, name) = (self.base.conv_op(layer), &self.base.model.norms[norm].name);
        let (splits, c_in, c_out) = (op.norm.splits, op.c_in, op.norm.shape.c);
        let named = |what: &str| format!("{what} {name}");
        let products = self.table(named("products"), splits * c_out * c_in);
        let grad_sums = self.table(named("grad sums"), splits * c_out);
        let grad_table = self.table(named("grad"), splits * 3 * c_out);
        let back_shift = self.table(named("back shift"), splits * c_in);
        let shape = ActivationShape::new(1, 1, 1, 1, splits * (c_out + c_in) * c_in);
        let back_filter = self.base.dense(named("back filter"), shape, self.base.plan.lowering.dtype());
        let (from, to) = (GramProducts { products, grad_sums }, GramFilter { back_filter, back_shift });
        let grad_output = self.base.grad(end);
        self.push_back(FusedOp::GramProducts { op: conv, input, grad_output, to: from });
        self.push_back(FusedOp::GramGradient { op, filter, norm, from, moments, stats, grad_table, to });
        let (grad_input, store) = self.grad_to_write(x)?;
        self.push_back(FusedOp::GramGradInput { op: conv, input, grad_output, from: to, store, grad_input });
        Ok(())
    }
}

/// Pointwise, without a stride, from few channels to more.
fn is_expanding(conv: &Conv3d) -> bool {
    let is_pointwise = conv.filter == [1; 3] && conv.stride == [1; 3] && conv.padding == [0; 3] && conv.groups == 1;
    is_pointwise && conv.input.c < conv.c_out
}
