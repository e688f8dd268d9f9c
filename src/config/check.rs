//! Which values make sense together, and which can be planned but not trained.

use super::choices::{Arch, LossFunc, LrPolicy, ModelName};
use super::table::Config;
use crate::{Error, Result};

/// Most clips in time of a video: more than any video has that differ.
const MAX_CLIPS: usize = 1 << 10;

/// The first that does not hold, as `KEY: expected, got`.
macro_rules! require {
    ($($condition:expr, $format:literal $(, $argument:expr)*);+ $(;)?) => {
        $(let holds: bool = $condition;
        if !holds {
            return Err(format!($format $(, $argument)*));
        })+
    };
}

impl Config {
    /// Devices that TRAIN.BATCH_SIZE is divided among; `NUM_GPUS: 0` (PySlowFast's CPU) counts as one.
    pub fn num_devices(&self) -> usize {
        self.num_gpus.max(1)
    }

    /// Numbers so large that arithmetic on sizes could overflow, or that a plan would take for ever.
    fn check_sizes(&self) -> Result<(), String> {
        let (data, solver) = (&self.data, &self.solver);
        let [_, largest_scale] = data.train_jitter_scales;
        let moving = &self.vcycle.moving_shapes;
        for (key, value, most) in [
            ("NUM_GPUS", self.num_gpus, 1 << 16),
            ("TRAIN.BATCH_SIZE", self.train.batch_size, 1 << 20),
            ("TEST.BATCH_SIZE", self.test.batch_size, 1 << 20),
            ("DATA.NUM_FRAMES", data.num_frames, 1 << 14),
            ("DATA.SAMPLING_RATE", data.sampling_rate, 1 << 14),
            ("DATA.TARGET_FPS", data.target_fps, 1 << 14),
            ("DATA.TRAIN_CROP_SIZE", data.train_crop_size, 1 << 14),
            ("DATA.TEST_CROP_SIZE", data.test_crop_size, 1 << 14),
            ("DATA.TRAIN_JITTER_SCALES", largest_scale, 1 << 15),
            ("SOLVER.MAX_EPOCH", solver.max_epoch, 1 << 20),
            ("BN.NUM_SPLITS", self.bn.num_splits, 1 << 20),
            ("BN.NUM_SYNC_DEVICES", self.bn.num_sync_devices, 1 << 20),
            ("MULTIGRID.BN_BASE_SIZE", self.multigrid.bn_base_size, 1 << 20),
            ("MODEL.NUM_CLASSES", self.model.num_classes, 1 << 20),
            ("RESNET.WIDTH_PER_GROUP", self.resnet.width_per_group, 1 << 14),
            ("RESNET.NUM_GROUPS", self.resnet.num_groups, 1 << 14),
            ("SLOWFAST.FUSION_CONV_CHANNEL_RATIO", self.slowfast.fusion_conv_channel_ratio, 1 << 10),
            ("SLOWFAST.FUSION_KERNEL_SZ", self.slowfast.fusion_kernel_sz, 1 << 10),
            ("VCYCLE.MOVING_SHAPES.NUM_TRAIN_CLIPS", moving.num_train_clips, 1 << 28),
            ("VCYCLE.MOVING_SHAPES.NUM_VAL_CLIPS", moving.num_val_clips, 1 << 28),
            ("VCYCLE.MOVING_SHAPES.FRAMES", moving.frames, 1 << 14),
            ("VCYCLE.MOVING_SHAPES.SIZE_PX", moving.size_px, 1 << 14),
        ] {
            require! { value <= most, "{key}: expected at most {most}, got {value}"; }
        }
        Ok(())
    }

    /// What the schedule needs; loading checks it, and the schedule again for structs filled in by hand.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
        self.check_data()?;
        self.check_solver()?;
        self.check_mixup()?;
        self.check_multigrid()?;
        require! {
            self.log_period > 0, "LOG_PERIOD: expected at least 1, got 0";
            self.vcycle.keep_checkpoints > 0, "VCYCLE.KEEP_CHECKPOINTS: expected at least 1, got 0";
            (0.0..=1e6).contains(&self.vcycle.cache_gib), "VCYCLE.CACHE_GIB: expected GiB from 0 to 1e6, got {:?}", self.vcycle.cache_gib;
            self.vcycle.memory_fraction > 0.0 && self.vcycle.memory_fraction <= 1.0,
                "VCYCLE.MEMORY_FRACTION: expected a share above 0 and at most 1, got {:?}", self.vcycle.memory_fraction;
            (0.0..=1e6).contains(&self.vcycle.checkpoint_minutes),
                "VCYCLE.CHECKPOINT_MINUTES: expected minutes from 0 to 1e6, got {:?}", self.vcycle.checkpoint_minutes;
        }
        Ok(())
    }

    fn check_data(&self) -> Result<(), String> {
        let (train, data, devices) = (&self.train, &self.data, self.num_devices());
        let [low, high] = data.train_jitter_scales;
        require! {
            train.batch_size > 0, "TRAIN.BATCH_SIZE: expected at least 1, got 0";
            train.batch_size.is_multiple_of(devices),
                "TRAIN.BATCH_SIZE: expected a multiple of NUM_GPUS ({devices}), got {}", train.batch_size;
            train.eval_period > 0, "TRAIN.EVAL_PERIOD: expected at least 1, got 0";
            train.checkpoint_period > 0, "TRAIN.CHECKPOINT_PERIOD: expected at least 1, got 0";
            self.test.batch_size > 0, "TEST.BATCH_SIZE: expected at least 1, got 0";
            (1..=MAX_CLIPS).contains(&self.test.num_ensemble_views),
                "TEST.NUM_ENSEMBLE_VIEWS: expected 1 to {MAX_CLIPS}, got {}", self.test.num_ensemble_views;
            (1..=3).contains(&self.test.num_spatial_crops),
                "TEST.NUM_SPATIAL_CROPS: expected 1 to 3 (start, centre and end of the longer side), got {}", self.test.num_spatial_crops;
            self.test.num_temporal_clips.iter().all(|clips| (1..=MAX_CLIPS).contains(clips)),
                "TEST.NUM_TEMPORAL_CLIPS: expected numbers from 1 to {MAX_CLIPS}, got {:?}", self.test.num_temporal_clips;
            self.bn.num_splits > 0, "BN.NUM_SPLITS: expected at least 1, got 0";
            self.bn.num_sync_devices > 0, "BN.NUM_SYNC_DEVICES: expected at least 1, got 0";
            data.num_frames > 0, "DATA.NUM_FRAMES: expected at least 1, got 0";
            data.sampling_rate > 0, "DATA.SAMPLING_RATE: expected at least 1, got 0";
            data.target_fps > 0, "DATA.TARGET_FPS: expected at least 1, got 0";
            data.train_crop_size > 0, "DATA.TRAIN_CROP_SIZE: expected at least 1, got 0";
            data.test_crop_size > 0, "DATA.TEST_CROP_SIZE: expected at least 1, got 0";
            low <= high, "DATA.TRAIN_JITTER_SCALES: expected [smallest, largest], got [{low}, {high}]";
            data.train_crop_size <= low,
                "DATA.TRAIN_JITTER_SCALES: expected a smallest scale of at least DATA.TRAIN_CROP_SIZE ({}), got {low}", data.train_crop_size;
            data.mean.iter().all(|&m| (m as f32).is_finite()), "DATA.MEAN: expected numbers that f32 can hold, got {:?}", data.mean;
            data.std.iter().all(|&s| (1e-6..=1e6).contains(&s)), "DATA.STD: expected numbers in [1e-6, 1e6], got {:?}", data.std;
        }
        Ok(())
    }

    fn check_solver(&self) -> Result<(), String> {
        let solver = &self.solver;
        require! {
            solver.base_lr > 0.0, "SOLVER.BASE_LR: expected a number > 0, got {:?}", solver.base_lr;
            solver.base_lr <= 1e6, "SOLVER.BASE_LR: expected at most 1e6, got {:?}", solver.base_lr;
            solver.lrs.iter().all(|&lr| lr >= 0.0), "SOLVER.LRS: expected numbers >= 0, got {:?}", solver.lrs;
            solver.max_epoch > 0, "SOLVER.MAX_EPOCH: expected at least 1, got 0";
            solver.warmup_epochs >= 0.0, "SOLVER.WARMUP_EPOCHS: expected a number >= 0, got {}", solver.warmup_epochs;
            (0.0..1.0).contains(&solver.momentum), "SOLVER.MOMENTUM: expected a number in [0, 1), got {}", solver.momentum;
            (0.0..=1.0).contains(&solver.dampening), "SOLVER.DAMPENING: expected a number in [0, 1], got {}", solver.dampening;
            !solver.nesterov || (solver.momentum > 0.0 && solver.dampening == 0.0),
                "SOLVER.NESTEROV: expected a momentum and no dampening, got SOLVER.MOMENTUM {} and DAMPENING {}; set it to False",
                solver.momentum, solver.dampening;
            solver.clip_grad_val.is_none_or(|v| v >= 0.0), "SOLVER.CLIP_GRAD_VAL: expected a number >= 0 or None, got {:?}", solver.clip_grad_val;
            solver.clip_grad_l2norm.is_none_or(|v| v >= 0.0),
                "SOLVER.CLIP_GRAD_L2NORM: expected a number >= 0 or None, got {:?}", solver.clip_grad_l2norm;
            solver.clip_grad_val.unwrap_or(0.0) == 0.0 || solver.clip_grad_l2norm.unwrap_or(0.0) == 0.0,
                "SOLVER.CLIP_GRAD_VAL and CLIP_GRAD_L2NORM: expected one of them, got {:?} and {:?}", solver.clip_grad_val, solver.clip_grad_l2norm;
            solver.weight_decay >= 0.0, "SOLVER.WEIGHT_DECAY: expected a number >= 0, got {}", solver.weight_decay;
        }
        let (steps, max_epoch) = (&solver.steps, solver.max_epoch);
        let steps_needed = solver.lr_policy == LrPolicy::StepsWithRelativeLrs || self.multigrid.long_cycle;
        if steps_needed {
            require! {
                steps.first() == Some(&0), "SOLVER.STEPS: expected a list that starts with 0, got {steps:?}";
                steps.windows(2).all(|w| w[0] < w[1]), "SOLVER.STEPS: expected increasing epochs, got {steps:?}";
                steps.last().is_none_or(|&last| last <= max_epoch),
                    "SOLVER.STEPS: expected epochs up to SOLVER.MAX_EPOCH ({max_epoch}), got {steps:?}";
                self.multigrid.long_cycle || solver.lrs.len() >= steps.len(),
                    "SOLVER.LRS: expected at least {} rates, one for each of SOLVER.STEPS, got {}", steps.len(), solver.lrs.len();
            }
        }
        if solver.lr_policy == LrPolicy::Cosine {
            require! { solver.cosine_end_lr < solver.base_lr,
            "SOLVER.COSINE_END_LR: expected less than SOLVER.BASE_LR ({}), got {}", solver.base_lr, solver.cosine_end_lr; }
        }
        Ok(())
    }

    fn check_mixup(&self) -> Result<(), String> {
        let mixup = &self.mixup;
        let is_alpha = |alpha: f64| alpha == 0.0 || (0.01..=100.0).contains(&alpha);
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        require! {
            is_alpha(mixup.alpha), "MIXUP.ALPHA: expected 0 or a number in [0.01, 100], got {:?}", mixup.alpha;
            is_alpha(mixup.cutmix_alpha), "MIXUP.CUTMIX_ALPHA: expected 0 or a number in [0.01, 100], got {:?}", mixup.cutmix_alpha;
            is_share(mixup.prob), "MIXUP.PROB: expected a number in [0, 1], got {:?}", mixup.prob;
            is_share(mixup.switch_prob), "MIXUP.SWITCH_PROB: expected a number in [0, 1], got {:?}", mixup.switch_prob;
            is_share(mixup.label_smooth_value), "MIXUP.LABEL_SMOOTH_VALUE: expected a number in [0, 1], got {:?}", mixup.label_smooth_value;
            !mixup.enable || mixup.prob == 0.0 || mixup.alpha + mixup.cutmix_alpha > 0.0,
                "MIXUP.ALPHA: expected it or MIXUP.CUTMIX_ALPHA above 0 where MIXUP.PROB is {:?}", mixup.prob;
            !mixup.enable || !self.data.multi_label, "MIXUP.ENABLE: expected False with DATA.MULTI_LABEL: it blends one label a clip";
        }
        Ok(())
    }

    fn check_multigrid(&self) -> Result<(), String> {
        let grid = &self.multigrid;
        let fraction = |f: f64| (0.01..=1.0).contains(&f);
        require! {
            grid.epoch_factor > 0.0 && grid.epoch_factor <= 1000.0,
                "MULTIGRID.EPOCH_FACTOR: expected a number in (0, 1000], got {}", grid.epoch_factor;
            grid.epoch_factor * self.solver.max_epoch as f64 <= f64::from(1 << 20),
                "MULTIGRID.EPOCH_FACTOR: expected at most {} epochs in all, got {} x {}", 1 << 20, grid.epoch_factor, self.solver.max_epoch;
            grid.bn_base_size > 0, "MULTIGRID.BN_BASE_SIZE: expected at least 1, got 0";
            grid.eval_freq > 0, "MULTIGRID.EVAL_FREQ: expected at least 1, got 0";
            grid.short_cycle_factors.iter().all(|&f| fraction(f)),
                "MULTIGRID.SHORT_CYCLE_FACTORS: expected numbers in [0.01, 1], got {:?}", grid.short_cycle_factors;
            grid.long_cycle_factors.iter().flatten().all(|&f| fraction(f)),
                "MULTIGRID.LONG_CYCLE_FACTORS: expected numbers in [0.01, 1], got {:?}", grid.long_cycle_factors;
            !grid.long_cycle || !grid.long_cycle_factors.is_empty(), "MULTIGRID.LONG_CYCLE_FACTORS: expected at least one shape, got none";
            !grid.long_cycle || self.solver.steps.len() >= 2,
                "SOLVER.STEPS: expected at least two with MULTIGRID.LONG_CYCLE, got {:?}", self.solver.steps;
        }
        Ok(())
    }

    /// Refuses, by key, what can be planned but not trained.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for keys that ask for what is not built, [`Error::Config`] for values that no network can have.
    pub fn check_trainable(&self) -> Result<()> {
        for (key, asked, reason) in self.untrainable() {
            if asked {
                return Err(Error::unsupported(key, reason));
            }
        }
        self.check_model().map_err(Error::Config)
    }

    /// Refuses, by key, what cannot be tested.
    ///
    /// # Errors
    /// [`Error::Config`] for values that do not go together.
    pub fn check_testable(&self) -> Result<()> {
        self.check().and_then(|()| self.check_model()).map_err(Error::Config)
    }

    /// (key and value, is it asked for, why not and what to do).
    fn untrainable(&self) -> [(String, bool, &'static str); 3] {
        let c = self;
        [
            ("TRAIN.ENABLE False".into(), !c.train.enable, "there is nothing else to do; set it to True"),
            (
                "MODEL.LOSS_FUNC bce".into(),
                c.model.loss_func == LossFunc::Bce,
                "it takes probabilities, and heads give logits in training; use bce_logit",
            ),
            (
                format!("DATA.MULTI_LABEL True with MODEL.LOSS_FUNC {}", c.model.loss_func),
                c.data.multi_label && matches!(c.model.loss_func, LossFunc::CrossEntropy | LossFunc::SoftCrossEntropy),
                "it takes one label a clip; use bce_logit",
            ),
        ]
    }

    fn check_model(&self) -> Result<(), String> {
        let (model, resnet) = (&self.model, &self.resnet);
        let pathways = if model.arch == Arch::SlowFast { 2 } else { 1 };
        let fits = match model.model_name {
            ModelName::SlowFast => pathways == 2,
            ModelName::ResNet => pathways == 1,
            ModelName::ResNetNoPool => matches!(model.arch, Arch::C2d | Arch::I3d),
        };
        let name = if pathways == 2 { ModelName::SlowFast } else { ModelName::ResNet };
        let (key, listed) = match pathways {
            2 => ("MULTI_PATHWAY_ARCH", &model.multi_pathway_arch),
            _ => ("SINGLE_PATHWAY_ARCH", &model.single_pathway_arch),
        };
        let per_pathway = |list: &[Vec<usize>]| list.len() == 4 && list.iter().all(|stage| stage.len() == pathways);
        require! {
            fits, "MODEL.MODEL_NAME: expected {name} for MODEL.ARCH {}, got {}", model.arch, model.model_name;
            listed.iter().any(|arch| arch == model.arch.as_str()),
                "MODEL.{key}: expected a list with MODEL.ARCH {}, got {listed:?}", model.arch;
            model.num_classes > 0, "MODEL.NUM_CLASSES: expected at least 1, got 0";
            (0.0..1.0).contains(&model.dropout_rate), "MODEL.DROPOUT_RATE: expected a number in [0, 1), got {}", model.dropout_rate;
            [18, 50, 101].contains(&resnet.depth), "RESNET.DEPTH: expected 18, 50 or 101, got {}", resnet.depth;
            resnet.num_groups > 0 && resnet.width_per_group.is_multiple_of(resnet.num_groups) && resnet.width_per_group > 0,
                "RESNET.WIDTH_PER_GROUP: expected a multiple of RESNET.NUM_GROUPS ({}), got {}", resnet.num_groups, resnet.width_per_group;
            self.data.input_channel_num == vec![3; pathways],
                "DATA.INPUT_CHANNEL_NUM: expected {:?} for MODEL.ARCH {}, got {:?}", vec![3; pathways], model.arch, self.data.input_channel_num;
        }
        for (key, list) in [
            ("NUM_BLOCK_TEMP_KERNEL", &resnet.num_block_temp_kernel),
            ("SPATIAL_STRIDES", &resnet.spatial_strides),
            ("SPATIAL_DILATIONS", &resnet.spatial_dilations),
        ] {
            require! { per_pathway(list), "RESNET.{key}: expected 4 stages of {pathways} integers for MODEL.ARCH {}, got {list:?}", model.arch; }
        }
        if pathways == 2 {
            let width = resnet.width_per_group;
            require! {
                self.slowfast.alpha > 0, "SLOWFAST.ALPHA: expected at least 1, got 0";
                self.slowfast.beta_inv > 0 && width.is_multiple_of(self.slowfast.beta_inv),
                    "SLOWFAST.BETA_INV: expected a divisor of RESNET.WIDTH_PER_GROUP ({width}), got {}", self.slowfast.beta_inv;
                self.slowfast.fusion_kernel_sz % 2 == 1, "SLOWFAST.FUSION_KERNEL_SZ: expected an odd number, got {}", self.slowfast.fusion_kernel_sz;
            }
        }
        Ok(())
    }
}
