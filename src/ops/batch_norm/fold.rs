//! Running statistics of PySlowFast checkpoints with sub-batch norm.

use crate::error::{Error, Result};

/// One running mean and variance a channel from the `[splits][c]` ones that PySlowFast keeps a split: the mean of the means;
/// the mean of the variances plus the population variance of the means (`SubBatchNorm3d.aggregate_stats`).
///
/// # Errors
/// Lengths that differ or are no multiple of `splits`.
pub fn fold_split_statistics(splits: usize, means: &[f32], vars: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    if splits == 0 || means.len() != vars.len() || !means.len().is_multiple_of(splits) {
        return Err(Error::shape(
            "fold_split_statistics",
            format!("{splits} splits need means and variances [splits][c], got {} and {}", means.len(), vars.len()),
        ));
    }
    let c = means.len() / splits;
    let average = |values: &dyn Fn(usize) -> f64| (0..splits).map(values).sum::<f64>() / splits as f64;
    let fold = |ch: usize| {
        let at = |values: &[f32], split: usize| f64::from(values[split * c + ch]);
        let mean = average(&|s| at(means, s));
        let var = average(&|s| at(vars, s)) + average(&|s| (at(means, s) - mean).powi(2));
        (mean as f32, var as f32)
    };
    Ok((0..c).map(fold).unzip())
}
