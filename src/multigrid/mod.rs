//! Multigrid training (Wu et al., CVPR 2020): which batch shape comes next, and with which learning rate.
//!
//! Pure arithmetic over small values; nothing here knows of data, devices or models. The rules and their order of
//! rounding are those of PySlowFast (slowfast/utils/multigrid.py, lr_policy.py, misc.py), with the short cycle's crop
//! clamped to the long cycle's and its batch factor to at least 1.
//!
//! | idea | type | file |
//! |---|---|---|
//! | long cycle: frames and crop change every few epochs | [`Segment`], [`Phase`] | `long_cycle.rs`, `phase.rs` |
//! | short cycle: the crop changes every iteration | [`GridShape`] | `phase.rs` |
//! | learning rate of a fractional epoch | [`LearningRate`] | `learning_rate.rs` |
//! | when to validate and save | [`Schedule`] | this file |
//! | what it costs against the baseline | [`Cost`] | `cost.rs` |
//!
//! ```
//! use vcycle::{config::Config, multigrid::Schedule};
//! # fn main() -> vcycle::Result<()> {
//! let yaml = "
//!   MULTIGRID: {LONG_CYCLE: True, SHORT_CYCLE: True}
//!   SOLVER: {LR_POLICY: steps_with_relative_lrs, STEPS: [0, 10, 20], MAX_EPOCH: 25}
//!   DATA: {NUM_FRAMES: 32}
//!   SLOWFAST: {ALPHA: 4}
//!   TRAIN: {BATCH_SIZE: 8}";
//! let schedule = Schedule::new(&Config::parse(yaml, "inline", &[])?)?;
//! let phase = schedule.phase(0);
//! assert_eq!(phase.step_shape(0).to_string(), "128x8x112"); // clips x frames x crop
//! assert_eq!(phase.step_shape(1).to_string(), "64x8x158");
//! # Ok(()) }
//! ```

mod cost;
mod learning_rate;
mod long_cycle;
mod phase;
mod plot;

pub use cost::{Cost, PhaseCost};
pub use learning_rate::LearningRate;
pub use long_cycle::Segment;
pub use phase::{BatchNormGroups, GridShape, Phase};

use crate::config::{Arch, Config};
use crate::shape::StepShape;
use crate::{Error, Result};

/// Shapes, learning rates and cadence of a whole run.
#[derive(Clone, Debug)]
pub struct Schedule {
    segments: Option<Vec<Segment>>,
    phases: Vec<Phase>,
    learning_rate: LearningRate,
    max_epoch: usize,
    eval_period: usize,
    checkpoint_period: usize,
    eval_freq: usize,
    evaluation_shape: StepShape,
}

impl Schedule {
    /// Plans the run that `config` asks for. `TRAIN.BATCH_SIZE`, `DATA.NUM_FRAMES` and `DATA.TRAIN_CROP_SIZE` are the default shape.
    ///
    /// # Errors
    /// [`Error::Config`] when values contradict each other, when a grid has no frame or no pixel, or when the frames of a SlowFast grid are no multiple of SLOWFAST.ALPHA.
    pub fn new(config: &Config) -> Result<Schedule> {
        config.check().map_err(Error::Config)?;
        let (solver, grid) = (&config.solver, &config.multigrid);
        let mut learning_rate = LearningRate::of(solver);
        let mut max_epoch = solver.max_epoch;
        let mut segments = None;
        if grid.long_cycle {
            let planned = long_cycle::segments(config)?;
            (learning_rate.steps, learning_rate.relative_rates) = long_cycle::learning_rates(&planned, solver.gamma);
            max_epoch = planned.last().map_or(max_epoch, |s| s.end_epoch);
            segments = Some(planned);
        } else if grid.short_cycle {
            let scaled = |epochs: &usize| (*epochs as f64 * grid.epoch_factor) as usize;
            learning_rate.steps = solver.steps.iter().map(scaled).collect();
            max_epoch = scaled(&max_epoch);
        }
        if max_epoch == 0 {
            let factor = grid.epoch_factor;
            return Err(Error::Config(format!(
                "MULTIGRID.EPOCH_FACTOR: expected at least one epoch in all, got {factor} x {}",
                solver.max_epoch
            )));
        }
        learning_rate.max_epoch = max_epoch;
        let phases = match &segments {
            Some(segments) => phase::of_segments(config, segments),
            None => vec![Phase::at_default_shape(config)],
        };
        let (t, s) = (config.data.num_frames, config.data.train_crop_size);
        let evaluation_shape = StepShape::square(config.test.batch_size, t, s, 1);
        let schedule = Schedule {
            segments,
            phases,
            learning_rate,
            max_epoch,
            eval_period: config.train.eval_period,
            checkpoint_period: config.train.checkpoint_period,
            eval_freq: grid.eval_freq,
            evaluation_shape,
        };
        schedule.check_frames(config)?;
        Ok(schedule)
    }

    fn check_frames(&self, config: &Config) -> Result<()> {
        let alpha = config.slowfast.alpha;
        if config.model.arch != Arch::SlowFast {
            return Ok(());
        }
        let grids = self.step_shapes().into_iter().chain([self.evaluation_shape]);
        for grid in grids {
            if alpha == 0 || !grid.frames.is_multiple_of(alpha) {
                return Err(Error::Config(format!(
                    "grid {grid} (B x T x S): a SlowFast network needs T to be a multiple of SLOWFAST.ALPHA ({alpha}), got T = {}; \
                     change DATA.NUM_FRAMES, SLOWFAST.ALPHA or MULTIGRID.LONG_CYCLE_FACTORS",
                    grid.frames
                )));
            }
        }
        Ok(())
    }

    /// The long cycle's segments in order, without the long cycle `None`. A segment that rounding left without epochs ends where
    /// the one before it ends.
    pub fn segments(&self) -> Option<&[Segment]> {
        self.segments.as_deref()
    }

    /// One phase for each distinct long-cycle shape that is trained, in order of first use; a single one without the long cycle.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// The phase of `epoch` (from 0); past the end, the last segment's.
    pub fn phase(&self, epoch: usize) -> &Phase {
        let Some(segments) = &self.segments else { return &self.phases[0] };
        let segment = segments.iter().find(|s| epoch < s.end_epoch).unwrap_or(&segments[segments.len() - 1]);
        let same = |p: &&Phase| p.frames == segment.frames && p.crop_px == segment.crop_px;
        // Every shape of a segment that holds an epoch has a phase.
        self.phases.iter().find(same).unwrap_or(&self.phases[self.phases.len() - 1])
    }

    /// Epochs in all.
    pub fn max_epoch(&self) -> usize {
        self.max_epoch
    }

    /// The learning rate's policy, with the steps and relative rates that this schedule gives it.
    pub fn learning_rate(&self) -> &LearningRate {
        &self.learning_rate
    }

    /// The learning rate at `epoch`, counted from 0 and fractional inside an epoch (epoch + iteration / iterations).
    pub fn lr(&self, epoch: f64) -> f64 {
        self.learning_rate.at(epoch)
    }

    /// Whether to validate after `epoch`: in a segment of the long cycle every `length / EVAL_FREQ + 1` epochs, counted back from
    /// its end; elsewhere every EVAL_PERIOD epochs; always at the end of the run.
    pub fn is_eval_epoch(&self, epoch: usize) -> bool {
        self.is_due(epoch, self.eval_period)
    }

    /// Whether to save after `epoch`: as [`Schedule::is_eval_epoch`], with CHECKPOINT_PERIOD.
    pub fn is_checkpoint_epoch(&self, epoch: usize) -> bool {
        self.is_due(epoch, self.checkpoint_period)
    }

    fn is_due(&self, epoch: usize, period: usize) -> bool {
        if epoch + 1 == self.max_epoch {
            return true;
        }
        let mut start = 0;
        for segment in self.segments.iter().flatten() {
            if epoch < segment.end_epoch {
                let period = (segment.end_epoch - start) / self.eval_freq + 1;
                return (segment.end_epoch - 1 - epoch).is_multiple_of(period);
            }
            start = segment.end_epoch;
        }
        (epoch + 1).is_multiple_of(period)
    }

    /// Every distinct shape of a training step, in order of first use: what a planner prepares before the first step.
    pub fn step_shapes(&self) -> Vec<StepShape> {
        let mut shapes = vec![];
        for shape in self.phases.iter().flat_map(Phase::step_shapes) {
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        shapes
    }

    /// The shape of validation: frames and crop of the default shape whatever the cycle does, TEST.BATCH_SIZE clips.
    pub fn evaluation_shape(&self) -> StepShape {
        self.evaluation_shape
    }

    /// Segments that hold no epoch because of rounding, and other things worth a word before a run. Never silent: print them.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![];
        let mut start = 0;
        for (index, segment) in self.segments.iter().flatten().enumerate() {
            if segment.end_epoch == start {
                warnings.push(format!(
                    "epoch rounding deletes segment {index} (stage {}, {segment}): it starts and ends at epoch {start}",
                    segment.stage
                ));
            }
            start = segment.end_epoch;
        }
        if self.segments.is_some() && self.learning_rate.is_cosine() {
            warnings.push(
                "SOLVER.LR_POLICY cosine does not scale the rate with the long cycle's batch; steps_with_relative_lrs does".into(),
            );
        }
        warnings
    }
}
