//! A whole test as a configuration asks for it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Results, Tester, ViewResults, Weights, class_names};
use crate::clip::{ClipSource, Views};
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::json_stats;
use crate::train::Progress;

/// The views of each test: TEST.NUM_TEMPORAL_CLIPS clips, or if that is empty TEST.NUM_ENSEMBLE_VIEWS, each with
/// TEST.NUM_SPATIAL_CROPS crops.
pub fn views_of(config: &Config) -> Vec<Views> {
    let test = &config.test;
    let clips = match &test.num_temporal_clips[..] {
        [] => &[test.num_ensemble_views],
        clips => clips,
    };
    clips.iter().map(|&num_clips| Views { num_clips, num_crops: test.num_spatial_crops }).collect()
}

/// Tests the weights that [`Weights::find`] finds on `source`, and leaves in `folder` (OUTPUT_DIR): a line in `json_stats.log`,
/// `test_CLIPSxCROPS.json`, the confusion matrix, and with TEST.SAVE_RESULTS_PATH the scores. `None` when `stop` was set meanwhile.
///
/// # Errors
/// A configuration that cannot be tested, no weights or others than the network's, no usable video, files that cannot be written.
pub fn run(
    config: &Config,
    device: &Device,
    source: Arc<dyn ClipSource>,
    folder: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Option<Vec<ViewResults>>> {
    config.check_testable()?;
    let names = match &config.demo.label_file_path {
        path if path.is_empty() => None,
        path => Some(class_names(path.as_ref(), config.model.num_classes)?),
    };
    let weights = Weights::find(config, folder)?;
    let mut tester = Tester::new(config, device, source)?;
    let weights_report = weights.load_into(tester.network())?;
    progress.message(&weights_report);
    let all_views = views_of(config);
    announce(&tester, &all_views, progress);
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let mut all = vec![];
    for &views in &all_views {
        let Some(results) = tester.run(views, progress, stop)? else { return Ok(None) };
        let written = ViewResults {
            num_clips: views.num_clips,
            num_crops: views.num_crops,
            crop_px: config.data.test_crop_size,
            ensemble_method: results.method.to_string(),
            weights: weights.path.display().to_string(),
            videos: results.names.len(),
            bad_videos: results.bad.iter().map(|bad| bad.name.clone()).collect(),
            metrics: results.metrics()?,
        };
        written.write(folder, names.as_deref())?;
        save_scores(config, folder, &results, all_views.len() > 1, progress)?;
        let line = json_stats::line(&written.metrics.stats());
        json_stats::append(folder, &line)?;
        progress.message(&line);
        report(&written, progress);
        all.push(written);
    }
    Ok(Some(all))
}

fn announce(tester: &Tester, views: &[Views], progress: &mut dyn Progress) {
    let views: Vec<String> = views.iter().map(|v| format!("{} x {}", v.num_clips, v.num_crops)).collect();
    progress.message(&format!(
        "test: {} videos, views (clips x crops) {}, {} at a time (clips x frames x crop), ensemble {}",
        tester.loader.source().len(),
        views.join(" and "),
        tester.shape(),
        tester.method
    ));
}

fn report(results: &ViewResults, progress: &mut dyn Progress) {
    let ViewResults { num_clips, num_crops, videos, metrics, bad_videos, .. } = results;
    progress.message(&format!("{num_clips} x {num_crops} views of {videos} videos: {}", metrics.describe()));
    if let Some(first) = bad_videos.first() {
        let bad = bad_videos.len();
        progress
            .message(&format!("warning: {bad} videos could not be decoded and are not counted, the first is {first}"));
    }
}

/// TEST.SAVE_RESULTS_PATH below `folder`; its extension becomes `safetensors`, and with several tests the views join the name.
fn save_scores(
    config: &Config,
    folder: &Path,
    results: &Results,
    is_one_of_several: bool,
    progress: &mut dyn Progress,
) -> Result<()> {
    if config.test.save_results_path.is_empty() {
        return Ok(());
    }
    let mut path = folder.join(&config.test.save_results_path);
    if is_one_of_several {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        path.set_file_name(format!("{stem}_{}x{}", results.views.num_clips, results.views.num_crops));
    }
    path.set_extension("safetensors");
    results.save(&path)?;
    progress.message(&format!("scores saved: {}", path.display()));
    Ok(())
}
