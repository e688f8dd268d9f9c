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

    fn over_epochs(&self, value: impl Fn(usize) -> usize) -> Vec<(f64, f64)> {
        let last = self.max_epoch() - 1;
        (0..=self.max_epoch()).map(|epoch| (epoch as f64, value(epoch.min(last)) as f64)).collect()
    }

    /// A few points an epoch, so that warm-up and cosine look smooth.
    fn sampled_rates(&self) -> Vec<(f64, f64)> {
        let per_epoch = (2400 / self.max_epoch()).clamp(1, 50);
        let points = 0..self.max_epoch() * per_epoch;
        points.map(|i| i as f64 / per_epoch as f64).map(|epoch| (epoch, self.lr(epoch))).collect()
    }
}
