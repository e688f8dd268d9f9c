//! Average precision, for videos with several labels: as Charades counts it and PySlowFast computes it
//! (`slowfast/utils/meters.py`, `get_map`, over scikit-learn's `average_precision_score`).

use crate::error::{Error, Result};

/// Average precision of each class over all videos: `scores` and `targets` are `[videos][classes]`, a target above 0 is a
/// positive. `None` for a class without positives. It is the sum over the different scores of a class, from the largest down,
/// of (recall there - recall before) * precision there; videos with equal scores count together.
///
/// # Errors
/// Lengths that do not fit.
pub fn average_precisions(scores: &[f32], targets: &[f32], classes: usize) -> Result<Vec<Option<f64>>> {
    if classes == 0 || scores.len() != targets.len() || !scores.len().is_multiple_of(classes) {
        let message = format!("{} scores and {} targets do not fit {classes} classes", scores.len(), targets.len());
        return Err(Error::shape("average precision", message));
    }
    let column = |values: &[f32], class: usize| values.iter().skip(class).step_by(classes).copied().collect::<Vec<_>>();
    Ok((0..classes).map(|class| of_class(&column(scores, class), &column(targets, class))).collect())
}

/// Mean of [`average_precisions`] over the classes that have positives, in 0..=1. 0 where no class has any, and where a score is
/// not finite: scikit-learn refuses such scores, and PySlowFast then counts 0.
///
/// # Errors
/// Lengths that do not fit.
pub fn mean_average_precision(scores: &[f32], targets: &[f32], classes: usize) -> Result<f64> {
    let known: Vec<f64> = average_precisions(scores, targets, classes)?.into_iter().flatten().collect();
    if known.is_empty() || scores.iter().any(|s| !s.is_finite()) {
        return Ok(0.0);
    }
    Ok(known.iter().sum::<f64>() / known.len() as f64)
}

fn of_class(scores: &[f32], targets: &[f32]) -> Option<f64> {
    let positives = targets.iter().filter(|t| **t > 0.0).count();
    if positives == 0 {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let (mut found, mut seen, mut sum) = (0, 0, 0.0);
    for equal in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let new = equal.iter().filter(|&&video| targets[video] > 0.0).count();
        (found, seen) = (found + new, seen + equal.len());
        sum += new as f64 * found as f64 / seen as f64;
    }
    Some(sum / positives as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One class.
    fn ap(scores: &[f32], targets: &[f32]) -> f64 {
        average_precisions(scores, targets, 1).unwrap()[0].unwrap()
    }

    #[test]
    fn by_hand() {
        // The example of scikit-learn's documentation: 0.8333.
        assert!((ap(&[0.1, 0.4, 0.35, 0.8], &[0.0, 0.0, 1.0, 1.0]) - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        // Order of the positives: 1st, 3rd and 4th of 5.
        let scores = [0.9, 0.8, 0.7, 0.6, 0.5];
        assert!((ap(&scores, &[1.0, 0.0, 1.0, 1.0, 0.0]) - (1.0 + 2.0 / 3.0 + 3.0 / 4.0) / 3.0).abs() < 1e-12);
        assert_eq!(ap(&scores, &[1.0; 5]), 1.0);
        assert_eq!(ap(&scores, &[0.0, 0.0, 0.0, 0.0, 1.0]), 0.2);
    }

    #[test]
    fn equal_scores_count_together() {
        // All equal: precision is the share of positives, whatever the order.
        assert_eq!(ap(&[0.5; 4], &[0.0, 1.0, 0.0, 0.0]), 0.25);
        assert_eq!(ap(&[0.5; 4], &[1.0, 0.0, 0.0, 0.0]), 0.25);
        // 0.9 (negative), then two at 0.5 of which one is positive, then a positive: (1/2) * 1/3 + (1/2) * 2/4.
        assert!((ap(&[0.5, 0.9, 0.5, 0.1], &[1.0, 0.0, 0.0, 1.0]) - (1.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12);
        // -0 and 0 are equal.
        assert_eq!(ap(&[-0.0, 0.0], &[1.0, 0.0]), 0.5);
    }

    #[test]
    fn classes_without_positives_do_not_count() {
        // Three classes of two videos; the second has no positive.
        let scores = [0.9, 0.9, 0.1, 0.2, 0.1, 0.3];
        let targets = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        assert_eq!(average_precisions(&scores, &targets, 3).unwrap(), [Some(1.0), None, Some(0.5)]);
        assert_eq!(mean_average_precision(&scores, &targets, 3).unwrap(), 0.75);
        assert_eq!(mean_average_precision(&scores, &[0.0; 6], 3).unwrap(), 0.0);
        assert_eq!(mean_average_precision(&[], &[], 3).unwrap(), 0.0);
    }

    #[test]
    fn scores_that_are_not_finite_and_lengths_that_do_not_fit() {
        assert_eq!(mean_average_precision(&[f32::NAN, 1.0], &[1.0, 1.0], 1).unwrap(), 0.0);
        let error = mean_average_precision(&[0.5; 4], &[1.0; 6], 3).unwrap_err().to_string();
        assert_eq!(error, "average precision: 4 scores and 6 targets do not fit 3 classes");
    }
}
