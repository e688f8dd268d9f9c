//! Precise batch-norm statistics (BN.USE_PRECISE_STATS): those of many batches under fixed weights, instead of a running
//! mean over weights that changed.

use super::Network;
use crate::error::{Error, Result};
use crate::model::plan::Mode;
use crate::shape::StepShape;

/// Sums over batches, one entry a channel of a norm.
pub struct PreciseStatistics {
    clips: f64,
    /// Mean of the batches' means and of their mean squares, by norm.
    mean: Vec<Vec<f64>>,
    mean_square: Vec<Vec<f64>>,
}

impl PreciseStatistics {
    /// No batches yet.
    pub fn new(network: &Network) -> PreciseStatistics {
        let zeros = || network.model.norms.iter().map(|n| vec![0.0; n.c]).collect();
        PreciseStatistics { clips: 0.0, mean: zeros(), mean_square: zeros() }
    }

    /// Adds the batch statistics that [`Network::forward_train`] left, weighted by the number of clips. Reads them back
    /// from the device.
    pub fn add(&mut self, network: &Network, shape: StepShape) -> Result<()> {
        let step = network.step(Mode::Train, shape)?;
        self.clips += shape.clips as f64;
        let weight = shape.clips as f64 / self.clips;
        for (op, norm, stats) in step.plan.statistics() {
            let stats = step.tensors[stats].memory().read::<f32>()?;
            let c = op.shape.c;
            for ch in 0..c {
                let (mut mean, mut square) = (0.0, 0.0);
                for (split, row) in stats.chunks_exact(3 * c).take(op.splits_used()).enumerate() {
                    let clips = op.clips_of_split(split).len();
                    let count = (clips * op.shape.num_positions() / op.shape.n) as f64;
                    let (m, unbiased_var) = (f64::from(row[ch]), f64::from(row[2 * c + ch]));
                    let share = clips as f64 / op.shape.n as f64;
                    mean += share * m;
                    square += share * (unbiased_var * (count - 1.0) / count + m * m);
                }
                self.mean[norm][ch] += weight * (mean - self.mean[norm][ch]);
                self.mean_square[norm][ch] += weight * (square - self.mean_square[norm][ch]);
            }
        }
        Ok(())
    }

    /// Makes them the network's running statistics.
    ///
    /// # Errors
    /// No batch was added, or a statistic is not finite; nothing was changed then.
    pub fn apply(&self, network: &mut Network) -> Result<()> {
        if self.clips == 0.0 {
            return Err(Error::Data("precise batch-norm statistics need at least one batch".into()));
        }
        let mut values = vec![];
        for (mean, square) in self.mean.iter().zip(&self.mean_square) {
            let var: Vec<f32> = mean.iter().zip(square).map(|(m, s)| (s - m * m).max(0.0) as f32).collect();
            values.push((mean.iter().map(|&m| m as f32).collect::<Vec<f32>>(), var));
        }
        if values.iter().any(|(mean, var)| mean.iter().chain(var).any(|v| !v.is_finite())) {
            return Err(Error::Data("precise batch-norm statistics are not finite; the old ones are kept".into()));
        }
        for ((mean, var), (to_mean, to_var)) in values.iter().zip(&network.arrays.norm) {
            to_mean.write(mean)?;
            to_var.write(var)?;
        }
        network.running_changed();
        Ok(())
    }
}
