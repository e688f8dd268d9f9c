//! One step, stage by stage: the data's road.

use super::mixup::Mix;
use crate::clip::{HostBatch, HostClip};
use crate::device::{Device, Event, Pinned};
use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::metrics::count_top_k;
use crate::model::{Loss, Mode, Network, StepInputs, StepTargets};
use crate::ops::mixup;
use crate::ops::resample::{self, Pathway, Resample};
use crate::optimizer::SgdConfig;
use crate::shape::StepShape;
use crate::upload::{Cost, Upload};

/// The stages after the loader, ready for every shape of a run.
pub(crate) struct Road {
    pub network: Network,
    upload: Upload,
    resample: Resample,
    /// Clips x frames of the largest shape.
    largest_frames: usize,
    /// The step whose results were not read yet.
    queued: Option<Queued>,
    /// Where the step before it ended.
    last_end: Event,
    /// The evaluation whose logits were not read yet.
    queued_eval: Option<QueuedEval>,
    /// Memory for the logits of the next one.
    spare: Option<Pinned>,
}

/// An evaluation that was queued.
struct QueuedEval {
    logits: Pinned,
    labels: Labels,
}

/// What the results of a step are read with.
struct Queued {
    /// The clips are there.
    start: Event,
    end: Event,
    upload: Cost,
    labels: Labels,
    mix: Option<Mix>,
}

/// What a training step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepResult {
    /// Mean loss of the batch; `None` where it, a statistic or a gradient was not finite, and the step therefore without effect.
    pub loss: Option<f64>,
    /// l2 norm of the gradient before clipping, where the step had an effect.
    pub grad_norm: Option<f64>,
    /// What the loss of the next step is multiplied with, where gradients are f16.
    pub loss_scale: Option<f32>,
    /// Clips whose label has the largest logit, and is among the five largest; `None` where they have several labels.
    pub hits: Option<[usize; 2]>,
    /// From the end of the step before to its own.
    pub seconds: f64,
    /// Of these, the device worked: from the first launch to the last.
    pub busy_s: f64,
    /// What bringing its clips up cost.
    pub upload: Cost,
}

/// What an evaluation step found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EvalResult {
    /// Sum of the clips' losses.
    pub loss_sum: f64,
    /// `[clips][classes]`.
    pub logits: Vec<f32>,
    /// What the clips are labelled with.
    pub labels: Labels,
}

impl Road {
    /// Plans all shapes and allocates what the largest of them need. After that a change of shape costs nothing.
    pub fn new(mut network: Network, resample: Resample, train: &[StepShape], eval: &[StepShape]) -> Result<Road> {
        network.prepare(train, eval)?;
        let device = network.device().clone();
        let largest_frames = train.iter().chain(eval).map(|s| s.clips * s.frames).max().unwrap_or(0);
        let (upload, last_end) = (Upload::new(&device)?, network.stream().record()?);
        Ok(Road { network, upload, resample, largest_frames, queued: None, last_end, queued_eval: None, spare: None })
    }

    /// Steps from here on are timed from now: nothing is under way.
    pub fn begin(&mut self) -> Result<()> {
        self.last_end = self.network.stream().record()?;
        Ok(())
    }

    /// Queues a training step, the `iteration`-th, of clips that are blended as `mix` says; then waits for the step before and returns what
    /// that one did. Where the loss, a statistic or a gradient is not finite nothing changes: no parameter, no running statistic.
    pub fn train(
        &mut self,
        batch: &HostBatch,
        mix: Option<&Mix>,
        iteration: u64,
        lr: f64,
        sgd: &SgdConfig,
    ) -> Result<Option<StepResult>> {
        let (shape, labels) = (batch.shape, &batch.labels);
        let (start, upload) = self.fill_inputs(Mode::Train, shape, &batch.clips)?;
        let mut soft = vec![];
        if let (Some(mix), Labels::Classes(labels)) = (mix, labels) {
            for input in self.network.inputs(Mode::Train, shape)? {
                let blend = |blend| mixup::blend(self.network.stream(), blend, &input.tensor);
                mix.blend.as_ref().map_or(Ok(()), blend)?;
            }
            soft = mix.targets(labels, self.classes());
        }
        let targets = if soft.is_empty() { StepTargets::Labels(labels) } else { StepTargets::Soft(&soft) };
        let inputs = StepInputs { targets, step_idx: iteration, lr: lr as f32 };
        self.network.train_step(shape, &inputs, sgd)?;
        let end = self.network.stream().record()?;
        let queued = Queued { start, end, upload, labels: labels.clone(), mix: mix.cloned() };
        self.queued.replace(queued).map(|before| self.result_of(before)).transpose()
    }

    /// Waits for the step that was queued last, and returns what it did.
    pub fn finish(&mut self) -> Result<Option<StepResult>> {
        self.queued.take().map(|last| self.result_of(last)).transpose()
    }

    fn result_of(&mut self, Queued { start, end, upload, labels, mix }: Queued) -> Result<StepResult> {
        let never = || Error::shape("training step", "its results were taken by someone else");
        let results = self.network.take_results()?.ok_or_else(never)?;
        let (seconds, busy_s) = (self.last_end.elapsed_ms(&end)? / 1e3, start.elapsed_ms(&end)? / 1e3);
        self.last_end = end;
        let is_taken = results.state.skipped == 0;
        let hits = match (results.hits, labels) {
            (Some(hits), _) => Some(hits.map(|n| n as usize)),
            (None, Labels::Classes(labels)) => {
                let (mut logits, classes) = (results.logits, self.classes());
                let labels = mix.map_or_else(|| labels.clone(), |mix| mix.merge(&mut logits, &labels, classes));
                Some([count_top_k(&logits, classes, &labels, 1)?, count_top_k(&logits, classes, &labels, 5)?])
            }
            (None, Labels::Sets(_)) => None,
        };
        let mean = results.losses.iter().map(|&l| f64::from(l)).sum::<f64>() / results.losses.len() as f64;
        Ok(StepResult {
            loss: is_taken.then_some(mean),
            grad_norm: is_taken.then_some(f64::from(results.state.grad_norm)),
            loss_scale: self.network.scales_loss().then_some(results.state.loss_scale),
            hits,
            seconds,
            busy_s,
            upload,
        })
    }

    /// The forward half of a training step, for its batch-norm statistics.
    pub fn forward_train(&mut self, batch: &HostBatch) -> Result<()> {
        self.fill_inputs(Mode::Train, batch.shape, &batch.clips)?;
        self.network.queue_forward_train(batch.shape, &batch.labels, 0).map(drop)
    }

    /// An evaluation step at the prepared `shape`; `batch` may hold fewer clips.
    ///
    /// It is queued; what is returned is the result of the one before.
    pub fn eval(&mut self, shape: StepShape, batch: HostBatch) -> Result<Option<EvalResult>> {
        self.fill_inputs(Mode::Eval, shape, &batch.clips)?;
        let logits = self.network.queue_eval_logits(shape)?;
        // The memory of the batch before the last: its result was returned.
        let mut memory = match self.spare.take() {
            Some(memory) if memory.len() >= logits.len_bytes() => memory,
            _ => Pinned::zeroed(self.device(), logits.len_bytes())?,
        };
        self.network.stream().download(&logits, &mut memory)?;
        let queued = QueuedEval { logits: memory, labels: batch.labels };
        self.queued_eval.replace(queued).map(|before| self.eval_result(before)).transpose()
    }

    /// Waits for the evaluation that was queued last, if there is one.
    pub fn finish_eval(&mut self) -> Result<Option<EvalResult>> {
        self.queued_eval.take().map(|last| self.eval_result(last)).transpose()
    }

    fn eval_result(&mut self, QueuedEval { logits: memory, labels }: QueuedEval) -> Result<EvalResult> {
        let classes = self.classes();
        let logits: Vec<f32> = bytemuck::cast_slice(&memory.bytes()?[..4 * labels.len() * classes]).to_vec();
        self.spare = Some(memory);
        let loss = |(clip, row)| match self.network.model().config.loss {
            Loss::CrossEntropy => labels.of(clip).first().map_or(0.0, |&label| cross_entropy(row, label as usize)),
            Loss::BinaryCrossEntropy => binary_cross_entropy(row, labels.of(clip)),
        };
        let loss_sum = logits.chunks_exact(classes).enumerate().map(loss).sum();
        Ok(EvalResult { loss_sum, logits, labels })
    }

    /// Class scores `[clips][classes]` of `clips`, as many as the prepared `shape` has or fewer.
    pub fn scores(&mut self, shape: StepShape, clips: &[HostClip]) -> Result<Vec<f32>> {
        self.fill_inputs(Mode::Eval, shape, clips)?;
        let mut scores = self.network.forward_eval(shape)?;
        scores.truncate(clips.len() * self.classes());
        Ok(scores)
    }

    /// Upload and resample: decoded clips become the inputs of all pathways. Returns when the device has the clips, and what that cost.
    fn fill_inputs(&mut self, mode: Mode, shape: StepShape, clips: &[HostClip]) -> Result<(Event, Cost)> {
        let inputs = self.network.inputs(mode, shape)?;
        // The last batch of an evaluation may be smaller than planned.
        let outputs = inputs.iter().map(|i| i.tensor.clips(0, clips.len())).collect::<Result<Vec<_>>>()?;
        let pathways: Vec<Pathway<'_>> = inputs
            .iter()
            .zip(&outputs)
            .map(|(input, output)| Pathway { output, frame_indices: &input.frame_indices })
            .collect();
        let num_frames = pathways.iter().map(|p| p.frame_indices.len()).sum();
        let table_bytes = resample::workspace_bytes(clips.len(), num_frames);
        let largest = self.largest_frames as f64 / (clips.len().max(1) * shape.frames) as f64;
        let stream = self.network.stream();
        let batch = self.upload.batch(stream, clips, largest, table_bytes, |clips, table| {
            resample::write_table(clips, &pathways, table)
        })?;
        let start = stream.record()?;
        resample::forward_with_table(stream, &self.resample, &batch.clips, &pathways, &batch.table)?;
        self.upload.is_read(stream)?;
        Ok((start, batch.cost))
    }

    /// Classes of the model.
    pub fn classes(&self) -> usize {
        self.network.model().config.num_classes
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.network.device()
    }
}

/// `-log softmax(logits)[label]`, in f64.
fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    sum.ln() + largest - f64::from(logits[label])
}

/// The mean over all classes of `-ln sigmoid(logit)` where the clip has the class, otherwise of `-ln sigmoid(-logit)`, in f64.
fn binary_cross_entropy(logits: &[f32], labels: &[u32]) -> f64 {
    let loss = |(class, &logit): (usize, &f32)| {
        let has_class = labels.binary_search(&(class as u32)).is_ok();
        let x = if has_class { -f64::from(logit) } else { f64::from(logit) };
        x.max(0.0) + (-x.abs()).exp().ln_1p()
    };
    logits.iter().enumerate().map(loss).sum::<f64>() / logits.len() as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Arch, Model, ModelConfig};
    use crate::ops::resample::{Axis, ClipGrid, Filter};

    const SHAPE: StepShape = StepShape::square(2, 4, 16, 1);

    fn road() -> Road {
        let config = ModelConfig { width_per_group: 4, ..ModelConfig::new(Arch::Slow, 18, 3) };
        let network = Network::new(&Device::Cpu, Model::new(&config).unwrap(), 1).unwrap();
        let resample = Resample { filter: Filter::Trilinear, mean: [0.45; 3], std: [0.225; 3] };
        Road::new(network, resample, &[SHAPE], &[]).unwrap()
    }

    /// Two clips of noise.
    fn batch() -> HostBatch {
        let grid = ClipGrid { t: Axis::identity(4), y: Axis::identity(16), x: Axis::identity(16), flip: false };
        let clip = |salt: usize| HostClip {
            bytes: Arc::new((0..4 * 16 * 16 * 3).map(|i| (i * 37 + i / 7 * salt) as u8).collect()),
            frames: 4,
            height_px: 16,
            width_px: 16,
            origin_px: (0, 0),
            grid,
        };
        let names = vec!["a".into(), "b".into()];
        let (clips, labels) = (vec![clip(11), clip(23)], vec![0, 2].into());
        HostBatch { shape: SHAPE, clips, labels, names, indices: vec![0, 1], data_wait_s: 0.0 }
    }

    /// A step, waited for.
    fn train(road: &mut Road, step: u64) -> StepResult {
        assert_eq!(road.train(&batch(), None, step, 0.1, &SgdConfig::default()).unwrap(), None);
        StepResult { seconds: 0.0, busy_s: 0.0, upload: Cost::default(), ..road.finish().unwrap().unwrap() }
    }

    /// A run with a bad step in its middle ends with the very numbers of a run without it.
    #[test]
    fn a_step_without_a_finite_loss_changes_nothing() {
        let (mut plain, mut disturbed) = (road(), road());
        let mean = disturbed.resample.mean;
        for step in 0..3 {
            let expected = train(&mut plain, step);
            assert!(expected.loss.is_some());
            assert_eq!(train(&mut disturbed, step), expected);
            // (byte / 255 - 3e38) / 0.225 is minus infinity in f32.
            disturbed.resample.mean = [3e38; 3];
            assert_eq!(train(&mut disturbed, step).loss, None);
            disturbed.resample.mean = mean;
        }
        assert!(plain.network.state_dict().unwrap() == disturbed.network.state_dict().unwrap());
        assert!(plain.network.optimizer_state().unwrap() == disturbed.network.optimizer_state().unwrap());
    }

    /// Batch norms of nothing but zeros: their outputs are finite, their gradients are infinite.
    #[test]
    fn a_step_without_finite_gradients_changes_nothing() {
        let mut road = road();
        let mut state = road.network.state_dict().unwrap();
        for array in &mut state {
            match (array.shape.len(), array.name.rsplit('.').next()) {
                (5, _) => array.values.fill(0.0),
                (2, _) => array.values.iter_mut().for_each(|w| *w *= 1e6),
                (1, Some("weight")) => array.values.fill(1e36),
                (1, Some("bias")) => array.values.fill(1.0),
                _ => {}
            }
        }
        road.network.load_state_dict(&state).unwrap();
        let before = (road.network.state_dict().unwrap(), road.network.optimizer_state().unwrap().momentum);
        let losses = road.network.forward_backward(SHAPE, &[0, 2], 0).unwrap();
        assert!(losses.iter().all(|l| l.is_finite()));
        let result = train(&mut road, 0);
        assert_eq!((result.loss, result.grad_norm), (None, None));
        assert!(road.network.is_update_skipped().unwrap() && road.network.last_grad_norm().unwrap().is_nan());
        let after = (road.network.state_dict().unwrap(), road.network.optimizer_state().unwrap().momentum);
        assert!(after == before);
    }

    /// Inputs so large that a variance overflows: losses and gradients may be finite, the running statistics would not be.
    #[test]
    fn a_step_without_finite_statistics_changes_nothing() {
        let mut road = road();
        road.resample.mean = [1e30; 3];
        let before = road.network.state_dict().unwrap();
        assert_eq!(train(&mut road, 0).loss, None);
        assert!(!road.network.are_statistics_finite(SHAPE).unwrap());
        assert!(road.network.state_dict().unwrap() == before);
    }

    #[test]
    fn cross_entropy_of_large_logits() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(cross_entropy(&[1000.0, 0.0], 0), 0.0);
        assert_eq!(cross_entropy(&[1000.0, 0.0], 1), 1000.0);
    }

    #[test]
    fn binary_cross_entropy_of_large_logits() {
        assert!((binary_cross_entropy(&[0.0, 0.0], &[1]) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(binary_cross_entropy(&[1000.0, -1000.0], &[0]), 0.0);
        assert_eq!(binary_cross_entropy(&[1000.0, -1000.0, 1000.0, -1000.0], &[1]), 750.0);
    }
}
