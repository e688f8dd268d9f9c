//! From the first step to the last: which step comes next, when to validate, save and stop.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::finished::QueuedStep;
use super::log::{Epoch, Line, Run};
use super::{Eta, Evaluation, Progress, Start, Summary, Trainer};
use crate::checkpoint::{Checkpoint, State};
use crate::error::{Error, Result};
use crate::model::{LossScale, Plan};
use crate::shape::StepShape;

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

/// When the last checkpoint was begun.
struct LastSave {
    at: Instant,
}

impl Trainer {
    /// Runs the schedule to its end, or until `stop` is set; then saves, and a resumed run goes on exactly there.
    ///
    /// # Errors
    /// Files that cannot be written, no usable clip, a loss that stays non-finite. Earlier checkpoints stay usable.
    pub fn run(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Outcome> {
        let outcome = self.run_schedule(progress, stop);
        // Also after an error: what is being saved is complete when the run has ended.
        let saved = self.saver.wait();
        let outcome = outcome?;
        saved.map(|()| outcome)
    }

    fn run_schedule(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Outcome> {
        self.begin(progress)?;
        let mut last_save = LastSave { at: Instant::now() };
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
        progress.message(&super::setup::describe_precision(&self.config, self.road.device()));
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
        self.road.network.plans().filter_map(Plan::gram_line).for_each(|line| progress.message(&line));
        let kept = self.state.standard_norms.join(", ");
        if !kept.is_empty() {
            progress.message(&format!("batch norm in standard form, too ill-conditioned for another: {kept}"));
        }
        let fraction = self.config.vcycle.memory_fraction;
        if let Some(bytes) = self.road.device().share_of_memory(fraction) {
            let given =
                format!("VCYCLE.MEMORY_FRACTION {fraction} gives {:.3} GiB", bytes as f64 / (1u64 << 30) as f64);
            let cut = self.road.network.plans().filter_map(Plan::micro_batches_line);
            cut.for_each(|line| progress.message(&format!("{line}: {given}")));
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

    /// The steps of the current epoch that are not done yet. False when `stop` was set. All steps have been counted, whatever ended it.
    fn train_epoch(
        &mut self,
        last_save: &mut LastSave,
        progress: &mut dyn Progress,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let trained = self.queue_epoch(last_save, progress, stop);
        if matches!(trained, Err(Error::Diverged(_))) {
            // What is still queued has no use.
            self.queued = None;
            return trained;
        }
        let finished = self.finish_steps(progress);
        let is_whole = trained?;
        finished.map(|()| is_whole)
    }

    fn queue_epoch(
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
            if self.queued.is_none() {
                self.road.begin()?;
            }
            let exact_epoch = epoch as f64 + i as f64 / steps.len() as f64;
            let lr = self.schedule.lr(exact_epoch);
            let Some(batch) = batches.next().transpose()? else {
                return Err(Error::Data(format!("the loader ended at step {i} of {} in epoch {epoch}", steps.len())));
            };
            let mix = self.mixup.map(|mixup| mixup.draw(epoch, i as u64, &batch.shape));
            let iteration = self.state.iteration + u64::from(self.queued.is_some());
            let result = self.road.train(&batch, mix.as_ref(), iteration, lr, &self.sgd)?;
            if let Some(captured) = self.road.network.take_captured() {
                progress.message(&captured.to_string());
            }
            let before = self.queued.replace(QueuedStep::new(batch, exact_epoch, lr));
            self.step_done(before, result, progress)?;
            let is_last = i + 1 == steps.len();
            if !is_last && self.is_save_due(last_save)? {
                self.finish_steps(progress)?;
                self.save(last_save)?;
            }
        }
        Ok(true)
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
        if is_checkpoint_epoch || evaluation.is_some() || self.is_save_due(last_save)? {
            self.save(last_save)?;
        }
        Ok(())
    }

    /// Whether enough time has passed since the last checkpoint that a kill would lose much. Tells the error of that one too.
    fn is_save_due(&mut self, last: &LastSave) -> Result<bool> {
        let interval = Duration::from_secs_f64(self.config.vcycle.checkpoint_minutes * 60.0);
        Ok(!self.saver.is_busy()? && last.at.elapsed() >= interval.max(self.saver.took() * SAVE_TIME_SHARE))
    }

    /// Copies the state to the host; a thread saves it while the training goes on, the log before it.
    fn save(&mut self, last_save: &mut LastSave) -> Result<()> {
        // One at a time, and an error of the one before comes first.
        self.saver.wait()?;
        let start = Instant::now();
        self.state.wall_s = self.clock.wall_s();
        self.state.cpu_s = self.clock.cpu_s();
        self.state.bad_clips = self.bad_clips();
        let copy = self.road.network.snapshot()?;
        if let Some(LossScale { scale, good_steps }) = copy.loss_scale() {
            // A network without one leaves that of the run before.
            (self.state.loss_scale, self.state.loss_scale_good_steps) = (Some(scale), good_steps);
        }
        let state = self.state.clone();
        let checkpoint = move || {
            let (model, momentum) = (copy.state_dict(), copy.optimizer_state().momentum);
            Checkpoint { state, model, momentum }
        };
        self.saver.begin(checkpoint, Some(self.log.file()?))?;
        self.saved_iteration = self.state.iteration;
        *last_save = LastSave { at: Instant::now() };
        tracing::debug!("checkpoint: training waited {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    /// Saves, and waits until it is on the disk.
    fn save_now(&mut self) -> Result<()> {
        self.save(&mut LastSave { at: Instant::now() })?;
        self.saver.wait()
    }

    /// When the clips gave out (a disk that is gone, nothing to validate on), what was trained up to there is saved first.
    fn saved_if_data_ended<T>(&mut self, result: Result<T>, progress: &mut dyn Progress) -> Result<T> {
        if let Err(Error::Data(_)) = &result
            && self.state.iteration > self.saved_iteration
        {
            match self.save_now() {
                Ok(()) => progress.message(&format!("saved at iteration {}", self.state.iteration)),
                Err(error) => progress.message(&format!("warning: {error}")),
            }
        }
        result
    }

    fn interrupted(&mut self, progress: &mut dyn Progress) -> Result<Outcome> {
        self.save_now()?;
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
        self.saver.wait()?;
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
