//! A long-cycle shape with its short cycle: batches, crops, batch-norm groups and sampling ranges.

use super::Segment;
use crate::config::{Config, NormType};
use crate::shape::StepShape;

/// Which clips share batch-norm statistics, in PySlowFast's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNormGroups {
    /// BN.NORM_TYPE.
    pub norm_type: NormType,
    /// Groups of one GPU's clips; 1 unless sub_batchnorm.
    pub splits: usize,
    /// GPUs that form one group; 1 unless sync_batchnorm.
    pub sync_devices: usize,
}

impl BatchNormGroups {
    /// What the configuration says, where no long cycle changes the batch.
    fn configured(config: &Config) -> BatchNormGroups {
        let (norm_type, bn) = (config.bn.norm_type, &config.bn);
        BatchNormGroups {
            norm_type,
            splits: if norm_type == NormType::SubBatchNorm { bn.num_splits } else { 1 },
            sync_devices: if norm_type == NormType::SyncBatchNorm { bn.num_sync_devices } else { 1 },
        }
    }

    /// Groups of about `base_size` clips, for `clips` on each GPU.
    fn of_size(clips: f64, base_size: usize) -> BatchNormGroups {
        let factor = clips / base_size as f64;
        if factor < 1.0 {
            let sync_devices = (1.0 / factor) as usize;
            BatchNormGroups { norm_type: NormType::SyncBatchNorm, splits: 1, sync_devices }
        } else if factor > 1.0 {
            BatchNormGroups { norm_type: NormType::SubBatchNorm, splits: factor as usize, sync_devices: 1 }
        } else {
            BatchNormGroups { norm_type: NormType::BatchNorm, splits: 1, sync_devices: 1 }
        }
    }

    /// Groups of the whole batch: what one device makes of `num_gpus` GPUs' groups. At least 1.
    pub fn on_one_device(&self, num_gpus: usize) -> usize {
        (num_gpus * self.splits / self.sync_devices).max(1)
    }
}

/// The grid of one position of the short cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridShape {
    /// Clips on each of NUM_GPUS GPUs.
    pub clips_per_gpu: usize,
    /// Rows and columns of the crop, px.
    pub crop_px: usize,
    /// Short side after the random resize: smallest and largest, px. The smallest shrinks with the crop.
    pub jitter_scales: [usize; 2],
}

/// Everything that stays the same while the long cycle stands at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// First epoch that uses it.
    pub first_epoch: usize,
    /// Frames, T.
    pub frames: usize,
    /// Crop of the long cycle, S, px.
    pub crop_px: usize,
    /// Clips at that crop over all GPUs, B.
    pub clips: usize,
    /// Batch-norm groups, as PySlowFast would configure its GPUs.
    pub batch_norm: BatchNormGroups,
    /// Groups of a whole batch on one device: the number of splits of every step of this phase.
    pub splits: usize,
    /// Distance of two frames in the source, smallest and largest, frames; a clip draws an integer from it, both ends included.
    pub sampling_rates: [usize; 2],
    /// The short cycle's grids: three, or without the short cycle the one.
    pub grids: Vec<GridShape>,
    num_gpus: usize,
}

impl Phase {
    /// The single phase of a run without a long cycle.
    pub(super) fn at_default_shape(config: &Config) -> Phase {
        let groups = BatchNormGroups::configured(config);
        Phase::build(config, 0, [1, config.data.num_frames, config.data.train_crop_size], groups)
    }

    fn build(config: &Config, first_epoch: usize, shape: [usize; 3], batch_norm: BatchNormGroups) -> Phase {
        let [batch_factor, frames, crop_px] = shape;
        let num_gpus = config.num_devices();
        let clips = batch_factor * config.train.batch_size;
        let rate = config.data.sampling_rate;
        Phase {
            first_epoch,
            frames,
            crop_px,
            clips,
            batch_norm,
            splits: batch_norm.on_one_device(num_gpus),
            // Coarser in time: some clips keep the default's span, some its distance of frames.
            sampling_rates: [rate, rate * (config.data.num_frames / frames)],
            grids: grids(config, clips / num_gpus, crop_px),
            num_gpus,
        }
    }

    /// The shape of the long cycle, without the short cycle.
    pub fn long_cycle_shape(&self) -> StepShape {
        StepShape::square(self.clips, self.frames, self.crop_px, self.splits)
    }

    /// The shape of iteration `iteration` (from 0) of an epoch; the short cycle starts anew with every epoch.
    pub fn step_shape(&self, iteration: usize) -> StepShape {
        let grid = &self.grids[iteration % self.grids.len()];
        StepShape::square(grid.clips_per_gpu * self.num_gpus, self.frames, grid.crop_px, self.splits)
    }

    /// Shapes of a whole short cycle.
    pub fn step_shapes(&self) -> impl Iterator<Item = StepShape> + '_ {
        (0..self.grids.len()).map(|i| self.step_shape(i))
    }

    /// Short side after the random resize at iteration `iteration`, smallest and largest, px.
    pub fn jitter_scales(&self, iteration: usize) -> [usize; 2] {
        self.grids[iteration % self.grids.len()].jitter_scales
    }

    /// Iterations of an epoch over `num_clips`: full batches in the order of the short cycle, what is left over is dropped.
    /// At least 1: a batch larger than the data set takes some clips twice.
    pub fn iterations(&self, num_clips: usize) -> usize {
        let cycle = self.first_clip(self.grids.len());
        let mut iterations = num_clips / cycle * self.grids.len();
        let mut left = num_clips % cycle;
        for shape in self.step_shapes() {
            if left < shape.clips {
                break;
            }
            left -= shape.clips;
            iterations += 1;
        }
        iterations.max(1)
    }

    /// Clips that an epoch has used before iteration `iteration`.
    pub fn first_clip(&self, iteration: usize) -> usize {
        let cycle = self.grids.len();
        let clips = |n: usize| self.step_shapes().take(n).map(|s| s.clips).sum::<usize>();
        iteration / cycle * clips(cycle) + clips(iteration % cycle)
    }
}

/// The phases of a long cycle, one a distinct shape, in order of their first epoch.
pub(super) fn of_segments(config: &Config, segments: &[Segment]) -> Vec<Phase> {
    let mut phases: Vec<Phase> = vec![];
    let mut start = 0;
    for segment in segments {
        let known = phases.iter().any(|p| p.frames == segment.frames && p.crop_px == segment.crop_px);
        if !known && segment.end_epoch > start {
            let clips_per_gpu = (segment.batch_factor * config.train.batch_size) as f64 / config.num_devices() as f64;
            let groups = BatchNormGroups::of_size(clips_per_gpu, config.multigrid.bn_base_size);
            let shape = [segment.batch_factor, segment.frames, segment.crop_px];
            phases.push(Phase::build(config, start, shape, groups));
        }
        start = segment.end_epoch;
    }
    phases
}

/// The short cycle's grids for `clips_per_gpu` clips at a crop of `crop_px`.
fn grids(config: &Config, clips_per_gpu: usize, crop_px: usize) -> Vec<GridShape> {
    let default_px = config.data.train_crop_size as f64;
    let grid = |clips_per_gpu: usize, crop_px: usize| {
        let [smallest, largest] = config.data.train_jitter_scales;
        let smallest = (smallest as f64 * crop_px as f64 / default_px).round_ties_even() as usize;
        GridShape { clips_per_gpu, crop_px, jitter_scales: [smallest, largest] }
    };
    let mut grids = vec![];
    if config.multigrid.short_cycle {
        for factor in config.multigrid.short_cycle_factors {
            // Sizes are relative to the default crop, the batch to the long cycle's: 16/8/8, 8/4/4, 8/4/2, 4/2/1 times B.
            let short_px = factor * default_px;
            let more = (crop_px as f64 / short_px).powi(2).round_ties_even() as usize;
            // Never larger than the long cycle's crop, never fewer clips; and at least one pixel.
            let short_px = (short_px.round_ties_even() as usize).clamp(1, crop_px);
            grids.push(grid(clips_per_gpu * more.max(1), short_px));
        }
    }
    grids.push(grid(clips_per_gpu, crop_px));
    grids
}
