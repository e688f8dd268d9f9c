//! From the scores of views to those of videos.

use crate::config::EnsembleMethod;

/// Scores of videos, each the sum or the maximum of its views' scores, in f32 and in the order of the views (PySlowFast's
/// `TestMeter`). Unlike there, a sum begins with 0 for videos of several labels too, and a maximum with the first view.
#[derive(Clone, Debug)]
pub struct Ensemble {
    method: EnsembleMethod,
    classes: usize,
    scores: Vec<f32>,
    /// Views of each video.
    views: Vec<usize>,
}

impl Ensemble {
    /// No videos yet.
    pub fn new(method: EnsembleMethod, classes: usize) -> Ensemble {
        Ensemble { method, classes, scores: vec![], views: vec![] }
    }

    /// Adds a view of video number `video`: its score of every class.
    pub fn add(&mut self, video: usize, scores: &[f32]) {
        if video >= self.views.len() {
            self.views.resize(video + 1, 0);
            self.scores.resize((video + 1) * self.classes, 0.0);
        }
        let is_first = self.views[video] == 0;
        self.views[video] += 1;
        for (sum, &score) in self.scores[video * self.classes..].iter_mut().zip(scores) {
            *sum = match self.method {
                _ if is_first => score,
                EnsembleMethod::Sum => *sum + score,
                // A NaN stays one: `f32::max` would drop it.
                EnsembleMethod::Max if score > *sum || score.is_nan() => score,
                EnsembleMethod::Max => *sum,
            };
        }
    }

    /// Scores `[videos][classes]`.
    pub fn into_scores(self) -> Vec<f32> {
        self.scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: EnsembleMethod, views: &[(usize, [f32; 2])]) -> Vec<f32> {
        let mut ensemble = Ensemble::new(method, 2);
        views.iter().for_each(|(video, scores)| ensemble.add(*video, scores));
        ensemble.into_scores()
    }

    #[test]
    fn sums_and_maxima() {
        let views = [(0, [0.25, 0.75]), (0, [0.5, 0.5]), (1, [-2.0, -1.0]), (1, [-3.0, -0.5]), (0, [0.0, 1.0])];
        assert_eq!(of(EnsembleMethod::Sum, &views), [0.75, 2.25, -5.0, -1.5]);
        assert_eq!(of(EnsembleMethod::Max, &views), [0.5, 1.0, -2.0, -0.5]);
    }

    #[test]
    fn a_nan_is_not_lost() {
        for method in [EnsembleMethod::Sum, EnsembleMethod::Max] {
            let scores = of(method, &[(0, [0.5, 0.5]), (0, [f32::NAN, 0.5]), (0, [0.5, 0.5])]);
            assert!(scores[0].is_nan() && !scores[1].is_nan(), "{method}: {scores:?}");
        }
    }
}
