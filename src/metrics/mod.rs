//! Accuracy, average precision and confusion from scores and labels on the host. Must not know of devices or models.

mod average_precision;
mod confusion;

pub use average_precision::{average_precisions, mean_average_precision};
pub use confusion::{ConfusionMatrix, top_classes};

use crate::error::{Error, Result};
use crate::ops::softmax_loss::rank;

/// How many clips were recognised, summed over batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// Clips counted.
    pub clips: usize,
    /// Clips whose label has the largest logit.
    pub top1: usize,
    /// Clips whose label is among the five largest logits.
    pub top5: usize,
}

impl Accuracy {
    /// Adds a batch: `logits` `[clips][classes]`, one label a clip.
    ///
    /// # Errors
    /// As [`count_top_k`].
    pub fn add(&mut self, logits: &[f32], classes: usize, labels: &[u32]) -> Result<()> {
        let (top1, top5) = (count_top_k(logits, classes, labels, 1)?, count_top_k(logits, classes, labels, 5)?);
        self.clips += labels.len();
        self.top1 += top1;
        self.top5 += top5;
        Ok(())
    }

    /// Percent of the clips; 0 without clips.
    pub fn top1_percent(&self) -> f64 {
        percent(self.top1, self.clips)
    }

    /// Percent of the clips; 0 without clips.
    pub fn top5_percent(&self) -> f64 {
        percent(self.top5, self.clips)
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// Clips whose label is among the `k` largest of their logits `[clips][classes]`. Of equal logits the lower class counts as
/// the larger. A NaN counts as larger than any number; a clip whose label has a NaN is not recognised.
///
/// # Errors
/// Lengths that do not fit; a label that is no class, by its index.
pub fn count_top_k(logits: &[f32], classes: usize, labels: &[u32], k: usize) -> Result<usize> {
    const OP: &str = "top-k";
    if classes == 0 || logits.len() != labels.len() * classes {
        return Err(Error::shape(
            OP,
            format!("{} labels of {classes} classes do not fit {} logits", labels.len(), logits.len()),
        ));
    }
    let mut correct = 0;
    for (i, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let label = label as usize;
        if label >= classes {
            return Err(Error::shape(OP, format!("labels[{i}] is {label}, must be less than {classes} (classes)")));
        }
        correct += usize::from(rank(row, label).is_some_and(|rank| rank < k));
    }
    Ok(correct)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 12] = [
        0.1, 0.9, 0.3, 0.2, // order of classes: 1 2 3 0
        2.0, 2.0, 1.0, 2.0, // ties: 0 1 3 2
        -1.0, -3.0, -2.0, -4.0, // 0 2 1 3
    ];

    #[test]
    fn ranks_and_ties() {
        for (labels, expected) in [([1, 0, 0], [3, 3, 3]), ([2, 1, 2], [0, 3, 3]), ([0, 2, 3], [0, 0, 0])] {
            for (k, want) in [1, 2, 3].into_iter().zip(expected) {
                assert_eq!(count_top_k(&LOGITS, 4, &labels, k).unwrap(), want, "labels {labels:?}, k {k}");
            }
        }
        assert_eq!(count_top_k(&LOGITS, 4, &[0, 2, 3], 4).unwrap(), 3);
    }

    #[test]
    fn a_nan_is_never_recognised() {
        assert_eq!(count_top_k(&[f32::NAN, 1.0], 2, &[0], 1).unwrap(), 0);
        assert_eq!(count_top_k(&[f32::NAN, 1.0], 2, &[1], 1).unwrap(), 0);
        assert_eq!(count_top_k(&[f32::NAN, f32::NAN], 2, &[0], 2).unwrap(), 0);
    }

    #[test]
    fn counts_add_up_over_batches() {
        let mut accuracy = Accuracy::default();
        assert_eq!(accuracy.top1_percent(), 0.0);
        accuracy.add(&LOGITS, 4, &[1, 1, 3]).unwrap();
        accuracy.add(&LOGITS[..4], 4, &[1]).unwrap();
        assert_eq!(accuracy, Accuracy { clips: 4, top1: 2, top5: 4 });
        assert_eq!((accuracy.top1_percent(), accuracy.top5_percent()), (50.0, 100.0));
    }

    #[test]
    fn bad_arguments_are_named() {
        let message = |logits: &[f32], labels: &[u32]| count_top_k(logits, 4, labels, 1).unwrap_err().to_string();
        assert_eq!(message(&LOGITS, &[0, 4, 0]), "top-k: labels[1] is 4, must be less than 4 (classes)");
        assert_eq!(message(&LOGITS, &[0]), "top-k: 1 labels of 4 classes do not fit 12 logits");
    }
}
