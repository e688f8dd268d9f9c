//! From the first step to the last: which step comes next, when to validate, save and stop.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::log::{Epoch, Iteration, Line, Run};
use super::step::StepResult;
use super::{Eta, Evaluation, Progress, Start, StepReport, Summary, Trainer, stats};
use crate::checkpoint::{Checkpoint, State};
use crate::clip::HostBatch;
use crate::error::{Error, Result};
use crate::shape::StepShape;

/// So many steps in a row without a finite loss end the run: the parameters themselves are no longer finite, or the
/// learning rate is far too high.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;
/// Saving between epochs takes at most one part in so many of the time.
const SAVE_TIME_SHARE: u32 = 50;

/// How a call of [`Trainer::run`] ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// False when the stop flag ended it; a checkpoint was saved then.
    pub finished: bool,
    /// The numbers in summary.json.
    pub summary: Summary,
}

/// When the last checkpoint was saved, and how long that took.
struct LastSave {
    at: Instant,
    took: Duration,
}

impl Trainer {
    /// Runs the schedule to its end, or until `stop` is set; then saves, and a resumed run goes on exactly there.
    ///
    /// # Errors
    /// Files that cannot be written, no usable clip, a loss that stays non-finite. Earlier checkpoints stay usable.
    pub fn run(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Outcome> {
        self.begin(progress)?;
        let mut last_save = LastSave { at: Instant::now(), took: Duration::ZERO };
        while (self.state.epoch as usize) < self.schedule.max_epoch() {
            let trained = self.train_epoch(&mut last_save, progress, stop);
            if !self.saved_if_data_ended(trained, progress)? {
                return self.interrupted(progress);
            }
            let mut evaluation = None;
            if self.schedule.is_eval_epoch(self.state.epoch as usize) {
                let start = Instant::now();
                let evaluated = self.evaluate(progress, stop);
                evaluation = self.saved_if_data_ended(evaluated, progress)?;
                if evaluation.is_none() {
                    return self.interrupted(progress);
                }
                self.eta.evaluation_done(start.elapsed().as_secs_f64());
            }
            self.end_epoch(evaluation, &mut last_save, progress)?;
        }
        self.finish(progress)
    }

    /// Says what is going to happen.
    fn begin(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let mut steps: HashMap<StepShape, u64> = HashMap::new();
        let (mut total, mut evaluations) = (0, 0);
        for epoch in 0..self.schedule.max_epoch() as u64 {
            let shapes = self.steps_of(epoch);
            total += shapes.len() as u64;
            let done = match epoch.cmp(&self.state.epoch) {
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => self.state.iteration_in_epoch as usize,
                std::cmp::Ordering::Greater => 0,
            };
            evaluations += u64::from(self.schedule.is_eval_epoch(epoch as usize));
            for shape in shapes.into_iter().skip(done) {
                *steps.entry(shape).or_default() += 1;
            }
        }
        self.eta = Eta::new(steps, evaluations);
        self.total_iterations = total;
        self.announce(progress);
        self.log.write(&Line::Run(Run {
            version: self.state.version.clone(),
            device: self.road.device().to_string(),
            seed: self.config.rng_seed as u64,
            iteration: self.state.iteration,
            total_iterations: total,
        }))
    }

    fn announce(&self, progress: &mut dyn Progress) {
        let (train, val) = (self.train.source(), self.val.source());
        progress.message(&format!(
            "data: {} training and {} validation clips, {} classes",
            train.len(),
            val.len(),
            self.config.model.num_classes
        ));
        progress.message(&format!(
            "resample: {}; optimizer: sgd; {} epochs, {} iterations; output: {}",
            self.config.vcycle.resample,
            self.schedule.max_epoch(),
            self.total_iterations,
            self.output.folder().display()
        ));
        for warning in self.schedule.warnings() {
            progress.message(&format!("warning: {warning}"));
        }
        let gpus = self.config.num_devices();
        if gpus > 1 {
            progress.message(&format!(
                "NUM_GPUS {gpus}, devices used 1: it takes each GPU's batch as further splits of its own, so that batch, \
                 learning rate and batch-norm groups stay those of the configuration"
            ));
        }
        for phase in self.schedule.phases() {
            let shapes: Vec<String> = phase.step_shapes().map(|s| s.to_string()).collect();
            progress.message(&format!(
                "from epoch {}: {} (clips x frames x crop), {} batch-norm splits",
                phase.first_epoch,
                shapes.join(", "),
                phase.splits
            ));
        }
        let State { iteration, epoch, .. } = self.state;
        match self.start {
            Start::Resume if iteration > 0 => {
                progress.message(&format!("resumed at iteration {iteration}, epoch {epoch}"));
            }
            Start::Resume => progress.message("nothing was saved to resume from: the run begins anew"),
            Start::New => {}
        }
        if let Some(told) = &self.begins_with {
            progress.message(told);
        }
    }

    /// The steps of the current epoch that are not done yet. False when `stop` was set.
    fn train_epoch(
        &mut self,
        last_save: &mut LastSave,
        progress: &mut dyn Progress,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let epoch = self.state.epoch;
        let steps = self.steps_of(epoch);
        let done = self.state.iteration_in_epoch as usize;
        let mut batches = self.train.train_epoch(epoch, &steps, done);
        for i in done..steps.len() {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let start = Instant::now();
            let exact_epoch = epoch as f64 + i as f64 / steps.len() as f64;
            let lr = self.schedule.lr(exact_epoch);
            let Some(batch) = batches.next().transpose()? else {
                return Err(Error::Data(format!("the loader ended at step {i} of {} in epoch {epoch}", steps.len())));
            };
            let mix = self.mixup.map(|mixup| mixup.draw(epoch, i as u64, &batch.shape));
            let result = self.road.train(&batch, mix.as_ref(), self.state.iteration, lr, &self.sgd)?;
            let seconds = start.elapsed().as_secs_f64();
            self.count(&batch, &result);
            self.report(&batch, &result, exact_epoch, lr, seconds, progress)?;
            let is_last = i + 1 == steps.len();
            if !is_last && self.is_save_due(last_save) {
                self.save(last_save)?;
            }
        }
        Ok(true)
    }

    fn count(&mut self, batch: &HostBatch, result: &StepResult) {
        let (state, clips) = (&mut self.state, batch.labels.len() as u64);
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
    fn report(
        &mut self,
        batch: &HostBatch,
        result: &StepResult,
        epoch: f64,
        lr: f64,
        seconds: f64,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let shape = &batch.shape;
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
            data_wait_s: batch.data_wait_s,
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
        if let Some(loss) = result.loss {
            let step = stats::Step {
                iteration: [self.state.iteration_in_epoch, self.iterations_of(self.state.epoch)],
                clips: shape.clips,
                loss,
                hits: result.hits,
                grad_norm: result.grad_norm,
                lr,
                seconds,
                data_wait_s: batch.data_wait_s,
                eta_s: self.eta.seconds(),
            };
            return self.stats.step(self.state.epoch, &step);
        }
        let iteration = self.state.iteration;
        self.log.write(&Line::Skipped { iteration, clips: batch.names.clone() })?;
        progress.message(&format!(
            "warning: iteration {iteration} skipped: its loss or a gradient is not finite; clips: {}",
            batch.names.join(", ")
        ));
        if self.state.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW {
            return Ok(());
        }
        Err(Error::Diverged(format!(
            "the loss or a gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to iteration {iteration}: lower \
             SOLVER.BASE_LR or lengthen SOLVER.WARMUP_EPOCHS; the clips are named in {}",
            self.output.log().display()
        )))
    }

    fn epoch_top1(&self) -> Option<f64> {
        let state = &self.state;
        let has_hits = state.epoch_clips > 0 && !self.train.source().is_multi_label();
        has_hits.then(|| 100.0 * state.epoch_hits as f64 / state.epoch_clips as f64)
    }

    fn end_epoch(
        &mut self,
        evaluation: Option<Evaluation>,
        last_save: &mut LastSave,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let state = &self.state;
        let line = Epoch {
            epoch: state.epoch + 1,
            train_loss: (state.epoch_clips > 0).then(|| state.epoch_loss_sum / state.epoch_clips as f64),
            train_top1: self.epoch_top1(),
            val_top1: evaluation.and_then(|e| e.top1),
            val_map: evaluation.and_then(|e| e.map),
            val_loss: evaluation.and_then(|e| e.loss),
            wall_s: self.clock.wall_s(),
            cpu_s: self.clock.cpu_s(),
        };
        self.log.write(&Line::Epoch(line.clone()))?;
        self.stats.epoch_end(state, self.train.source().is_multi_label(), evaluation.as_ref())?;
        progress.epoch(&line, self.schedule.max_epoch() as u64);
        let is_checkpoint_epoch = self.schedule.is_checkpoint_epoch(state.epoch as usize);
        let state = &mut self.state;
        if let Some(evaluation) = evaluation {
            let best = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a.max(b)).or(a).or(b);
            state.best_val_top1 = best(state.best_val_top1, evaluation.top1);
            state.best_val_top5 = best(state.best_val_top5, evaluation.top5);
            state.best_val_map = best(state.best_val_map, evaluation.map);
            (state.val_top1, state.val_map) = (evaluation.top1, evaluation.map);
        }
        state.epoch += 1;
        state.iteration_in_epoch = 0;
        (state.epoch_clips, state.epoch_loss_sum) = (0, 0.0);
        (state.epoch_hits, state.epoch_hits_top5) = (0, 0);
        if is_checkpoint_epoch || evaluation.is_some() || self.is_save_due(last_save) {
            self.save(last_save)?;
        }
        Ok(())
    }

    /// Whether enough time has passed since the last checkpoint that a kill would lose much.
    fn is_save_due(&self, last: &LastSave) -> bool {
        let interval = Duration::from_secs_f64(self.config.vcycle.checkpoint_minutes * 60.0);
        last.at.elapsed() >= interval.max(last.took * SAVE_TIME_SHARE)
    }

    fn save(&mut self, last_save: &mut LastSave) -> Result<()> {
        let start = Instant::now();
        // The log first: a checkpoint must not be newer than the log that belongs to it.
        self.log.sync()?;
        self.state.wall_s = self.clock.wall_s();
        self.state.cpu_s = self.clock.cpu_s();
        self.state.bad_clips = self.bad_clips();
        let network = &self.road.network;
        let (model, momentum) = (network.state_dict()?, network.optimizer_state()?.momentum);
        self.store.save(&Checkpoint { state: self.state.clone(), model, momentum })?;
        self.saved_iteration = self.state.iteration;
        *last_save = LastSave { at: Instant::now(), took: start.elapsed() };
        Ok(())
    }

    /// When the clips gave out (a disk that is gone, nothing to validate on), what was trained up to there is saved first.
    fn saved_if_data_ended<T>(&mut self, result: Result<T>, progress: &mut dyn Progress) -> Result<T> {
        if let Err(Error::Data(_)) = &result
            && self.state.iteration > self.saved_iteration
        {
            match self.save(&mut LastSave { at: Instant::now(), took: Duration::ZERO }) {
                Ok(()) => progress.message(&format!("saved at iteration {}", self.state.iteration)),
                Err(error) => progress.message(&format!("warning: {error}")),
            }
        }
        result
    }

    fn interrupted(&mut self, progress: &mut dyn Progress) -> Result<Outcome> {
        self.save(&mut LastSave { at: Instant::now(), took: Duration::ZERO })?;
        let State { iteration, epoch, .. } = self.state;
        progress.message(&format!("stopped at iteration {iteration}, epoch {epoch}; saved, go on with --resume"));
        self.end(false)
    }

    fn finish(&mut self, progress: &mut dyn Progress) -> Result<Outcome> {
        let outcome = self.end(true)?;
        let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.2}%"));
        let score = match self.train.source().is_multi_label() {
            true => format!("mAP {}", percent(outcome.summary.val_map)),
            false => format!("top1 {}", percent(outcome.summary.val_top1)),
        };
        let folder = self.output.folder().display();
        progress.message(&format!("done: val {score}; {folder} holds log, checkpoints, summary and report"));
        Ok(outcome)
    }

    fn end(&mut self, finished: bool) -> Result<Outcome> {
        let state = &self.state;
        let summary = Summary {
            val_top1: state.val_top1,
            best_val_top1: state.best_val_top1,
            val_map: state.val_map,
            best_val_map: state.best_val_map,
            wall_s: self.clock.wall_s(),
            cpu_s: self.clock.cpu_s(),
            clips: state.clips,
            iterations: state.iteration,
            skipped_steps: state.skipped_steps,
            bad_clips: self.bad_clips().len() as u64,
            device: self.road.device().to_string(),
            epochs: state.epoch,
            finished,
            seed: self.config.rng_seed as u64,
            version: state.version.clone(),
        };
        self.output.write_summary(&summary)?;
        super::report::write(self.output.folder())?;
        Ok(Outcome { finished, summary })
    }
}
