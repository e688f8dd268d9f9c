//! From configuration keys to the values that the stages of the data's road take.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clip::decode::{DecodeOptions, find_ffmpeg};
use crate::clip::{
    Cached, ClipSource, FrameRule, Kinetics, KineticsConfig, MovingShapes, MovingShapesConfig, ResampleMode, Sampling,
    Split, TestCrops,
};
use crate::config::{Config, Dataset, Resample as ResampleKey};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::resample::Resample;
use crate::optimizer::SgdConfig;

/// The network that `cfg` asks for.
pub fn model_config(cfg: &Config) -> Result<ModelConfig> {
    ModelConfig::from_config(cfg)
}

/// The optimizer's constants.
pub fn sgd_config(cfg: &Config) -> SgdConfig {
    SgdConfig::from_config(cfg)
}

/// Which frames and which crop a clip gives.
pub fn sampling(cfg: &Config) -> Sampling {
    let data = &cfg.data;
    let [low, high] = data.train_jitter_scales;
    let is_multigrid = cfg.multigrid.long_cycle || cfg.multigrid.short_cycle;
    Sampling {
        mode: match cfg.vcycle.resample {
            ResampleKey::Trilinear => ResampleMode::Trilinear,
            ResampleKey::TrilinearAntialias => ResampleMode::TrilinearAntialias,
            ResampleKey::Peer => ResampleMode::Peer,
        },
        frames: match cfg.train.dataset {
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
        test_crops: test_crops(cfg),
        use_offset: data.use_offset_sampling,
        multigrid_base: is_multigrid.then_some((data.num_frames, data.train_crop_size)),
        bgr: data.reverse_input_channel,
    }
}

/// PySlowFast's `kinetics.py` scales a single crop of a test like those of training and takes the centre; `ssv2.py` and
/// `charades.py` scale it like three and take the first of them.
fn test_crops(cfg: &Config) -> TestCrops {
    let (scale, [low, _]) = (cfg.data.test_crop_size as u32, cfg.data.train_jitter_scales);
    match cfg.train.dataset {
        Dataset::Kinetics | Dataset::MovingShapes => {
            TestCrops { scale_px: scale, single_scale_px: low as u32, single_crop_idx: 1 }
        }
        Dataset::Ssv2 | Dataset::Charades => TestCrops { scale_px: scale, single_scale_px: scale, single_crop_idx: 0 },
    }
}

/// Filter and normalisation of the resampling kernel.
pub fn resample(cfg: &Config) -> Resample {
    let as_f32 = |values: [f64; 3]| values.map(|v| v as f32);
    Resample { filter: sampling(cfg).mode.filter(), mean: as_f32(cfg.data.mean), std: as_f32(cfg.data.std) }
}

/// Where the clips of `TRAIN.DATASET` come from and who decodes them, for a line of output.
pub fn describe_sources(cfg: &Config) -> String {
    match cfg.train.dataset {
        Dataset::MovingShapes => "clips: moving_shapes, made on the fly; nothing to decode".into(),
        _ => {
            let ffmpeg = find_ffmpeg().map_or("no ffmpeg on PATH".into(), |p| p.display().to_string());
            let folder = &cfg.data.path_to_data_dir;
            format!("clips: {folder}; decoder: built-in h264, for all else {ffmpeg}")
        }
    }
}

/// The clips for training and for validation that `TRAIN.DATASET` names.
///
/// # Errors
/// Missing or faulty list files, labels out of range; see the source.
pub fn sources(cfg: &Config) -> Result<(Arc<dyn ClipSource>, Arc<dyn ClipSource>)> {
    match cfg.train.dataset {
        Dataset::MovingShapes => {
            let keys = &cfg.vcycle.moving_shapes;
            let make = |split, num_clips| {
                let config = MovingShapesConfig {
                    seed: cfg.rng_seed as u64,
                    num_clips,
                    num_classes: cfg.model.num_classes,
                    num_frames: keys.frames,
                    size_px: keys.size_px,
                    noise: keys.noise as f32,
                    shapes: keys.shapes,
                    distractors: keys.distractors,
                    speed: match keys.speed[..] {
                        [slow, fast] => (slow as f32, fast as f32),
                        _ => {
                            return Err(Error::Config(
                                "VCYCLE.MOVING_SHAPES.SPEED: expected [slowest, fastest]".into(),
                            ));
                        }
                    },
                    contrast: keys.contrast as f32,
                    shake_px: keys.shake_px as f32,
                    label_noise: keys.label_noise as f32,
                };
                MovingShapes::new(&config, split)
            };
            let train = make(Split::Train, keys.num_train_clips)?;
            Ok((Arc::new(train), Arc::new(make(Split::Val, keys.num_val_clips)?)))
        }
        Dataset::Kinetics => {
            let kinetics = KineticsConfig {
                data_dir: PathBuf::from(&cfg.data.path_to_data_dir),
                path_prefix: PathBuf::from(&cfg.data.path_prefix),
                separator: cfg.data.path_label_separator.clone(),
                num_classes: cfg.model.num_classes,
                decode: DecodeOptions::default(),
            };
            let cache_bytes = (cfg.vcycle.cache_gib * (1u64 << 30) as f64) as usize;
            let open = |list| Ok(Arc::new(Cached::new(Arc::new(Kinetics::open(&kinetics, list)?), cache_bytes)));
            let train = open("train.csv")?;
            Ok((train, open("val.csv")?))
        }
        other => Err(Error::unsupported(format!("TRAIN.DATASET {other}"), "use kinetics or moving_shapes")),
    }
}
