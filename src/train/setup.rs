//! From configuration keys to the values that the stages of the data's road take.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clip::decode::find_ffmpeg;
use crate::clip::pack::{Codec, DEFAULT_QUALITY, Encoding, PackedClips};
use crate::clip::{
    Cached, ClipSource, FrameRule, ListConfig, ListFormat, MovingShapes, MovingShapesConfig, ResampleMode, Sampling,
    Split, TestCrops, VideoList,
};
use crate::config::{Config, Dataset, DecodingBackend, Precision, Resample as ResampleKey};
use crate::device::{DType, Device};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::resample::Resample;
use crate::optimizer::SgdConfig;

/// The network that `cfg` asks for.
pub fn model_config(cfg: &Config) -> Result<ModelConfig> {
    ModelConfig::from_config(cfg)
}

/// The 16-bit type that kernels store activations in.
pub fn storage(cfg: &Config) -> DType {
    match cfg.vcycle.precision {
        Precision::Bf16 => DType::Bf16,
        Precision::F16 => DType::F16,
    }
}

/// What a run on `device` computes in, for a line of output.
pub fn describe_precision(cfg: &Config, device: &Device) -> String {
    let (is_asked, precision) = (cfg.train.mixed_precision, cfg.vcycle.precision);
    let scaling = if precision == Precision::F16 { ", dynamic loss scale" } else { "" };
    match (device, is_asked) {
        (Device::Cpu, false) => "precision: f32".into(),
        (Device::Cpu, true) => "precision: f32; the CPU has no other, whatever TRAIN.MIXED_PRECISION says".into(),
        (_, true) => format!("precision: {precision} activations, f32 parameters, statistics and loss{scaling}"),
        (_, false) => format!(
            "precision: {precision} activations, f32 parameters, statistics and loss{scaling}; kernels store 16 bits, also with \
             TRAIN.MIXED_PRECISION False"
        ),
    }
}

/// The optimizer's constants.
pub fn sgd_config(cfg: &Config) -> SgdConfig {
    SgdConfig::from_config(cfg)
}

/// Which frames and which crop a clip of `TRAIN.DATASET` gives.
pub fn sampling(cfg: &Config) -> Sampling {
    sampling_of(cfg, cfg.train.dataset)
}

/// Which frames and which crop a view of `TEST.DATASET` gives.
pub fn test_sampling(cfg: &Config) -> Sampling {
    sampling_of(cfg, cfg.test.dataset)
}

fn sampling_of(cfg: &Config, dataset: Dataset) -> Sampling {
    let data = &cfg.data;
    let [low, high] = data.train_jitter_scales;
    let is_multigrid = cfg.multigrid.long_cycle || cfg.multigrid.short_cycle;
    Sampling {
        mode: match cfg.vcycle.resample {
            ResampleKey::Trilinear => ResampleMode::Trilinear,
            ResampleKey::TrilinearAntialias => ResampleMode::TrilinearAntialias,
            ResampleKey::Peer => ResampleMode::Peer,
        },
        frames: match dataset {
            Dataset::Kinetics | Dataset::MovingShapes => FrameRule::Window,
            Dataset::Ssv2 => FrameRule::Segments,
            Dataset::Charades => FrameRule::Stride,
        },
        sampling_rate: data.sampling_rate as u32,
        target_fps: data.target_fps as f64,
        jitter_scales_px: (low as u32, high as u32),
        inverse_uniform: data.inv_uniform_sample,
        random_flip: data.random_flip,
        eval_scale_px: low as u32,
        test_crops: test_crops(cfg, dataset),
        use_offset: data.use_offset_sampling,
        multigrid_base: is_multigrid.then_some((data.num_frames, data.train_crop_size)),
        bgr: data.reverse_input_channel != is_read_as_bgr(dataset),
    }
}

/// PySlowFast decodes videos to RGB and reads pictures as BGR; what is read from files instead of their frames follows the
/// data set, so that a configuration means the same for both.
fn is_read_as_bgr(dataset: Dataset) -> bool {
    matches!(dataset, Dataset::Ssv2 | Dataset::Charades)
}

/// PySlowFast's `kinetics.py` scales a single crop of a test like those of training and takes the centre; `ssv2.py` and
/// `charades.py` scale it like three and take the first of them.
fn test_crops(cfg: &Config, dataset: Dataset) -> TestCrops {
    let (scale_px, low) = (cfg.data.test_crop_size as u32, cfg.data.train_jitter_scales[0] as u32);
    match dataset {
        Dataset::Kinetics | Dataset::MovingShapes => TestCrops { scale_px, single_scale_px: low, single_crop_idx: 1 },
        Dataset::Ssv2 | Dataset::Charades => TestCrops { scale_px, single_scale_px: scale_px, single_crop_idx: 0 },
    }
}

/// Filter and normalisation of the resampling kernel. PySlowFast normalises before it turns the order of the channels.
pub fn resample(cfg: &Config) -> Resample {
    let in_order = |values: [f64; 3]| {
        let [a, b, c] = values.map(|v| v as f32);
        if cfg.data.reverse_input_channel { [c, b, a] } else { [a, b, c] }
    };
    Resample { filter: sampling(cfg).mode.filter(), mean: in_order(cfg.data.mean), std: in_order(cfg.data.std) }
}

/// Where the clips of `TRAIN.DATASET` come from and who decodes them, for a line of output.
pub fn describe_sources(cfg: &Config) -> String {
    let (folder, dataset) = (&cfg.data.path_to_data_dir, cfg.train.dataset);
    let decoder = || {
        let ffmpeg = find_ffmpeg().map_or("no ffmpeg on PATH".into(), |p| p.display().to_string());
        format!("decoder: built-in h264, for all else {ffmpeg}")
    };
    if let Some(Ok(packed)) = packed_source(cfg, dataset, Split::Train) {
        return format!("clips: {dataset}, packed in {folder} as {}", packed.encoding());
    }
    match dataset {
        Dataset::MovingShapes => "clips: moving_shapes, made on the fly; nothing to decode".into(),
        Dataset::Kinetics => format!("clips: kinetics, {folder}; {}", decoder()),
        Dataset::Ssv2 if !cfg.vcycle.ssv2_videos.is_empty() => {
            format!("clips: ssv2, {folder}, .{} files; {}", cfg.vcycle.ssv2_videos.trim_start_matches('.'), decoder())
        }
        Dataset::Ssv2 | Dataset::Charades => format!("clips: {dataset}, {folder}, frames; decoder: built-in jpeg"),
    }
}

/// The clips for training and for validation that `TRAIN.DATASET` names.
///
/// # Errors
/// Missing or faulty list files, labels out of range; see the source.
pub fn sources(cfg: &Config) -> Result<(Arc<dyn ClipSource>, Arc<dyn ClipSource>)> {
    let train = source(cfg, cfg.train.dataset, Split::Train)?;
    Ok((train, source(cfg, cfg.train.dataset, Split::Val)?))
}

/// The videos of the multi-view test that `TEST.DATASET` names, each to be decoded once: nothing is kept.
///
/// # Errors
/// As [`sources`].
pub fn test_source(cfg: &Config) -> Result<Arc<dyn ClipSource>> {
    source(cfg, cfg.test.dataset, Split::Test)
}

fn source(cfg: &Config, dataset: Dataset, split: Split) -> Result<Arc<dyn ClipSource>> {
    let Some(config) = list_config(cfg, dataset) else {
        return Ok(Arc::new(MovingShapes::new(&moving_shapes(cfg, split)?, split)?));
    };
    let list: Arc<dyn ClipSource> = match packed_source(cfg, dataset, split) {
        Some(packed) => Arc::new(packed?),
        None => Arc::new(VideoList::open(&config, split)?),
    };
    if split == Split::Test {
        return Ok(list);
    }
    Ok(Arc::new(Cached::new(list, (cfg.vcycle.cache_gib * (1u64 << 30) as f64) as usize)))
}

/// The clips of `split` of `dataset` in the pack that DATA.PATH_TO_DATA_DIR names; `None` where DATA.DECODING_BACKEND asks for no
/// pack, or clips are synthetic.
pub fn packed_source(cfg: &Config, dataset: Dataset, split: Split) -> Option<Result<PackedClips>> {
    let lists = list_config(cfg, dataset).filter(|_| cfg.data.decoding_backend == DecodingBackend::Packed)?;
    Some(PackedClips::open(&lists.data_dir, lists.format, split, lists.num_classes))
}

/// How frames are packed where nothing else is said: as large as the largest that training, validation or test looks at.
pub fn default_encoding(cfg: &Config) -> Encoding {
    let side = cfg.data.train_jitter_scales[1].max(cfg.data.test_crop_size) as u32;
    Encoding { codec: Codec::Jpeg { quality: DEFAULT_QUALITY }, short_side_px: Some(side) }
}

/// Where the lists of `dataset` lie and how they are written; `None` for synthetic clips.
pub fn list_config(cfg: &Config, dataset: Dataset) -> Option<ListConfig> {
    let format = match dataset {
        Dataset::MovingShapes => return None,
        Dataset::Kinetics => ListFormat::Kinetics,
        Dataset::Ssv2 => ListFormat::Ssv2,
        Dataset::Charades => ListFormat::Charades,
    };
    Some(ListConfig {
        format,
        path_prefix: PathBuf::from(&cfg.data.path_prefix),
        separator: cfg.data.path_label_separator.clone(),
        ssv2_videos: cfg.vcycle.ssv2_videos.clone(),
        ..ListConfig::kinetics(&cfg.data.path_to_data_dir, cfg.model.num_classes)
    })
}

fn moving_shapes(cfg: &Config, split: Split) -> Result<MovingShapesConfig> {
    let keys = &cfg.vcycle.moving_shapes;
    let [slow, fast] = keys.speed[..] else {
        return Err(Error::Config("VCYCLE.MOVING_SHAPES.SPEED: expected [slowest, fastest]".into()));
    };
    Ok(MovingShapesConfig {
        seed: cfg.rng_seed as u64,
        num_clips: if split == Split::Train { keys.num_train_clips } else { keys.num_val_clips },
        num_classes: cfg.model.num_classes,
        num_frames: keys.frames,
        size_px: keys.size_px,
        noise: keys.noise as f32,
        shapes: keys.shapes,
        distractors: keys.distractors,
        speed: (slow as f32, fast as f32),
        contrast: keys.contrast as f32,
        shake_px: keys.shake_px as f32,
        label_noise: keys.label_noise as f32,
    })
}
