//! What each layer of a model costs at the shape of a plan.

use super::{Lowering, Plan, StepOp};
use crate::model::layers::{LayerOp, Model};
use crate::shape::ActivationShape;

/// A layer at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerCost {
    /// PySlowFast's module name.
    pub name: String,
    /// Such as `conv 3x1x1`.
    pub kind: String,
    /// Sizes of what it makes.
    pub output: ActivationShape,
    /// Trainable numbers.
    pub params: usize,
    /// Multiply-adds of its forward pass.
    pub macs: u64,
}

impl Plan {
    /// The layers of `model`, which this plan was made of, in the order of execution. `None` for a fused plan, whose ops belong to
    /// several layers.
    pub fn layer_costs(&self, model: &Model) -> Option<Vec<LayerCost>> {
        if self.lowering != Lowering::Plain {
            return None;
        }
        // One op a layer, in order; a concatenation has none, and dropout none in evaluation.
        let mut ops = self.forward.iter().peekable();
        let cost = |layer: &crate::model::layers::Layer| {
            let has_op = match layer.op {
                LayerOp::Concat => false,
                LayerOp::Dropout { .. } => ops.peek().is_some_and(|op| matches!(op, StepOp::Dropout { .. })),
                _ => true,
            };
            let macs = if has_op { ops.next()?.macs() } else { 0 };
            let output = self.tensors.get(self.values[layer.output])?.shape;
            Some(LayerCost {
                name: layer.name.clone(),
                kind: kind(&layer.op),
                output,
                params: params(model, &layer.op),
                macs,
            })
        };
        model.layers.iter().map(cost).collect()
    }
}

fn sizes(of: &[usize; 3]) -> String {
    of.map(|size| size.to_string()).join("x")
}

fn kind(op: &LayerOp) -> String {
    match op {
        LayerOp::Conv { kernel, stride, dilation, groups, .. } => {
            let mut text = format!("conv {}", sizes(kernel));
            for (name, sizes_of) in [("stride", stride), ("dilation", dilation)] {
                if *sizes_of != [1; 3] {
                    text += &format!(" {name} {}", sizes(sizes_of));
                }
            }
            if *groups > 1 {
                text += &format!(" groups {groups}");
            }
            text
        }
        LayerOp::BatchNorm { relu, .. } => if *relu { "batch norm, ReLU" } else { "batch norm" }.into(),
        LayerOp::MaxPool { kernel, .. } => format!("max pool {}", sizes(kernel)),
        LayerOp::Attention { time_groups, .. } if *time_groups > 1 => format!("attention in {time_groups} groups"),
        LayerOp::Attention { .. } => "attention".into(),
        LayerOp::GlobalAveragePool => "average pool".into(),
        LayerOp::Concat => "concatenation".into(),
        LayerOp::Dropout { rate } => format!("dropout {rate}"),
        LayerOp::Linear { .. } => "linear".into(),
    }
}

fn params(model: &Model, op: &LayerOp) -> usize {
    let len = |param: usize| model.params[param].len();
    match *op {
        LayerOp::Conv { filter, bias, .. } => len(filter) + bias.map_or(0, len),
        LayerOp::BatchNorm { norm, .. } => len(model.norms[norm].gamma) + len(model.norms[norm].beta),
        LayerOp::Linear { weight, bias } => len(weight) + len(bias),
        _ => 0,
    }
}
