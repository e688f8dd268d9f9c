//! A training step: told by one copy, queued as a whole, heard of by another copy when the next one has been queued.

use super::Network;
use super::block::{Download, RING};
use super::graphs::Work;
use crate::device::Slice;
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::model::config::Loss;
use crate::model::plan::Mode;
use crate::ops::{batch_norm, sgd};
use crate::optimizer::SgdConfig;
use crate::shape::StepShape;

/// All that differs between two steps of one shape, but for the clips.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// What the clips show.
    pub targets: StepTargets<'a>,
    /// Selects the dropout mask.
    pub step_idx: u64,
    /// Learning rate.
    pub lr: f32,
}

/// What the clips of a training step are compared with.
#[derive(Clone, Copy, Debug)]
pub enum StepTargets<'a> {
    /// As many as the step has clips.
    Labels(&'a Labels),
    /// A target for every class of every clip, `[clips][classes]` (mixup, label smoothing).
    Soft(&'a [f32]),
}

/// What a training step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResults {
    /// Of each clip.
    pub losses: Vec<f32>,
    /// Clips whose label has the largest logit, and is among the five largest; `None` where clips do not have one label each.
    pub hits: Option<[u32; 2]>,
    /// `[clips][classes]`, where `hits` is `None`; otherwise empty.
    pub logits: Vec<f32>,
    /// Whether it was skipped, the gradient's norm, the loss scale of the step after it.
    pub state: sgd::State,
}

/// Of a step whose results were not taken yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    download: Download,
    has_hits: bool,
}

impl Network {
    /// Queues a whole training step of the clips in [`Network::inputs`]: forward, backward, optimizer, running statistics. Where a
    /// statistic, a loss or a gradient is not finite the device skips the step: no parameter and no running statistic changes. Nothing is
    /// waited for; [`Network::take_results`] tells what became of it, best when the next step has been queued.
    ///
    /// # Errors
    /// As [`Network::forward_backward`].
    pub fn train_step(&mut self, shape: StepShape, inputs: &StepInputs<'_>, config: &SgdConfig) -> Result<()> {
        let step = self.step_idx(Mode::Train, shape)?;
        self.prepare_update(config)?;
        self.upload_inputs(step, inputs)?;
        self.launch_repeated(step, Work::Step)?;
        self.running_changed();
        if self.pending.len() == RING {
            self.take_results()?;
        }
        let has_hits = self.model.config.loss == Loss::CrossEntropy && !self.is_soft;
        let classes = (!has_hits).then_some(self.model.config.num_classes);
        let download = self.block.download(&self.stream, shape.clips, classes)?;
        self.pending.push_back(Pending { download, has_hits });
        Ok(())
    }

    /// Launches of the prepared step number `step` and nothing else: no copy, no decision, and for all steps of a shape the same
    /// launches with the same arguments.
    pub(super) fn queue_step(&mut self, step: usize) -> Result<()> {
        self.run_training(step)?;
        self.queue_update()?;
        self.queue_running(step)
    }

    /// Of the oldest step whose results were not taken; waits for it. Those of the latest two are kept.
    pub fn take_results(&mut self) -> Result<Option<StepResults>> {
        let Some(Pending { download, has_hits }) = self.pending.pop_front() else { return Ok(None) };
        let of = self.block.results(&download)?;
        let results = StepResults {
            losses: of.losses.to_vec(),
            hits: has_hits.then_some([of.counters[0], of.counters[1]]),
            logits: of.logits.to_vec(),
            state: of.state,
        };
        self.batches_tracked += self.batches_of(&results.state);
        Ok(Some(results))
    }

    /// Batches that have moved the running statistics, those of steps included whose results were not taken.
    pub(super) fn count_batches_tracked(&self) -> Result<u64> {
        let of = |pending: &Pending| Ok(self.batches_of(&self.block.results(&pending.download)?.state));
        self.pending.iter().map(of).sum::<Result<u64>>().map(|sum| sum + self.batches_tracked)
    }

    fn batches_of(&self, state: &sgd::State) -> u64 {
        u64::from(state.skipped == 0 && !self.model.config.frozen_bn)
    }

    /// The running statistics, unless the optimizer has skipped the step.
    fn queue_running(&self, step: usize) -> Result<()> {
        let skipped = sgd::State::skipped(&self.block.state)?;
        self.move_running_statistics(step, Some(&skipped))
    }

    pub(super) fn move_running_statistics(&self, step: usize, skipped: Option<&Slice>) -> Result<()> {
        let (table, momentum) = (&self.steps[step].running, self.model.config.bn_momentum);
        batch_norm::update_running_all(&self.stream, table, momentum, skipped)
    }

    /// Queues the copy of what the step is told.
    pub(super) fn upload_inputs(&mut self, step: usize, inputs: &StepInputs<'_>) -> Result<()> {
        let (shape, classes) = (self.steps[step].plan.shape, self.model.config.num_classes);
        let mut block = |own: &[u32]| self.block.upload(&self.stream, own, inputs.step_idx, inputs.lr);
        match inputs.targets {
            StepTargets::Soft(targets) if targets.len() != shape.clips * classes => {
                let message = format!("expected {} (grid {shape}), got {}", shape.clips * classes, targets.len());
                return Err(Error::shape("targets", message));
            }
            StepTargets::Soft(targets) => block(bytemuck::cast_slice(targets))?,
            StepTargets::Labels(labels) => {
                check_labels(labels, shape, classes)?;
                match (self.model.config.loss, labels) {
                    (Loss::BinaryCrossEntropy, labels) => block(bytemuck::cast_slice(&labels.multi_hot(classes)))?,
                    (Loss::CrossEntropy, Labels::Classes(labels)) => block(labels)?,
                    (Loss::CrossEntropy, Labels::Sets(_)) => {
                        let message = "clips have sets of classes, cross_entropy takes one class a clip: use MODEL.LOSS_FUNC \
                                       bce_logit";
                        return Err(Error::Data(message.into()));
                    }
                }
            }
        }
        self.is_soft = matches!(inputs.targets, StepTargets::Soft(_));
        Ok(())
    }
}

fn check_labels(labels: &Labels, shape: StepShape, classes: usize) -> Result<()> {
    if let Some((clip, label)) = labels.out_of_range(classes) {
        return Err(Error::Data(format!(
            "clip {clip} of the batch has label {label}; the model has {classes} classes"
        )));
    }
    if labels.len() != shape.clips {
        let message = format!("expected {} (grid {shape}), got {}", shape.clips, labels.len());
        return Err(Error::shape("labels", message));
    }
    Ok(())
}
