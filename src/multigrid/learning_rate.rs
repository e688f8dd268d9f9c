//! The learning rate of a fractional epoch (PySlowFast's lr_policy.py).

use crate::config::{LrPolicy, Solver};

/// A policy with all of its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct LearningRate {
    /// Epochs at which the rate changes, starting with 0.
    pub steps: Vec<usize>,
    /// Rates over `base_rate`, one for each step; surplus ones are not used.
    pub relative_rates: Vec<f64>,
    /// SOLVER.BASE_LR.
    pub base_rate: f64,
    /// Epochs in all.
    pub max_epoch: usize,
    policy: LrPolicy,
    cosine_end: f64,
    cosine_offset: f64,
    warmup_epochs: f64,
    warmup_start: f64,
}

impl LearningRate {
    pub(super) fn of(solver: &Solver) -> LearningRate {
        LearningRate {
            steps: solver.steps.clone(),
            relative_rates: solver.lrs.clone(),
            base_rate: solver.base_lr,
            max_epoch: solver.max_epoch,
            policy: solver.lr_policy,
            cosine_end: solver.cosine_end_lr,
            cosine_offset: if solver.cosine_after_warmup { solver.warmup_epochs } else { 0.0 },
            warmup_epochs: solver.warmup_epochs,
            warmup_start: solver.warmup_start_lr,
        }
    }

    /// The rate at `epoch`: the policy's, or while warming up a straight line to what the policy says at the end of the warm-up.
    pub fn at(&self, epoch: f64) -> f64 {
        if epoch < self.warmup_epochs {
            let slope = (self.policy_at(self.warmup_epochs) - self.warmup_start) / self.warmup_epochs;
            return epoch * slope + self.warmup_start;
        }
        self.policy_at(epoch)
    }

    pub(super) fn is_cosine(&self) -> bool {
        self.policy == LrPolicy::Cosine
    }

    fn policy_at(&self, epoch: f64) -> f64 {
        match self.policy {
            LrPolicy::Cosine => {
                let progress = (epoch - self.cosine_offset) / (self.max_epoch as f64 - self.cosine_offset);
                let falling = ((std::f64::consts::PI * progress).cos() + 1.0) * 0.5;
                self.cosine_end + (self.base_rate - self.cosine_end) * falling
            }
            LrPolicy::StepsWithRelativeLrs => self.relative_rates[self.step(epoch)] * self.base_rate,
        }
    }

    /// The last step that `epoch` has reached; past the end of the run, the last.
    fn step(&self, epoch: f64) -> usize {
        let next = self.steps.iter().position(|&step| epoch < step as f64).unwrap_or(self.steps.len());
        next.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(warmup_epochs: f64, cosine_after_warmup: bool) -> LearningRate {
        let rates = Solver { base_lr: 0.9, cosine_end_lr: 0.1, warmup_start_lr: 0.01, ..Solver::default() };
        LearningRate::of(&Solver { max_epoch: 12, warmup_epochs, cosine_after_warmup, ..rates })
    }

    /// Half a cosine from 0.9 to 0.1 over 12 epochs, by hand: 0.1 + 0.4 (1 + cos(pi epoch / 12)).
    #[test]
    fn a_cosine_ends_where_it_should() {
        for (epoch, rate) in [(0.0, 0.9), (4.0, 0.7), (6.0, 0.5), (8.0, 0.3), (12.0, 0.1)] {
            assert!((cosine(0.0, false).at(epoch) - rate).abs() < 1e-12, "{epoch}");
        }
    }

    /// A straight line from 0.01 to the policy's rate at epoch 4: 0.7, or 0.9 where the cosine begins only then.
    #[test]
    fn a_cosine_begins_with_the_run_or_after_the_warm_up() {
        for (epoch, rate, rate_after) in [(0.0, 0.01, 0.01), (2.0, 0.355, 0.455), (4.0, 0.7, 0.9), (8.0, 0.3, 0.5)] {
            assert!((cosine(4.0, false).at(epoch) - rate).abs() < 1e-12, "{epoch}");
            assert!((cosine(4.0, true).at(epoch) - rate_after).abs() < 1e-12, "{epoch}");
        }
        assert!((cosine(4.0, true).at(12.0) - 0.1).abs() < 1e-12);
    }
}
