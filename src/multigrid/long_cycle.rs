//! The long cycle: which shapes, for how many epochs, at which learning rate.

use std::fmt;

use crate::config::Config;
use crate::{Error, Result};

/// Consecutive epochs at one long-cycle shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Learning-rate stage of the baseline, counted from 0.
    pub stage: usize,
    /// Clips over the default batch.
    pub batch_factor: usize,
    /// Frames, T.
    pub frames: usize,
    /// Rows and columns of the crop, S, px.
    pub crop_px: usize,
    /// First epoch after the segment.
    pub end_epoch: usize,
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B x {} x {}", self.batch_factor, self.frames, self.crop_px)
    }
}

/// A long-cycle shape, with the mean batch factor of its short cycle.
struct Shape {
    batch_factor: usize,
    frames: usize,
    crop_px: usize,
    mean_batch: f64,
}

/// One full long cycle in every stage but the last, epochs in proportion to the mean batch so that every shape gets the same
/// number of iterations; the last stage (fine-tuning) at the last shape, shortened by the same saving; all scaled to
/// MAX_EPOCH x EPOCH_FACTOR and rounded cumulatively, half to even.
pub(super) fn segments(config: &Config) -> Result<Vec<Segment>> {
    let shapes = shapes(config)?;
    let steps = &config.solver.steps;
    let last_step = steps[steps.len() - 1] as f64;
    let sum_of_means: f64 = shapes.iter().map(|s| s.mean_batch).sum();

    let mut planned: Vec<(usize, &Shape, f64)> = vec![];
    let mut iterations = 0.0; // in epochs of the baseline's iterations
    for (stage, pair) in steps.windows(2).enumerate() {
        for shape in &shapes {
            let epochs = (pair[1] - pair[0]) as f64 * shape.mean_batch / sum_of_means;
            iterations += epochs / shape.mean_batch;
            planned.push((stage, shape, epochs));
        }
    }
    let saving = last_step / iterations;
    let finest = &shapes[shapes.len() - 1];
    let max_epoch = config.solver.max_epoch as f64;
    planned.push((steps.len() - 1, finest, (max_epoch - last_step) / saving * finest.mean_batch));

    let scale = max_epoch * config.multigrid.epoch_factor / planned.iter().map(|p| p.2).sum::<f64>();
    let mut end = 0.0;
    let segments = planned.iter().map(|(stage, shape, epochs)| {
        end += epochs * scale;
        Segment {
            stage: *stage,
            batch_factor: shape.batch_factor,
            frames: shape.frames,
            crop_px: shape.crop_px,
            end_epoch: end.round_ties_even() as usize,
        }
    });
    Ok(segments.collect())
}

fn shapes(config: &Config) -> Result<Vec<Shape>> {
    let grid = &config.multigrid;
    let (default_t, default_s) = (config.data.num_frames as f64, config.data.train_crop_size as f64);
    let default_volume = default_t * default_s * default_s;
    let mut shapes = vec![];
    for &[t_factor, s_factor] in &grid.long_cycle_factors {
        let frames = (default_t * t_factor).round_ties_even();
        let crop = (default_s * s_factor).round_ties_even();
        if frames < 1.0 || crop < 1.0 {
            return Err(Error::Config(format!(
                "MULTIGRID.LONG_CYCLE_FACTORS: [{t_factor}, {s_factor}] of {default_t} frames and a crop of {default_s} px is an empty grid"
            )));
        }
        let batch_factor = |crop: f64| (default_volume / (frames * crop * crop)).round_ties_even();
        // The short cycle's crops are not rounded and not clamped here: this is the mean that epochs are split by.
        let mean_batch = if grid.short_cycle {
            let [small, middle] = grid.short_cycle_factors.map(|f| batch_factor(default_s * f));
            (small + middle + batch_factor(crop)) / 3.0
        } else {
            batch_factor(crop)
        };
        let (frames, crop_px) = (frames as usize, crop as usize);
        shapes.push(Shape { batch_factor: batch_factor(crop) as usize, frames, crop_px, mean_batch });
    }
    Ok(shapes)
}

/// Steps and relative learning rates of the segments: GAMMA^stage x batch factor. The last segment (fine-tuning) is cut in half:
/// its first half keeps the rate of the segment before.
pub(super) fn learning_rates(segments: &[Segment], gamma: f64) -> (Vec<usize>, Vec<f64>) {
    let mut steps = vec![0];
    steps.extend(segments.iter().map(|s| s.end_epoch));
    let mut rates: Vec<f64> = segments.iter().map(|s| gamma.powf(s.stage as f64) * s.batch_factor as f64).collect();
    let last = rates.len() - 1;
    // A long cycle has two stages at least, hence two segments.
    rates.insert(last, rates[last.saturating_sub(1)]);
    let end = steps.len() - 1;
    steps[end] = (steps[end - 1] + steps[end]) / 2;
    (steps, rates)
}
