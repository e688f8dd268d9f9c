//! What a schedule costs against the baseline: the same epochs' worth of training at the default shape alone.

use super::{Phase, Schedule};
use crate::config::Config;

/// Iterations and input volume (clips x frames x pixels) of a run and of its baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// A row for each phase, in the order of [`Schedule::phases`].
    pub phases: Vec<PhaseCost>,
    /// Iterations of the run.
    pub iterations: usize,
    /// Iterations of the baseline: SOLVER.MAX_EPOCH epochs at the default shape, unscaled.
    pub baseline_iterations: usize,
    /// Input volume of the run over the baseline's.
    pub volume: f64,
}

/// A phase's share.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseCost {
    /// Epochs at this shape, over all segments.
    pub epochs: usize,
    /// Iterations at each grid of the short cycle.
    pub iterations: Vec<usize>,
    /// Input volume of one step at each grid, over the default step's.
    pub step_volume: Vec<f64>,
}

impl Cost {
    /// The cost of `schedule` with `num_clips` training clips.
    pub fn of(schedule: &Schedule, config: &Config, num_clips: usize) -> Cost {
        let default_step = volume(config.train.batch_size, config.data.num_frames, config.data.train_crop_size);
        let baseline_iterations = (num_clips / config.train.batch_size).max(1) * config.solver.max_epoch;
        let mut phases: Vec<PhaseCost> = schedule
            .phases()
            .iter()
            .map(|phase| PhaseCost {
                epochs: 0,
                iterations: vec![0; phase.grids.len()],
                step_volume: phase
                    .step_shapes()
                    .map(|s| volume(s.clips, s.frames, s.height_px) / default_step)
                    .collect(),
            })
            .collect();
        for epoch in 0..schedule.max_epoch() {
            let phase = schedule.phase(epoch);
            let index = schedule.phases().iter().position(|p| p == phase).unwrap_or(0);
            phases[index].epochs += 1;
            for (position, count) in per_grid(phase, num_clips).into_iter().enumerate() {
                phases[index].iterations[position] += count;
            }
        }
        let steps = || phases.iter().flat_map(|p| p.iterations.iter().zip(&p.step_volume));
        let iterations = steps().map(|(n, _)| n).sum();
        let volume = steps().map(|(&n, v)| n as f64 * v).sum::<f64>() / baseline_iterations as f64;
        Cost { iterations, baseline_iterations, volume, phases }
    }

    /// Grids that the data set is too small for: an epoch ends before the short cycle reaches them.
    pub fn warnings(&self, schedule: &Schedule) -> Vec<String> {
        let mut warnings = vec![];
        for (phase, cost) in schedule.phases().iter().zip(&self.phases) {
            for (shape, _) in phase.step_shapes().zip(&cost.iterations).filter(|(_, iterations)| **iterations == 0) {
                let first = phase.step_shape(0).clips;
                warnings.push(format!(
                    "grid {shape} is never trained: an epoch starts with {first} clips and has no {} left for it",
                    shape.clips
                ));
            }
        }
        warnings
    }

    /// How many times fewer iterations the run has than the baseline.
    pub fn fewer_iterations(&self) -> f64 {
        self.baseline_iterations as f64 / self.iterations as f64
    }
}

fn volume(clips: usize, frames: usize, crop_px: usize) -> f64 {
    clips as f64 * frames as f64 * (crop_px as f64).powi(2)
}

/// Iterations of one epoch at each grid of the short cycle.
fn per_grid(phase: &Phase, num_clips: usize) -> Vec<usize> {
    let (all, cycle) = (phase.iterations(num_clips), phase.grids.len());
    (0..cycle).map(|position| all / cycle + usize::from(position < all % cycle)).collect()
}
