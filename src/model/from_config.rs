//! The network that a configuration file asks for.

use super::config::{Arch, GramUse, HeadActivation, Loss, ModelConfig, Transform};
use super::non_local::NonLocal;
use crate::config::{self, Config};
use crate::error::{Error, Result};

impl ModelConfig {
    /// From MODEL, RESNET, SLOWFAST and NONLOCAL of `config`. PySlowFast's networks of this kind ignore BN.EPSILON and BN.MOMENTUM
    /// (1e-5 and 0.1 are built in), and so do these.
    ///
    /// # Errors
    /// Values that do not fit together, by key.
    pub fn from_config(config: &Config) -> Result<ModelConfig> {
        let (model, resnet, slowfast) = (&config.model, &config.resnet, &config.slowfast);
        let arch = match (model.arch, model.model_name) {
            (config::Arch::SlowFast, _) => Arch::SlowFast,
            (config::Arch::Slow, _) => Arch::Slow,
            (config::Arch::I3d, config::ModelName::ResNetNoPool) | (config::Arch::SlowI3d, _) => Arch::SlowI3d,
            (config::Arch::I3d, _) => Arch::I3d,
            (config::Arch::C2d, config::ModelName::ResNetNoPool) | (config::Arch::SlowC2d | config::Arch::TwoD, _) => {
                Arch::SlowC2d
            }
            (config::Arch::C2d, _) => Arch::C2d,
        };
        let built = ModelConfig {
            arch,
            depth: resnet.depth,
            width_per_group: resnet.width_per_group,
            num_groups: resnet.num_groups,
            transform: match resnet.trans_func {
                config::TransFunc::Bottleneck => Transform::Bottleneck,
                config::TransFunc::Basic => Transform::Basic,
            },
            stride_1x1: resnet.stride_1x1,
            spatial_strides: four_stages("RESNET.SPATIAL_STRIDES", &resnet.spatial_strides)?,
            spatial_dilations: four_stages("RESNET.SPATIAL_DILATIONS", &resnet.spatial_dilations)?,
            num_block_temp_kernel: four_stages("RESNET.NUM_BLOCK_TEMP_KERNEL", &resnet.num_block_temp_kernel)?,
            zero_init_final_bn: resnet.zero_init_final_bn,
            zero_init_final_conv: resnet.zero_init_final_conv,
            frozen_bn: model.frozen_bn,
            gram: match config.vcycle.gram_batch_norm {
                config::GramBatchNorm::Auto => GramUse::Auto,
                config::GramBatchNorm::Always => GramUse::Always,
                config::GramBatchNorm::Never => GramUse::Never,
            },
            fused_conv_backward: config.vcycle.fused_conv_backward,
            fc_init_std: model.fc_init_std as f32,
            dropout_rate: model.dropout_rate as f32,
            num_classes: model.num_classes,
            head_activation: match model.head_act {
                config::HeadAct::Softmax => HeadActivation::Softmax,
                config::HeadAct::Sigmoid => HeadActivation::Sigmoid,
                config::HeadAct::None => HeadActivation::None,
            },
            head_grid: (!config.multigrid.short_cycle).then_some((config.data.num_frames, config.data.train_crop_size)),
            loss: match model.loss_func {
                config::LossFunc::CrossEntropy | config::LossFunc::SoftCrossEntropy => Loss::CrossEntropy,
                config::LossFunc::Bce | config::LossFunc::BceLogit => Loss::BinaryCrossEntropy,
            },
            alpha: slowfast.alpha,
            beta_inv: slowfast.beta_inv,
            fusion_conv_channel_ratio: slowfast.fusion_conv_channel_ratio,
            fusion_kernel_size: slowfast.fusion_kernel_sz,
            non_local: non_local(&config.nonlocal, arch)?,
            ..ModelConfig::new(arch, resnet.depth, model.num_classes)
        };
        built.check()?;
        Ok(built)
    }
}

/// Without blocks nothing is looked at, as in PySlowFast: its files for two pathways leave the lists of one.
fn non_local(section: &config::NonLocal, arch: Arch) -> Result<NonLocal> {
    let none = NonLocal::none(arch.num_pathways());
    if section.location.iter().flatten().all(Vec::is_empty) {
        return Ok(none);
    }
    let refuse = |key: &str, expected: &str, got: usize| {
        Err(Error::Config(format!("NONLOCAL.{key}: expected {expected}, got {got}")))
    };
    for (key, len) in
        [("LOCATION", section.location.len()), ("GROUP", section.group.len()), ("POOL", section.pool.len())]
    {
        if len != 4 {
            return refuse(key, "a list for each of 4 stages", len);
        }
    }
    let mut built = NonLocal { instantiation: NonLocal::instantiation_from_name(&section.instantiation)?, ..none };
    for stage in 0..4 {
        built.location[stage] = section.location[stage].clone();
        built.group[stage] = section.group[stage].clone();
        built.pool[stage].clear();
        for window in section.pool[stage].iter().take(arch.num_pathways()) {
            match window[..] {
                // PySlowFast: an empty list is no pool.
                [] => built.pool[stage].push([1; 3]),
                [t, h, w] => built.pool[stage].push([t, h, w]),
                _ => return refuse("POOL", "windows of 3 sizes", window.len()),
            }
        }
    }
    Ok(built)
}

fn four_stages(key: &str, list: &[Vec<usize>]) -> Result<[Vec<usize>; 4]> {
    list.to_vec()
        .try_into()
        .map_err(|_| Error::Config(format!("{key}: expected a list for each of 4 stages, got {} lists", list.len())))
}
