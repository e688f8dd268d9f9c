//! What a test found, and the files made of it.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use super::confusion_png;
use crate::clip::{BadClip, Views};
use crate::config::EnsembleMethod;
use crate::error::{Error, Result};
use crate::json_stats::Stat;
use crate::labels::Labels;
use crate::metrics::{Accuracy, ConfusionMatrix, average_precisions, mean_average_precision};
use crate::train::replace;

/// Beyond so many classes no confusion matrix is made: nobody could read it.
const MAX_CONFUSION_CLASSES: usize = 4096;

/// Scores of all videos of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Views of each video.
    pub views: Views,
    /// How their scores became the video's.
    pub method: EnsembleMethod,
    /// Classes.
    pub classes: usize,
    /// `[videos][classes]`.
    pub scores: Vec<f32>,
    /// Labels of each video.
    pub labels: Labels,
    /// Name of each video.
    pub names: Vec<String>,
    /// Position of each video in its source.
    pub indices: Vec<usize>,
    /// Videos that could not be decoded: in none of the numbers.
    pub bad: Vec<BadClip>,
}

/// What is counted over all videos, in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Videos whose label has the largest score; `None` where videos may have several labels, like all accuracies.
    pub top1: Option<f64>,
    /// Videos whose label is among the five largest scores.
    pub top5: Option<f64>,
    /// Mean average precision, where videos may have several labels.
    pub map: Option<f64>,
    /// Accuracy, or average precision where videos may have several labels, of each class; `None` for one without videos.
    pub classes: Vec<Option<f64>>,
    /// Which classes are taken for which.
    #[serde(skip)]
    pub confusion: Option<ConfusionMatrix>,
}

/// What is written of one test, but for the scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ViewResults {
    /// Clips in time of each video.
    pub num_clips: usize,
    /// Crops in space of each clip.
    pub num_crops: usize,
    /// Crop, px.
    pub crop_px: usize,
    /// How the scores of views became the video's.
    pub ensemble_method: String,
    /// The weights, and why these.
    pub weights: String,
    /// Videos that were counted.
    pub videos: usize,
    /// Names of the videos that could not be decoded.
    pub bad_videos: Vec<String>,
    /// The numbers.
    #[serde(flatten)]
    pub metrics: Metrics,
}

impl Results {
    /// Counts.
    ///
    /// # Errors
    /// Labels that are no class.
    pub fn metrics(&self) -> Result<Metrics> {
        let percent = |share: f64| 100.0 * share;
        match &self.labels {
            Labels::Classes(labels) => {
                let mut accuracy = Accuracy::default();
                accuracy.add(&self.scores, self.classes, labels)?;
                let (top1, top5) = (Some(accuracy.top1_percent()), Some(accuracy.top5_percent()));
                if self.classes > MAX_CONFUSION_CLASSES {
                    return Ok(Metrics { top1, top5, map: None, classes: vec![], confusion: None });
                }
                let mut confusion = ConfusionMatrix::new(self.classes);
                confusion.add(&self.scores, labels)?;
                let classes = confusion.class_accuracy();
                Ok(Metrics { top1, top5, map: None, classes, confusion: Some(confusion) })
            }
            sets => {
                let targets = sets.multi_hot(self.classes);
                let map = Some(percent(mean_average_precision(&self.scores, &targets, self.classes)?));
                let classes = average_precisions(&self.scores, &targets, self.classes)?;
                let classes = classes.into_iter().map(|ap| ap.map(percent)).collect();
                Ok(Metrics { top1: None, top5: None, map, classes, confusion: None })
            }
        }
    }

    /// Writes the scores to `path` as safetensors, readable by any language: `preds` F32 `[videos][classes]`, and `labels`, I64
    /// `[videos]` or, where videos may have several, F32 `[videos][classes]` of 0 and 1: what PySlowFast pickles. Beside it, under
    /// the same name with `.json`, the views and the names of the videos in that order.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (videos, classes) = (self.names.len(), self.classes);
        let invalid = |e: safetensors::SafeTensorError| Error::io(path, &std::io::Error::other(e.to_string()));
        let single: Vec<i64>;
        let several: Vec<f32>;
        let (dtype, shape, bytes): (_, _, &[u8]) = match &self.labels {
            Labels::Classes(labels) => {
                single = labels.iter().map(|&label| i64::from(label)).collect();
                (Dtype::I64, vec![videos], bytemuck::cast_slice(&single))
            }
            sets => {
                several = sets.multi_hot(classes);
                (Dtype::F32, vec![videos, classes], bytemuck::cast_slice(&several))
            }
        };
        let preds = TensorView::new(Dtype::F32, vec![videos, classes], bytemuck::cast_slice(&self.scores));
        let labels = TensorView::new(dtype, shape, bytes);
        let tensors = [("preds", preds.map_err(invalid)?), ("labels", labels.map_err(invalid)?)];
        replace(path, &safetensors::serialize(tensors, None).map_err(invalid)?)?;
        let about = serde_json::json!({
            "num_clips": self.views.num_clips,
            "num_crops": self.views.num_crops,
            "ensemble_method": self.method.to_string(),
            "names": self.names,
        });
        write_json(&path.with_extension("json"), &about)
    }
}

impl Metrics {
    /// PySlowFast's last line of a test. With several labels it writes the mean average precision in place of the accuracies.
    pub fn stats(&self) -> Vec<(&'static str, Stat)> {
        let text = |value: Option<f64>| Stat::Text(format!("{:.2}", value.unwrap_or(0.0)));
        let mut stats = vec![("split", Stat::Text("test_final".into()))];
        stats.extend(self.map.map(|map| ("map", text(Some(map)))));
        stats.extend([("top1_acc", text(self.top1.or(self.map))), ("top5_acc", text(self.top5.or(self.map)))]);
        stats
    }

    /// In one line.
    pub fn describe(&self) -> String {
        match (self.map, self.top1, self.top5) {
            (Some(map), ..) => format!("mAP {map:.2}%"),
            (None, top1, top5) => format!("top1 {:.2}%  top5 {:.2}%", top1.unwrap_or(0.0), top5.unwrap_or(0.0)),
        }
    }
}

impl ViewResults {
    /// Writes `test_CLIPSxCROPS.json` and, where there is one, the confusion matrix as `confusion_CLIPSxCROPS.json` and `.png`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, folder: &Path, names: Option<&[String]>) -> Result<()> {
        let views = format!("{}x{}", self.num_clips, self.num_crops);
        let mut all = serde_json::to_value(self).map_err(|e| Error::io(folder, &e.into()))?;
        if let (Some(object), Some(names)) = (all.as_object_mut(), names) {
            object.insert("class_names".into(), names.into());
        }
        write_json(&folder.join(format!("test_{views}.json")), &all)?;
        let Some(confusion) = &self.metrics.confusion else { return Ok(()) };
        let matrix = serde_json::to_value(confusion).map_err(|e| Error::io(folder, &e.into()))?;
        write_json(&folder.join(format!("confusion_{views}.json")), &matrix)?;
        replace(&folder.join(format!("confusion_{views}.png")), &confusion_png::draw(confusion)?)
    }
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::io(path, &e.into()))?;
    replace(path, &text)
}
