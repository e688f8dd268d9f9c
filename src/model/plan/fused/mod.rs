//! The fused lowering of the layers: convolutions normalise on load and form statistics on store, in both directions, so that
//! of what lies between a convolution and the next only the raw output is stored, and of a residual block its output.
//!
//! | value | in memory | read as |
//! |---|---|---|
//! | input, output of a pool or a concatenation | itself | itself |
//! | batch norm and ReLU | the convolution's raw output | `relu(s y + b)` |
//! | end of a residual block | itself, stored by whoever reads it first | itself |
//! | end of a non-local block | itself, stored by a pass of its own | itself |
//! | batch norm of a shortcut | the convolution's raw output | part of the block's end |
//! | end of a residual block, Gram form | itself, stored by the block's last convolution | itself |
//!
//! A convolution can store the end of a block where each of its tiles reads its own positions (unit stride); readers that can
//! come before those that cannot, and where none can, a pass of its own does it. Parts of a concatenation are stored where
//! they belong.

mod backward;
mod forward;
mod gram;
mod ops;

pub use ops::{
    FusedOp, GatherPool, GramFilter, GramProducts, Load, LoadGrad, LoadJoin, NormGrad, NormStatistics, PlannedMask,
    Shortcut, StoreGrad, Table,
};

use super::{Planner, StepOp, TensorId};
use crate::device::Stream;
use crate::error::{Error, Result};
use crate::model::layers::{LayerOp, NormId, ValueId};
use crate::ops::conv3d::Conv3d;

/// What is known of a value once the layer that makes it was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// No layer has made it yet.
    Unknown,
    /// Of a convolution whose batch norm has the Gram form: its output is nowhere, and what the norm makes of it is stored.
    Passed,
    /// It lies in memory.
    Stored(TensorId),
    /// The batch norm of `y`, with a ReLU or without.
    Normalised { y: TensorId, norm: NormId, relu: bool },
    /// `norm(y) + residual`, with a ReLU or without, not in memory yet.
    Join { y: TensorId, norm: NormId, residual: ValueId, relu: bool },
}

/// Tensors of a batch norm.
#[derive(Clone, Copy, Debug)]
struct NormTensors {
    y: TensorId,
    stats: TensorId,
    scale_shift: TensorId,
    grad_table: Option<TensorId>,
    /// The gradient of `y`, where a pass of its own makes it.
    grad: Option<TensorId>,
    /// The pool through which the convolution gathers its gradient, and the gradient of its output.
    pool: Option<(GatherPool, TensorId)>,
}

/// What backward must know of a layer that forward ran.
#[derive(Clone, Debug)]
struct Done {
    layer: usize,
    /// What it read; for a convolution.
    load: Option<Load>,
    /// Positions of the maxima.
    indices: Option<TensorId>,
    /// The op of an attention.
    attention: Option<StepOp>,
}

/// The planner of the fused form.
pub(super) struct FusedPlanner<'a> {
    /// Of the device that decides what is worth storing.
    stream: &'a Stream,
    base: Planner<'a>,
    forms: Vec<Form>,
    norms: Vec<Option<NormTensors>>,
    /// Batch norms in Gram form.
    grams: Vec<Option<gram::GramNorm>>,
    /// The layers in the order in which they ran.
    done: Vec<Done>,
    is_done: Vec<bool>,
    /// The batch norm layer that reads each value, if any.
    norm_of: Vec<Option<usize>>,
    /// Readers of each value whose gradient is still to come.
    readers_left: Vec<usize>,
}

impl<'a> FusedPlanner<'a> {
    pub(super) fn new(stream: &'a Stream, base: Planner<'a>) -> FusedPlanner<'a> {
        let model = base.model;
        let mut norm_of = vec![None; model.values.len()];
        for (i, layer) in model.layers.iter().enumerate() {
            if let LayerOp::BatchNorm { .. } = layer.op {
                norm_of[layer.inputs[0]] = Some(i);
            }
        }
        FusedPlanner {
            stream,
            forms: vec![Form::Unknown; model.values.len()],
            norms: vec![None; model.norms.len()],
            grams: vec![None; model.norms.len()],
            done: vec![],
            is_done: vec![false; model.layers.len()],
            norm_of,
            readers_left: base.num_readers.clone(),
            base,
        }
    }

    pub(super) fn into_base(self) -> Planner<'a> {
        self.base
    }

    fn unsupported<T>(&self, value: ValueId, what: &str) -> Result<T> {
        let name = &self.base.model.values[value].name;
        Err(Error::unsupported("plan", format!("the fused form has no way to {what} {name}")))
    }
}

/// Whether the tap at distance 0 reads each position of the input exactly once, as that of the output at the very position.
pub(super) fn reads_each_position_once(op: &Conv3d) -> bool {
    let (i, o) = (op.input, op.output());
    let has_center = |a: usize| (0..op.filter[a]).any(|k| k * op.dilation[a] == op.padding[a]);
    op.stride == [1; 3] && (i.t, i.h, i.w) == (o.t, o.h, o.w) && (0..3).all(has_center)
}
