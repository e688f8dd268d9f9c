//! Precise batch-norm statistics (BN.USE_PRECISE_STATS): those of many batches under fixed weights, instead of a running
//! mean over weights that changed.

use super::Network;
use crate::device::{Buffer, DType, Slice};
use crate::error::{Error, Result};
use crate::model::layers::NormId;
use crate::model::plan::Mode;
use crate::ops::batch_norm::{BatchNorm, MomentsNorm, MomentsTable, add_moments_all, read_moments};
use crate::shape::StepShape;

/// Sums over batches, on the device until they are asked for. After another [`Network::prepare`] they begin anew.
pub struct PreciseStatistics {
    clips: usize,
    /// Of every norm, one behind the other: see [`MomentsNorm::sums`].
    sums: Slice,
    /// What is added for a batch of each shape.
    tables: Vec<(StepShape, MomentsTable)>,
}

impl PreciseStatistics {
    /// No batches yet.
    ///
    /// # Errors
    /// No memory.
    pub fn new(network: &Network) -> Result<PreciseStatistics> {
        let len = network.model.norms.iter().map(|norm| MomentsNorm::sums_len(norm.c)).sum();
        let sums = Buffer::zeroed(network.device(), len * DType::U32.size_bytes())?.slice_of(DType::U32, 0, len)?;
        Ok(PreciseStatistics { clips: 0, sums, tables: vec![] })
    }

    /// Adds the batch statistics that [`Network::forward_train`] left, weighted by the number of clips. It is queued; nothing is waited for,
    /// and nothing is allocated but for the first batch of a shape.
    ///
    /// # Errors
    /// A shape that was not prepared; no memory.
    pub fn add(&mut self, network: &Network, shape: StepShape) -> Result<()> {
        let known = self.tables.iter().position(|(of, _)| *of == shape);
        let at = match known {
            Some(at) => at,
            None => {
                self.tables.push((shape, self.table(network, shape)?));
                self.tables.len() - 1
            }
        };
        add_moments_all(&network.stream, &self.tables[at].1)?;
        self.clips += shape.clips;
        Ok(())
    }

    fn table(&self, network: &Network, shape: StepShape) -> Result<MomentsTable> {
        let step = network.step(Mode::Train, shape)?;
        let norms = &network.model.norms;
        let norm = |(op, norm, stats): &(BatchNorm, NormId, Slice)| {
            let begin = norms[..*norm].iter().map(|before| MomentsNorm::sums_len(before.c)).sum();
            let sums = self.sums.part(begin, MomentsNorm::sums_len(norms[*norm].c))?;
            Ok(MomentsNorm { op: *op, stats: stats.clone(), sums })
        };
        MomentsTable::new(network.device(), step.statistics.iter().map(norm).collect::<Result<_>>()?)
    }

    /// Makes them the network's running statistics. Waits for the device.
    ///
    /// # Errors
    /// No batch was added, or a statistic is not finite; nothing was changed then.
    pub fn apply(&self, network: &mut Network) -> Result<()> {
        if self.clips == 0 {
            return Err(Error::Data("precise batch-norm statistics need at least one batch".into()));
        }
        let moments: Vec<f64> = read_moments(&self.sums)?.into_iter().map(|sum| sum / self.clips as f64).collect();
        let (mut values, mut rest) = (vec![], &moments[..]);
        for norm in &network.model.norms {
            let (means, squares);
            (means, rest) = rest.split_at(norm.c);
            (squares, rest) = rest.split_at(norm.c);
            let var: Vec<f32> = means.iter().zip(squares).map(|(m, s)| (s - m * m).max(0.0) as f32).collect();
            values.push((means.iter().map(|&m| m as f32).collect::<Vec<f32>>(), var));
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
