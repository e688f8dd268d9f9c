//! Accuracy on the validation clips, always at the default shape, and the batch-norm statistics that it is measured with.

use std::sync::atomic::{AtomicBool, Ordering};

use super::step::{EvalResult, Road};
use super::{Progress, Trainer};
use crate::clip::Loader;
use crate::config::PreciseBnShape;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::metrics::{Accuracy, mean_average_precision};
use crate::model::network::PreciseStatistics;
use crate::shape::StepShape;

/// Epochs of the random streams for precise statistics begin here, far behind those of training.
const PRECISE_EPOCHS_BEGIN: u64 = 1 << 40;

/// An evaluation over all clips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Percent of the clips that were recognised; `None` where clips may have several labels.
    pub top1: Option<f64>,
    /// Percent of the clips whose label is among the five largest logits, likewise.
    pub top5: Option<f64>,
    /// Mean average precision in percent, where they may.
    pub map: Option<f64>,
    /// Mean loss; `None` where it was not finite.
    pub loss: Option<f64>,
    /// Clips.
    pub clips: usize,
}

impl Trainer {
    /// Evaluates at the default shape; `None` when `stop` was set meanwhile.
    pub(super) fn evaluate(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Option<Evaluation>> {
        let measures = self.config.bn.use_precise_stats && !self.config.model.frozen_bn;
        if measures && !self.measure_statistics(progress, stop)? {
            return Ok(None);
        }
        evaluate(&mut self.road, &self.val, self.schedule.evaluation_shape(), progress, stop)
    }

    /// Replaces the running statistics by those of many batches under the present weights (BN.USE_PRECISE_STATS),
    /// without short cycle. False when `stop` was set meanwhile.
    fn measure_statistics(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<bool> {
        let shape = match self.config.vcycle.precise_bn_shape {
            PreciseBnShape::Default => self.default_shape,
            PreciseBnShape::LongCycle => self.schedule.phase(self.state.epoch as usize).long_cycle_shape(),
        };
        let available = (self.train.source().len() / shape.clips).max(1);
        let steps = vec![shape; self.config.bn.num_batches_precise.min(available).max(1)];
        let mut statistics = PreciseStatistics::new(&self.road.network)?;
        let epoch = PRECISE_EPOCHS_BEGIN + self.state.epoch;
        for (done, batch) in self.train.train_epoch(epoch, &steps, 0).enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.road.forward_train(&batch?)?;
            if let Some(captured) = self.road.network.take_captured() {
                progress.message(&captured.to_string());
            }
            statistics.add(&self.road.network, shape)?;
            progress.evaluating("batch-norm statistics", done + 1, steps.len());
        }
        if let Err(error) = statistics.apply(&mut self.road.network) {
            progress.message(&format!("warning: {error}"));
        }
        Ok(true)
    }
}

/// Accuracy (or mean average precision) and loss over all clips of `loader`.
fn evaluate(
    road: &mut Road,
    loader: &Loader,
    shape: StepShape,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Option<Evaluation>> {
    let (mut clips, mut accuracy, mut loss_sum) = (0, None::<Accuracy>, 0.0);
    let (mut scores, mut sets) = (vec![], vec![]);
    let classes = road.classes();
    let mut count = |result: EvalResult| {
        clips += result.labels.len();
        loss_sum += result.loss_sum;
        match result.labels {
            Labels::Classes(labels) => accuracy.get_or_insert_default().add(&result.logits, classes, &labels)?,
            Labels::Sets(labels) => {
                scores.extend(result.logits);
                sets.extend(labels);
            }
        }
        Ok::<(), Error>(())
    };
    let batches = loader.eval_epoch(shape);
    let total = batches.remaining();
    for (done, batch) in batches.enumerate() {
        if stop.load(Ordering::Relaxed) {
            road.finish_eval()?;
            return Ok(None);
        }
        let before = batch.and_then(|batch| road.eval(shape, batch));
        if before.is_err() {
            road.finish_eval()?;
        }
        if let Some(result) = before? {
            count(result)?;
        }
        if let Some(captured) = road.network.take_captured() {
            progress.message(&captured.to_string());
        }
        progress.evaluating("validation", done + 1, total);
    }
    road.finish_eval()?.map_or(Ok(()), &mut count)?;
    if clips == 0 {
        return Err(Error::Data("none of the validation clips can be decoded".into()));
    }
    let loss = loss_sum / clips as f64;
    let (top1, top5) = (accuracy.map(|a| a.top1_percent()), accuracy.map(|a| a.top5_percent()));
    let map = match sets.is_empty() {
        true => None,
        false => {
            let targets = Labels::Sets(sets).multi_hot(road.classes());
            Some(100.0 * mean_average_precision(&scores, &targets, road.classes())?)
        }
    };
    Ok(Some(Evaluation { top1, top5, map, loss: loss.is_finite().then_some(loss), clips }))
}
