//! Which classes are taken for which.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::softmax_loss::rank;

/// Counts of (true class, recognised class) over videos with one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfusionMatrix {
    /// Number of classes.
    pub classes: usize,
    /// Videos, `[true class][recognised class]`.
    pub counts: Vec<Vec<u64>>,
    /// Videos of each class whose scores hold a NaN: nothing was recognised.
    pub none: Vec<u64>,
}

impl ConfusionMatrix {
    /// No videos yet.
    pub fn new(classes: usize) -> ConfusionMatrix {
        ConfusionMatrix { classes, counts: vec![vec![0; classes]; classes], none: vec![0; classes] }
    }

    /// Adds videos: `scores` `[videos][classes]`, one label a video. The class with the largest score is recognised; of equal
    /// scores the lower class counts as the larger.
    ///
    /// # Errors
    /// Lengths that do not fit; a label that is no class.
    pub fn add(&mut self, scores: &[f32], labels: &[u32]) -> Result<()> {
        let classes = self.classes;
        if scores.len() != labels.len() * classes || labels.iter().any(|&label| label as usize >= classes) {
            let message = format!("{} scores and labels {labels:?} do not fit {classes} classes", scores.len());
            return Err(Error::shape("confusion matrix", message));
        }
        for (row, &label) in scores.chunks_exact(classes).zip(labels) {
            match largest(row) {
                Some(class) => self.counts[label as usize][class] += 1,
                None => self.none[label as usize] += 1,
            }
        }
        Ok(())
    }

    /// Percent of the videos of each class that were recognised; `None` for a class without videos.
    pub fn class_accuracy(&self) -> Vec<Option<f64>> {
        let of_class = |class: usize| {
            let videos = self.counts[class].iter().sum::<u64>() + self.none[class];
            (videos > 0).then(|| 100.0 * self.counts[class][class] as f64 / videos as f64)
        };
        (0..self.classes).map(of_class).collect()
    }
}

/// The class with the largest score; `None` where a NaN stands in the way.
fn largest(row: &[f32]) -> Option<usize> {
    (0..row.len()).find(|&class| rank(row, class) == Some(0))
}

/// The classes of the `k` largest scores, largest first; of equal scores the lower class comes first, and a NaN last.
pub fn top_classes(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let key = |class: usize| if scores[class].is_nan() { f32::NEG_INFINITY } else { scores[class] };
    // Stable: equal scores stay in the order of the classes.
    order.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).unwrap_or(Ordering::Equal));
    order.truncate(k);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_accuracy() {
        let mut matrix = ConfusionMatrix::new(3);
        matrix.add(&[0.1, 0.8, 0.1, 0.5, 0.5, 0.0, 0.2, 0.3, 0.5], &[1, 1, 0]).unwrap();
        matrix.add(&[f32::NAN, 0.0, 1.0], &[1]).unwrap();
        assert_eq!(matrix.counts, [[0, 0, 1], [1, 1, 0], [0, 0, 0]]);
        assert_eq!(matrix.none, [0, 1, 0]);
        assert_eq!(matrix.class_accuracy(), [Some(0.0), Some(100.0 / 3.0), None]);
        let error = matrix.add(&[0.0; 3], &[3]).unwrap_err().to_string();
        assert_eq!(error, "confusion matrix: 3 scores and labels [3] do not fit 3 classes");
    }

    #[test]
    fn the_largest_come_first() {
        assert_eq!(top_classes(&[0.1, 0.7, 0.2, 0.7], 3), [1, 3, 2]);
        assert_eq!(top_classes(&[f32::NAN, -1.0], 5), [1, 0]);
        assert_eq!(top_classes(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert_eq!(top_classes(&[], 2), [0usize; 0]);
    }
}
