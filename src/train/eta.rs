//! How long the rest of the schedule takes, from the steps measured so far. Early epochs of a multigrid run are cheap and
//! late ones dear, so the mean step says nothing: cost is kept per shape, and per clip volume for shapes not seen yet.

use std::collections::HashMap;

use crate::shape::StepShape;

/// Weight of the newest step in a shape's running mean.
const NEWEST: f64 = 0.1;

/// Estimates the time that is left.
#[derive(Clone, Debug, Default)]
pub struct Eta {
    steps_left: HashMap<StepShape, u64>,
    seconds_per_step: HashMap<StepShape, f64>,
    evaluations_left: u64,
    seconds_per_evaluation: f64,
}

/// Elements of a step's input: what its cost is roughly proportional to.
fn volume(shape: &StepShape) -> f64 {
    (shape.clips * shape.frames * shape.height_px * shape.width_px) as f64
}

impl Eta {
    /// `steps` of each shape and `evaluations` lie ahead.
    pub fn new(steps: HashMap<StepShape, u64>, evaluations: u64) -> Eta {
        Eta { steps_left: steps, evaluations_left: evaluations, ..Eta::default() }
    }

    /// A step was done.
    pub fn step_done(&mut self, shape: &StepShape, seconds: f64) {
        if let Some(left) = self.steps_left.get_mut(shape) {
            *left = left.saturating_sub(1);
        }
        let mean = self.seconds_per_step.entry(*shape).or_insert(seconds);
        *mean += NEWEST * (seconds - *mean);
    }

    /// An evaluation was done.
    pub fn evaluation_done(&mut self, seconds: f64) {
        self.evaluations_left = self.evaluations_left.saturating_sub(1);
        self.seconds_per_evaluation = seconds;
    }

    /// Seconds that are left; none before the first step.
    pub fn seconds(&self) -> Option<f64> {
        let measured: f64 = self.seconds_per_step.values().sum();
        let measured_volume: f64 = self.seconds_per_step.keys().map(volume).sum();
        if measured_volume == 0.0 {
            return None;
        }
        let per_volume = measured / measured_volume;
        let of_shape = |shape| self.seconds_per_step.get(shape).copied().unwrap_or_else(|| volume(shape) * per_volume);
        let steps: f64 = self.steps_left.iter().map(|(shape, n)| *n as f64 * of_shape(shape)).sum();
        Some(steps + self.evaluations_left as f64 * self.seconds_per_evaluation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_ahead_cost_what_their_volume_says() {
        let (small, large) = (StepShape::square(1, 4, 16, 1), StepShape::square(1, 8, 32, 1));
        let mut eta = Eta::new(HashMap::from([(small, 3), (large, 2)]), 1);
        assert_eq!(eta.seconds(), None);
        eta.step_done(&small, 0.5);
        // Two more small ones, and two that are eight times as large.
        assert_eq!(eta.seconds(), Some(2.0 * 0.5 + 2.0 * 4.0));
        eta.step_done(&large, 3.0);
        eta.evaluation_done(1.0);
        assert_eq!(eta.seconds(), Some(2.0 * 0.5 + 3.0));
    }
}
