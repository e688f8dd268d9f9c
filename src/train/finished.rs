//! A step whose results have come: counted, logged, shown. They come when the next step has been queued.

use super::feeding::Fed;
use super::log::{Iteration, Line};
use super::step::StepResult;
use super::{Progress, StepReport, Trainer, stats};
use crate::clip::HostBatch;
use crate::error::{Error, Result};
use crate::model::network::FIRST_LOSS_SCALE;
use crate::shape::StepShape;

/// So many steps in a row without a finite loss or gradient end the run: the learning rate is far too high.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// A step that the device works on, and what will be said about it.
pub(super) struct QueuedStep {
    shape: StepShape,
    epoch: f64,
    lr: f64,
    data_wait_s: f64,
    names: Vec<String>,
}

impl QueuedStep {
    pub fn new(batch: HostBatch, epoch: f64, lr: f64) -> QueuedStep {
        let HostBatch { shape, data_wait_s, names, .. } = batch;
        QueuedStep { shape, epoch, lr, data_wait_s, names }
    }
}

impl Trainer {
    /// Waits for the step that was queued last.
    pub(super) fn finish_steps(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let Some(last) = self.queued.take() else { return Ok(()) };
        let result = self.road.finish()?;
        self.step_done(Some(last), result, progress)
    }

    /// Counts and reports a step, if there is one.
    pub(super) fn step_done(
        &mut self,
        step: Option<QueuedStep>,
        result: Option<StepResult>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Some((step, result)) = step.zip(result) else { return Ok(()) };
        self.count(step.shape.clips as u64, &result);
        self.report(&step, &result, progress)
    }

    fn count(&mut self, clips: u64, result: &StepResult) {
        let state = &mut self.state;
        state.iteration += 1;
        state.iteration_in_epoch += 1;
        state.clips += clips;
        match result.loss {
            Some(loss) => {
                state.has_momentum = true;
                state.skipped_in_a_row = 0;
                state.epoch_clips += clips;
                state.epoch_loss_sum += loss * clips as f64;
                let [top1, top5] = result.hits.unwrap_or_default();
                state.epoch_hits += top1 as u64;
                state.epoch_hits_top5 += top5 as u64;
            }
            None => {
                state.skipped_steps += 1;
                state.skipped_in_a_row += 1;
            }
        }
    }

    /// Log line, watcher, and the end of a run whose loss stays non-finite.
    fn report(&mut self, queued: &QueuedStep, result: &StepResult, progress: &mut dyn Progress) -> Result<()> {
        let &QueuedStep { ref shape, epoch, lr, data_wait_s, ref names } = queued;
        let seconds = result.seconds;
        self.eta.step_done(shape, seconds);
        let step = Iteration {
            iteration: self.state.iteration,
            epoch,
            shape: [shape.clips, shape.frames, shape.height_px],
            splits: shape.splits,
            loss: result.loss,
            lr,
            grad_norm: result.grad_norm,
            clips_per_s: shape.clips as f64 / seconds,
            data_wait_s,
            busy: Some(result.busy_s / seconds),
            upload_bytes_per_s: Some(result.upload.bytes as f64 / seconds),
            wall_s: self.clock.wall_s(),
            cpu_s: self.clock.cpu_s(),
            skipped: result.loss.is_none(),
        };
        self.log.write(&Line::Iteration(step.clone()))?;
        progress.step(&StepReport {
            step: &step,
            total_iterations: self.total_iterations,
            total_epochs: self.schedule.max_epoch() as u64,
            eta_s: self.eta.seconds(),
            train_top1: self.epoch_top1(),
            val_top1: self.state.val_top1,
        });
        let fed = Fed { seconds, busy_s: result.busy_s, data_wait_s, upload: result.upload };
        if let Some(warning) = self.feeding.step(fed, self.train.threads()) {
            progress.message(&warning);
        }
        if let Some(loss) = result.loss {
            let step = stats::Step {
                iteration: [self.state.iteration_in_epoch, self.iterations_of(self.state.epoch)],
                clips: shape.clips,
                loss,
                hits: result.hits,
                grad_norm: result.grad_norm,
                lr,
                seconds,
                data_wait_s,
                eta_s: self.eta.seconds(),
            };
            return self.stats.step(self.state.epoch, &step);
        }
        let iteration = self.state.iteration;
        self.log.write(&Line::Skipped { iteration, clips: names.clone() })?;
        progress.message(&format!(
            "warning: iteration {iteration} skipped: its loss or a gradient is not finite; clips: {}",
            names.join(", ")
        ));
        let max_skipped = max_skipped(result.loss_scale);
        if self.state.skipped_in_a_row < max_skipped {
            return Ok(());
        }
        Err(Error::Diverged(format!(
            "the loss or a gradient was not finite in {max_skipped} steps in a row, up to iteration {iteration}: {}; the clips are \
             named in {}",
            advice(result.loss_scale),
            self.output.log().display()
        )))
    }

    pub(super) fn epoch_top1(&self) -> Option<f64> {
        let state = &self.state;
        let has_hits = state.epoch_clips > 0 && !self.train.source().is_multi_label();
        has_hits.then(|| 100.0 * state.epoch_hits as f64 / state.epoch_clips as f64)
    }
}

/// How many steps in a row may come to nothing. A network with a loss scale may have to halve it down to 1 before a gradient fits f16.
fn max_skipped(loss_scale: Option<f32>) -> u64 {
    MAX_SKIPPED_IN_A_ROW + loss_scale.map_or(0, |_| FIRST_LOSS_SCALE.log2() as u64)
}

/// What to do about steps that stay non-finite; `loss_scale` is what it has come to, where there is one. A bad step of which the
/// gradients were at fault halved it, so that a learning rate is to blame only where f32's range does not help.
fn advice(loss_scale: Option<f32>) -> String {
    let rate = "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_EPOCHS";
    match loss_scale {
        None => rate.into(),
        Some(scale) => format!(
            "the loss scale stands at {scale} (it begins at {FIRST_LOSS_SCALE} and halves with every overflow of a gradient): f16 ends at \
             65504, so begin anew with VCYCLE.PRECISION bf16, which has the range of f32 and needs no scale; if that diverges too, {rate}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_of_the_precision_where_there_is_a_loss_scale() {
        let (plain, scaled) = (advice(None), advice(Some(0.5)));
        assert_eq!(plain, "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_EPOCHS");
        for part in ["stands at 0.5 ", "begins at 65536", "VCYCLE.PRECISION bf16", plain.as_str()] {
            assert!(scaled.contains(part), "{part}: {scaled}");
        }
    }

    #[test]
    fn a_loss_scale_may_halve_to_one_before_the_run_ends() {
        assert_eq!((max_skipped(None), max_skipped(Some(64.0))), (10, 26));
        assert_eq!(FIRST_LOSS_SCALE / 2f32.powi(16), 1.0);
    }
}
