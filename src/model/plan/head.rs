//! The head in evaluation: over which windows it averages, and what becomes of their logits.

use super::{Mode, Planner, Request, StepOp, TensorId};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::model::config::HeadActivation;
use crate::model::layers::{Layer, ValueId};
use crate::ops::pool3d::{Pool3d, PoolKind};
use crate::shape::{ActivationShape, StepShape};

impl Planner<'_> {
    /// The shapes of all values at the grid whose maps are the head's windows. `None` where the windows are whole maps: in
    /// training, at that grid itself, and in a model without such a grid.
    pub(super) fn shapes_at_head_grid(&self) -> Result<Option<Vec<ActivationShape>>> {
        let Some((frames, crop_px)) = self.model.config.head_grid else { return Ok(None) };
        let (now, grid) = (self.plan.shape, StepShape::square(1, frames, crop_px, 1));
        let is_same = (now.frames, now.height_px, now.width_px) == (frames, crop_px, crop_px);
        if self.plan.mode == Mode::Train || is_same {
            return Ok(None);
        }
        let mut planner = Planner::new(self.model, &Request::whole(grid, Mode::Train, 1, self.plan.lowering));
        planner.prepare_values()?;
        Ok(Some(planner.shapes))
    }

    /// The window that slides over `value`, the last map of a pathway.
    pub(super) fn head_window(&self, value: ValueId) -> [usize; 3] {
        let window = self.head_shapes.as_ref().unwrap_or(&self.shapes)[value];
        [window.t, window.h, window.w]
    }

    /// A window fits.
    pub(super) fn check_head_window(&self, layer: &Layer) -> Result<()> {
        let (map, window) = (self.shapes[layer.inputs[0]], self.head_window(layer.inputs[0]));
        if window[0] > map.t || window[1] > map.h || window[2] > map.w {
            let (grid, (frames, crop_px)) = (self.plan.shape, self.model.config.head_grid.unwrap_or_default());
            let message = format!(
                "grid {grid}: the head averages over windows of {window:?}, the maps of the training grid {frames}x{crop_px}; \
                 here its map is {map}; evaluate at that grid or a larger one"
            );
            return Err(Error::shape("plan", message));
        }
        Ok(())
    }

    /// The scores of each clip from the logits of its windows: activation, then the mean over the windows.
    pub(super) fn scores(&mut self, logits: TensorId) -> TensorId {
        let shape = self.plan.tensors[logits].shape;
        let mut scores = logits;
        if self.model.config.head_activation != HeadActivation::None {
            scores = self.dense("scores".into(), shape, DType::F32);
            self.plan.forward.push(match self.model.config.head_activation {
                HeadActivation::Sigmoid => StepOp::Sigmoid { logits, probabilities: scores },
                _ => StepOp::Softmax { logits, probabilities: scores },
            });
        }
        let op = Pool3d::global_average(shape);
        if op.output() == shape {
            return scores;
        }
        debug_assert_eq!(op.kind, PoolKind::Average);
        let mean = self.dense("mean scores".into(), op.output(), DType::F32);
        self.plan.forward.push(StepOp::Pool { op, input: scores, output: mean, indices: None });
        mean
    }
}
