//! The multi-view test: scores of several clips and crops of a video make the scores of the video (PySlowFast's
//! `tools/test_net.py` and `TestMeter`). Every video is decoded once, all of its views are resampled from it.
//!
//! | concept | type |
//! |---|---|
//! | views of a video | [`Views`] |
//! | a network that is tested | [`Tester`] |
//! | sum or maximum over views | [`Ensemble`] |
//! | scores of all videos, and the files made of them | [`Results`] |
//! | what is counted of them | [`Metrics`] |
//! | which weights are tested | [`Weights`] |
//! | videos of no data set | [`VideoFiles`], [`class_names`] |
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use vcycle::clip::Views;
//! use vcycle::test::{Tester, Weights};
//! use vcycle::train::{Lines, setup};
//! use vcycle::{config::Config, device::Device};
//!
//! # fn main() -> vcycle::Result<()> {
//! let config = Config::load("configs/moving_shapes.yaml", &[])?;
//! let mut tester = Tester::new(&config, &Device::Cpu, setup::test_source(&config)?)?;
//! Weights::find(&config, "runs/moving_shapes".as_ref())?.load_into(tester.network())?;
//! let views = Views { num_clips: 10, num_crops: 3 };
//! let results = tester.run(views, &mut Lines::new(std::io::stderr(), 10), &AtomicBool::new(false))?;
//! println!("{:?}", results.map(|results| results.metrics()));
//! # Ok(()) }
//! ```

mod confusion_png;
mod ensemble;
mod files;
mod names;
mod results;
mod run;
mod weights;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use ensemble::Ensemble;
pub use files::{Prediction, VideoFiles};
pub use names::class_names;
pub use results::{Metrics, Results, ViewResults};
pub use run::{run, views_of};
pub use weights::Weights;

use crate::clip::{ClipSource, HostClip, Loader, LoaderConfig, Views};
use crate::config::{Config, EnsembleMethod};
use crate::device::Device;
use crate::error::Result;
use crate::labels::Labels;
use crate::model::{Model, Network};
use crate::shape::StepShape;
use crate::train::Progress;
use crate::train::setup;
use crate::train::step::Road;

/// A network with the videos that it is tested on.
pub struct Tester {
    road: Road,
    loader: Loader,
    shape: StepShape,
    method: EnsembleMethod,
}

impl Tester {
    /// A network as `config` asks for, with first values (see [`Weights`]), prepared for views of DATA.NUM_FRAMES frames and a
    /// crop of DATA.TEST_CROP_SIZE, TEST.BATCH_SIZE / NUM_GPUS at a time.
    ///
    /// # Errors
    /// A configuration that cannot be tested, labels out of range, no memory.
    pub fn new(config: &Config, device: &Device, source: Arc<dyn ClipSource>) -> Result<Tester> {
        config.check_testable()?;
        let model = Model::new(&setup::model_config(config)?)?;
        let most_views = views_of(config).iter().map(Views::count).max().unwrap_or(1);
        let per_device = (config.test.batch_size / config.num_devices()).max(1);
        let clips = per_device.min(source.len().saturating_mul(most_views)).max(1);
        let shape = StepShape::square(clips, config.data.num_frames, config.data.test_crop_size, 1);
        let network = Network::with_storage(device, model, config.rng_seed as u64, setup::storage(config))?;
        let road = Road::new(network, setup::resample(config), &[], &[shape])?;
        // A flip is drawn in training only; the loader would refuse it for data that it changes the label of.
        let sampling = crate::clip::Sampling { random_flip: false, ..setup::test_sampling(config) };
        let defaults = LoaderConfig::default();
        let threads = config.data_loader.num_workers.clamp(1, defaults.threads);
        let loader = Loader::new(source, sampling, &LoaderConfig { threads, ..defaults })?;
        Ok(Tester { road, loader, shape, method: config.data.ensemble_method })
    }

    /// The network, to put weights into.
    pub fn network(&mut self) -> &mut Network {
        &mut self.road.network
    }

    /// Clips of a batch, frames and crop.
    pub fn shape(&self) -> StepShape {
        self.shape
    }

    /// The scores of every video from all of its `views`; videos that cannot be decoded are left out and listed. `None` when
    /// `stop` was set meanwhile.
    ///
    /// # Errors
    /// No video that can be decoded, a device that fails.
    pub fn run(&mut self, views: Views, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Option<Results>> {
        let classes = self.road.classes();
        let mut ensemble = Ensemble::new(self.method, classes);
        let (mut names, mut indices, mut label_sets) = (vec![], vec![], vec![]);
        let mut waiting = Waiting::default();
        let batches = self.loader.test_epoch(self.shape, views);
        let total = batches.remaining();
        for (done, batch) in batches.enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let batch = batch?;
            names.extend(batch.names.into_iter().next());
            indices.extend(batch.indices.first().copied());
            label_sets.push(batch.labels.of(0).to_vec());
            waiting.add(done, batch.clips);
            while waiting.clips.len() >= self.shape.clips {
                self.score(&mut waiting, &mut ensemble)?;
            }
            progress.evaluating("test", done + 1, total);
        }
        while !waiting.clips.is_empty() {
            self.score(&mut waiting, &mut ensemble)?;
        }
        if names.is_empty() {
            return Err(crate::Error::Data("none of the test videos can be decoded".into()));
        }
        let labels = match self.loader.source().is_multi_label() {
            true => Labels::Sets(label_sets),
            false => Labels::Classes(label_sets.into_iter().flatten().collect()),
        };
        let (method, scores) = (self.method, ensemble.into_scores());
        let bad = self.loader.bad_clips();
        Ok(Some(Results { views, method, classes, scores, labels, names, indices, bad }))
    }

    /// Runs one batch of the clips that wait.
    fn score(&mut self, waiting: &mut Waiting, ensemble: &mut Ensemble) -> Result<()> {
        let n = self.shape.clips.min(waiting.clips.len());
        let (videos, clips): (Vec<usize>, Vec<HostClip>) =
            (waiting.videos.drain(..n).collect(), waiting.clips.drain(..n).collect());
        let scores = self.road.scores(self.shape, &clips)?;
        for (video, scores) in videos.into_iter().zip(scores.chunks_exact(self.road.classes())) {
            ensemble.add(video, scores);
        }
        Ok(())
    }
}

/// Views that are to be scored, and of which video each is.
#[derive(Default)]
struct Waiting {
    videos: Vec<usize>,
    clips: Vec<HostClip>,
}

impl Waiting {
    fn add(&mut self, video: usize, clips: Vec<HostClip>) {
        self.videos.extend(std::iter::repeat_n(video, clips.len()));
        self.clips.extend(clips);
    }
}
