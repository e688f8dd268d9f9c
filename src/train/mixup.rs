//! Mixup and CutMix of training batches (MIXUP.*): what is drawn for a step, and the targets that follow from it. The same rule as
//! `slowfast/datasets/mixup.py`; but both pathways of a clip are blended, where PySlowFast blends the slow one alone.

use crate::clip::Draws;
use crate::config::Config;
use crate::ops::mixup::Mixup as Blend;
use crate::shape::StepShape;

/// MIXUP.*.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mixup {
    seed: u64,
    alpha: f64,
    cutmix_alpha: f64,
    prob: f64,
    switch_prob: f64,
    label_smoothing: f64,
}

/// What one step does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mix {
    /// The blend of its clips; `None` where this step leaves them alone.
    pub blend: Option<Blend>,
    /// A clip's own share of its targets.
    pub lambda: f64,
    label_smoothing: f64,
}

impl Mixup {
    /// `None` without MIXUP.ENABLE.
    pub fn from_config(config: &Config) -> Option<Mixup> {
        let keys = &config.mixup;
        keys.enable.then_some(Mixup {
            seed: config.rng_seed as u64,
            alpha: keys.alpha,
            cutmix_alpha: keys.cutmix_alpha,
            prob: keys.prob,
            switch_prob: keys.switch_prob,
            label_smoothing: keys.label_smooth_value,
        })
    }

    /// Of step `iteration` of `epoch`: a function of the seed and these, so that a resumed run draws the same.
    pub fn draw(&self, epoch: u64, iteration: u64, shape: &StepShape) -> Mix {
        let mut draws = Draws::for_mixup(self.seed, epoch, iteration);
        let mix = |blend, lambda| Mix { blend, lambda, label_smoothing: self.label_smoothing };
        if draws.unit() >= self.prob {
            return mix(None, 1.0);
        }
        let is_cutmix = match (self.alpha > 0.0, self.cutmix_alpha > 0.0) {
            (true, true) => draws.unit() < self.switch_prob,
            (_, has_cutmix) => has_cutmix,
        };
        let (height, width) = (shape.height_px, shape.width_px);
        if !is_cutmix {
            let lambda = beta(self.alpha, &mut draws);
            return mix(Some(Blend { keep: lambda as f32, rows: 0..height, columns: 0..width }), lambda);
        }
        let share = (1.0 - beta(self.cutmix_alpha, &mut draws)).sqrt();
        let mut range = |size: usize| {
            let (cut, centre) = ((size as f64 * share) as usize, draws.below(size));
            centre.saturating_sub(cut / 2)..(centre + cut / 2).min(size)
        };
        let (rows, columns) = (range(height), range(width));
        // The share that is really exchanged: a box may reach over the border.
        let lambda = 1.0 - (rows.len() * columns.len()) as f64 / (height * width) as f64;
        mix(Some(Blend { keep: 0.0, rows, columns }), lambda)
    }
}

impl Mix {
    /// Whom a blended clip may be taken for (PySlowFast's `train_net.py`): its two classes are one, whose logit is the sum of both. Returns
    /// the class of the larger share.
    pub fn merge(&self, logits: &mut [f32], labels: &[u32], classes: usize) -> Vec<u32> {
        let pairs = labels.iter().zip(labels.iter().rev()).zip(logits.chunks_exact_mut(classes));
        let of_clip = |((&own, &partner), logits): ((&u32, &u32), &mut [f32])| {
            let (larger, smaller) = if self.lambda >= 0.5 { (own, partner) } else { (partner, own) };
            if larger != smaller && self.lambda < 1.0 {
                logits[larger as usize] += logits[smaller as usize];
                logits[smaller as usize] = 0.0;
            }
            larger
        };
        pairs.map(of_clip).collect()
    }

    /// `[clips][classes]`: each clip's own label and its partner's, both smoothed.
    pub fn targets(&self, labels: &[u32], classes: usize) -> Vec<f32> {
        let off = self.label_smoothing / classes as f64;
        let on = 1.0 - self.label_smoothing + off;
        let of = |label: u32, class: usize| if label as usize == class { on } else { off };
        let pairs = labels.iter().zip(labels.iter().rev());
        let row = |(&own, &partner): (&u32, &u32)| {
            let blend = move |class| (self.lambda * of(own, class) + (1.0 - self.lambda) * of(partner, class)) as f32;
            (0..classes).map(blend).collect::<Vec<_>>()
        };
        pairs.flat_map(row).collect()
    }
}

/// A draw from the beta distribution with both parameters `alpha` > 0: Jöhnk's method up to 1, beyond it Cheng's BB (1978).
fn beta(alpha: f64, draws: &mut Draws) -> f64 {
    if alpha <= 1.0 {
        loop {
            let (x, y) = (draws.unit().powf(1.0 / alpha), draws.unit().powf(1.0 / alpha));
            if x + y > 0.0 && x + y <= 1.0 {
                return x / (x + y);
            }
        }
    }
    let (sum, slope) = (2.0 * alpha, ((2.0 * alpha - 2.0) / (2.0 * alpha * alpha - 2.0 * alpha)).sqrt());
    let gamma = alpha + 1.0 / slope;
    loop {
        // In (0, 1).
        let (u, v) = (1.0 - draws.unit(), 1.0 - draws.unit());
        if u == 1.0 {
            continue;
        }
        let logit = slope * (u / (1.0 - u)).ln();
        let w = alpha * logit.exp();
        let (z, r) = (u * u * v, gamma * logit - 4f64.ln());
        if r + sum * (sum / (alpha + w)).ln() >= z.ln() {
            return w / (alpha + w);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Mixup =
        Mixup { seed: 3, alpha: 0.8, cutmix_alpha: 1.0, prob: 1.0, switch_prob: 0.5, label_smoothing: 0.1 };
    const SHAPE: StepShape = StepShape::square(4, 8, 50, 1);

    /// Mean 1/2 and variance 1 / (8 alpha + 4), within 5 standard deviations of what 20000 draws can tell.
    #[test]
    fn beta_has_its_moments() {
        for alpha in [0.1, 0.8, 1.0, 1.5, 4.0, 50.0] {
            let mut draws = Draws::for_mixup(1, 2, 3);
            let values: Vec<f64> = (0..20_000).map(|_| beta(alpha, &mut draws)).collect();
            assert!(values.iter().all(|v| (0.0..=1.0).contains(v)), "{alpha}");
            let mean = values.iter().sum::<f64>() / 20_000.0;
            let variance = values.iter().map(|v| (v - 0.5) * (v - 0.5)).sum::<f64>() / 20_000.0;
            let expected = 1.0 / (8.0 * alpha + 4.0);
            assert!((mean - 0.5).abs() < 5.0 * (expected / 20_000.0).sqrt(), "{alpha}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.06, "{alpha}: variance {variance}, expected {expected}");
        }
    }

    #[test]
    fn a_step_draws_what_its_number_says() {
        assert_eq!(ALL.draw(1, 7, &SHAPE), ALL.draw(1, 7, &SHAPE));
        let mixes: Vec<Mix> = (0..400).map(|i| ALL.draw(0, i, &SHAPE)).collect();
        let is_cutmix = |mix: &&Mix| mix.blend.as_ref().is_some_and(|blend| blend.keep == 0.0);
        let cut: Vec<&Mix> = mixes.iter().filter(is_cutmix).collect();
        assert!((150..250).contains(&cut.len()), "{} of 400", cut.len());
        for mix in cut {
            let blend = mix.blend.as_ref().unwrap();
            assert!(blend.rows.end <= 50 && blend.columns.end <= 50, "{blend:?}");
            let exchanged = (blend.rows.len() * blend.columns.len()) as f64 / 2500.0;
            assert!((mix.lambda - (1.0 - exchanged)).abs() < 1e-12);
        }
        let none = Mixup { prob: 0.0, ..ALL }.draw(0, 0, &SHAPE);
        assert_eq!((none.blend, none.lambda), (None, 1.0));
        for (alpha, cutmix_alpha) in [(0.8, 0.0), (0.0, 1.0)] {
            let keeps = |i| Mixup { alpha, cutmix_alpha, ..ALL }.draw(0, i, &SHAPE).blend.unwrap().keep;
            assert!((0..50).all(|i| (keeps(i) == 0.0) == (alpha == 0.0)));
        }
    }

    #[test]
    fn both_classes_of_a_blend_count_as_one() {
        let mut logits = [1.0, 2.0, 4.0, 0.5, 0.25, 8.0, 3.0, 1.0, 2.0];
        let mix = |lambda| Mix { blend: None, lambda, label_smoothing: 0.0 };
        assert_eq!(mix(0.25).merge(&mut logits, &[0, 1, 2], 3), [2, 1, 0]);
        assert_eq!(logits, [0.0, 2.0, 5.0, 0.5, 0.25, 8.0, 5.0, 1.0, 0.0]);
        assert_eq!(mix(1.0).merge(&mut logits, &[0, 1, 2], 3), [0, 1, 2]);
        assert_eq!(logits, [0.0, 2.0, 5.0, 0.5, 0.25, 8.0, 5.0, 1.0, 0.0]);
    }

    /// By hand: 4 classes, smoothing 0.2, so 0.05 off and 0.85 on; a quarter of the partner.
    #[test]
    fn targets_are_blended_and_smoothed() {
        let mix = Mix { blend: None, lambda: 0.75, label_smoothing: 0.2 };
        let targets = mix.targets(&[0, 2, 3], 4);
        let expected = [0.65, 0.05, 0.05, 0.25, 0.05, 0.05, 0.85, 0.05, 0.25, 0.05, 0.05, 0.65];
        assert!(targets.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{targets:?}");
        assert!(targets.chunks(4).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
    }
}
