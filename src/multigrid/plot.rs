//! A picture of a schedule: what changes over the epochs.

use super::Schedule;
use crate::Result;
use crate::chart::{self, Join, Panel, Series};

impl Schedule {
    /// Learning rate, frames, crop and batch over the epochs, as SVG.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when the drawing library refuses.
    pub fn to_svg(&self) -> Result<String> {
        let panel = |title: &str, log2: bool, series: Vec<Series>| Panel { title: title.into(), series, log2 };
        let step = |name: String, points: Vec<(f64, f64)>| Series { name, points, join: Join::Step };
        let rate = Series { name: String::new(), points: self.sampled_rates(), join: Join::Line };
        let frames = step(String::new(), self.over_epochs(|epoch| self.phase(epoch).frames));
        let positions = self.phases().iter().map(|p| p.grids.len()).max().unwrap_or(1);
        let mut crops = vec![];
        let mut clips = vec![];
        for position in 0..positions {
            let name = match (positions, position) {
                (1, _) => String::new(),
                (_, i) if i + 1 == positions => "long cycle".into(),
                (_, i) => format!("short cycle {i}"),
            };
            crops.push(step(name.clone(), self.over_epochs(|e| self.phase(e).step_shape(position).height_px)));
            clips.push(step(name, self.over_epochs(|e| self.phase(e).step_shape(position).clips)));
        }
        let panels = [
            panel("learning rate", false, vec![rate]),
            panel("frames of a clip, T", false, vec![frames]),
            panel("crop, S (px)", false, crops),
            panel("clips in a batch, B", true, clips),
        ];
        chart::draw(&panels, "epoch")
    }

    /// The epochs at which the value changes, and the end.
    fn over_epochs(&self, value: impl Fn(usize) -> usize) -> Vec<(f64, f64)> {
        let mut points: Vec<(f64, f64)> = vec![];
        for epoch in 0..self.max_epoch() {
            let y = value(epoch) as f64;
            if points.last().is_none_or(|&(_, before)| before != y) {
                points.push((epoch as f64, y));
            }
        }
        points.extend(points.last().map(|&(_, y)| (self.max_epoch() as f64, y)));
        points
    }

    /// Some 2,400 points, so that warm-up and cosine look smooth.
    fn sampled_rates(&self) -> Vec<(f64, f64)> {
        let num_points = 2400;
        let epoch = |i: usize| (i as f64 + 0.5) * self.max_epoch() as f64 / num_points as f64;
        (0..num_points).map(|i| (epoch(i), self.lr(epoch(i)))).collect()
    }
}
