//! Videos of no data set: what `predict` looks at.

use std::path::PathBuf;

use serde::Serialize;

use crate::clip::decode::{DecodeOptions, Video};
use crate::clip::{ClipSource, Frames, VideoInfo};
use crate::error::{Error, Result};
use crate::metrics::top_classes;

/// Video files without labels.
pub struct VideoFiles {
    files: Vec<PathBuf>,
    num_classes: usize,
}

impl VideoFiles {
    /// The files, for a network of `num_classes` classes. Nothing is opened yet.
    pub fn new(files: Vec<PathBuf>, num_classes: usize) -> VideoFiles {
        VideoFiles { files, num_classes }
    }
}

impl ClipSource for VideoFiles {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// 0: nobody knows.
    fn label(&self, _: usize) -> u32 {
        0
    }

    fn name(&self, idx: usize) -> String {
        self.files[idx].display().to_string()
    }

    fn frames(&self, idx: usize, choose: &mut dyn FnMut(&VideoInfo) -> Vec<u32>) -> Result<Frames> {
        let mut video = Video::open(&self.files[idx], &DecodeOptions::default())?;
        let indices = choose(video.info());
        video.frames(&indices)
    }
}

/// A class of a video, with its score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Number of the class.
    pub class: usize,
    /// Its name, or its number where no names are known.
    pub name: String,
    /// Mean over the views, or their maximum, of what MODEL.HEAD_ACT makes of the logits.
    pub score: f32,
}

impl Prediction {
    /// The `k` classes with the largest of `scores`, largest first. `divisor` is the number of views where scores are sums.
    ///
    /// # Errors
    /// [`Error::Data`] where a score is not finite.
    pub fn top(scores: &[f32], k: usize, divisor: usize, names: Option<&[String]>) -> Result<Vec<Prediction>> {
        if scores.iter().any(|s| !s.is_finite()) {
            return Err(Error::Data("the network's scores are not finite".into()));
        }
        let of = |class: usize| Prediction {
            class,
            name: names.and_then(|names| names.get(class)).cloned().unwrap_or_else(|| format!("class {class}")),
            score: scores[class] / divisor as f32,
        };
        Ok(top_classes(scores, k).into_iter().map(of).collect())
    }
}
