//! What a network looks like, in PySlowFast's terms, without any shape of a clip.

use super::non_local::NonLocal;
use crate::error::{Error, Result};

/// Architecture: decides pathways, temporal filters and the pool after stage 2 (PySlowFast MODEL.ARCH).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Two pathways with lateral connections.
    SlowFast,
    /// One pathway, temporal filters in stages 4 and 5 only.
    Slow,
    /// Inflated ResNet, frames halved after stage 2.
    I3d,
    /// Inflated ResNet without temporal pooling.
    SlowI3d,
    /// No temporal filters, frames halved after stage 2.
    C2d,
    /// No temporal filters, no temporal pooling (also called `2d`).
    SlowC2d,
}

impl Arch {
    /// From PySlowFast's name.
    pub fn from_name(name: &str) -> Result<Arch> {
        Ok(match name {
            "slowfast" => Arch::SlowFast,
            "slow" => Arch::Slow,
            "i3d" => Arch::I3d,
            "slow_i3d" => Arch::SlowI3d,
            "c2d" => Arch::C2d,
            "slow_c2d" | "2d" => Arch::SlowC2d,
            other => {
                let known = "slowfast, slow, i3d, slow_i3d, c2d, slow_c2d, 2d";
                return Err(Error::Config(format!("MODEL.ARCH: expected one of {known}; got {other}")));
            }
        })
    }

    /// Number of pathways.
    pub const fn num_pathways(self) -> usize {
        match self {
            Arch::SlowFast => 2,
            _ => 1,
        }
    }

    /// Temporal filter sizes of the stem (stage 0) and of the first convolutions of stages 1 to 4 (s2 to s5), repeated
    /// over the blocks of a stage.
    pub(super) fn temporal_kernels(self, stage: usize, pathway: usize) -> &'static [usize] {
        match (self, stage, pathway) {
            (Arch::SlowFast, 0, 1) => &[5],
            (Arch::SlowFast, _, 1) => &[3],
            (Arch::SlowFast | Arch::Slow, 3 | 4, 0) => &[3],
            (Arch::I3d | Arch::SlowI3d, 0, _) => &[5],
            (Arch::I3d | Arch::SlowI3d, 1, _) => &[3],
            (Arch::I3d | Arch::SlowI3d, 2 | 3, _) => &[3, 1],
            (Arch::I3d | Arch::SlowI3d, 4, _) => &[1, 3],
            _ => &[1],
        }
    }

    /// Factor by which a max pool after stage 2 shortens the frames.
    pub(super) const fn temporal_pool(self) -> usize {
        match self {
            Arch::I3d | Arch::C2d => 2,
            _ => 1,
        }
    }
}

/// What training minimises (PySlowFast MODEL.LOSS_FUNC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Cross-entropy of one class a clip.
    CrossEntropy,
    /// Cross-entropy of every class by itself (`bce_logit`), for any number of classes a clip.
    BinaryCrossEntropy,
}

/// The transformation of a residual block (PySlowFast RESNET.TRANS_FUNC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transform {
    /// Tx1x1, 1x3x3, 1x1x1.
    Bottleneck,
    /// Tx3x3, 1x3x3.
    Basic,
}

impl Transform {
    /// From PySlowFast's name.
    pub fn from_name(name: &str) -> Result<Transform> {
        match name {
            "bottleneck_transform" => Ok(Transform::Bottleneck),
            "basic_transform" => Ok(Transform::Basic),
            other => Err(Error::Config(format!(
                "RESNET.TRANS_FUNC: expected bottleneck_transform or basic_transform, got {other}"
            ))),
        }
    }
}

/// Where a training step of an executor with kernels takes the statistics of a batch norm from the input of the 1x1x1 convolution before
/// it, whose output is then stored nowhere: docs/gram_batch_norm.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GramUse {
    /// Where that is predicted to save time.
    #[default]
    Auto,
    /// Wherever it can be done.
    Always,
    /// Nowhere.
    Never,
}

/// What the head makes of the logits in evaluation (PySlowFast MODEL.HEAD_ACT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadActivation {
    /// Probabilities that add up to 1.
    Softmax,
    /// A probability for each class by itself.
    Sigmoid,
    /// The logits themselves.
    None,
}

/// A SlowFast network or a ResNet of one pathway. Lists hold one entry a stage (s2 to s5), then one a pathway.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// MODEL.ARCH.
    pub arch: Arch,
    /// RESNET.DEPTH: 18, 50 or 101.
    pub depth: usize,
    /// RESNET.WIDTH_PER_GROUP: channels of the stem.
    pub width_per_group: usize,
    /// RESNET.NUM_GROUPS of the 3x3 filters.
    pub num_groups: usize,
    /// RESNET.TRANS_FUNC.
    pub transform: Transform,
    /// RESNET.STRIDE_1X1: the stage's stride sits in the first convolution of a bottleneck instead of the second.
    pub stride_1x1: bool,
    /// RESNET.SPATIAL_STRIDES.
    pub spatial_strides: [Vec<usize>; 4],
    /// RESNET.SPATIAL_DILATIONS.
    pub spatial_dilations: [Vec<usize>; 4],
    /// RESNET.NUM_BLOCK_TEMP_KERNEL: blocks of a stage that have the architecture's temporal filters.
    pub num_block_temp_kernel: [Vec<usize>; 4],
    /// RESNET.ZERO_INIT_FINAL_BN: the last gamma of every block starts at 0.
    pub zero_init_final_bn: bool,
    /// RESNET.ZERO_INIT_FINAL_CONV: the last filter of every residual block starts at 0.
    pub zero_init_final_conv: bool,
    /// MODEL.FROZEN_BN: training normalises by the running statistics and leaves them as they are; gammas and betas learn.
    pub frozen_bn: bool,
    /// VCYCLE.GRAM_BATCH_NORM.
    pub gram: GramUse,
    /// VCYCLE.FUSED_CONV_BACKWARD.
    pub fused_conv_backward: bool,
    /// MODEL.FC_INIT_STD.
    pub fc_init_std: f32,
    /// MODEL.DROPOUT_RATE, before the projection.
    pub dropout_rate: f32,
    /// MODEL.NUM_CLASSES.
    pub num_classes: usize,
    /// MODEL.HEAD_ACT.
    pub head_activation: HeadActivation,
    /// DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE, whose maps are the windows over which the head averages in evaluation: at a
    /// larger crop it slides them and averages what the activation makes of each place (PySlowFast ResNetBasicHead, "fully
    /// convolutional"). `None`: one window as large as the map, as PySlowFast has it with MULTIGRID.SHORT_CYCLE.
    pub head_grid: Option<(usize, usize)>,
    /// MODEL.LOSS_FUNC.
    pub loss: Loss,
    /// SLOWFAST.ALPHA: frames of the fast pathway over frames of the slow one.
    pub alpha: usize,
    /// SLOWFAST.BETA_INV: channels of the slow pathway over channels of the fast one.
    pub beta_inv: usize,
    /// SLOWFAST.FUSION_CONV_CHANNEL_RATIO: channels of a lateral connection over channels of the fast pathway.
    pub fusion_conv_channel_ratio: usize,
    /// SLOWFAST.FUSION_KERNEL_SZ: frames that the filter of a lateral connection covers.
    pub fusion_kernel_size: usize,
    /// Non-local blocks.
    pub non_local: NonLocal,
    /// BN.EPSILON.
    pub bn_eps: f32,
    /// BN.MOMENTUM.
    pub bn_momentum: f32,
    /// Channels of a clip.
    pub input_channels: usize,
}

impl ModelConfig {
    /// `arch` at `depth` for `num_classes`, everything else as in PySlowFast's ready-made Kinetics files.
    pub fn new(arch: Arch, depth: usize, num_classes: usize) -> ModelConfig {
        let p = arch.num_pathways();
        let blocks = blocks_of_depth(depth).unwrap_or([2; 4]);
        ModelConfig {
            arch,
            depth,
            width_per_group: 64,
            num_groups: 1,
            transform: Transform::Bottleneck,
            stride_1x1: false,
            spatial_strides: [1, 2, 2, 2].map(|s| vec![s; p]),
            spatial_dilations: [1; 4].map(|d| vec![d; p]),
            num_block_temp_kernel: blocks.map(|b| vec![b; p]),
            zero_init_final_bn: true,
            zero_init_final_conv: false,
            frozen_bn: false,
            gram: GramUse::Auto,
            fused_conv_backward: true,
            fc_init_std: 0.01,
            dropout_rate: 0.5,
            num_classes,
            head_activation: HeadActivation::Softmax,
            head_grid: None,
            loss: Loss::CrossEntropy,
            alpha: 4,
            beta_inv: 8,
            fusion_conv_channel_ratio: 2,
            fusion_kernel_size: 7,
            non_local: NonLocal::none(p),
            bn_eps: 1e-5,
            bn_momentum: 0.1,
            input_channels: 3,
        }
    }

    /// Blocks of each stage.
    pub fn blocks(&self) -> Result<[usize; 4]> {
        blocks_of_depth(self.depth)
            .ok_or_else(|| Error::Config(format!("RESNET.DEPTH: expected 18, 50 or 101, got {}", self.depth)))
    }

    /// Frames of a clip for each frame of pathway `pathway`: ALPHA for the slow pathway of SlowFast, otherwise 1.
    pub fn frame_ratio(&self, pathway: usize) -> usize {
        match (self.arch, pathway) {
            (Arch::SlowFast, 0) => self.alpha,
            _ => 1,
        }
    }

    /// Channels of stage `stage` (0 is s2) of `pathway`, at its end.
    pub(super) fn stage_channels(&self, stage: usize, pathway: usize) -> usize {
        self.pathway_channels(self.width_per_group << (stage + 2), pathway)
    }

    /// `c` channels of the slow (or only) pathway are `c / BETA_INV` of the fast one.
    pub(super) fn pathway_channels(&self, c: usize, pathway: usize) -> usize {
        match (self.arch, pathway) {
            (Arch::SlowFast, 1) => c / self.beta_inv,
            _ => c,
        }
    }

    /// Refuses values that do not fit together, naming the key.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Config(message));
        let blocks = self.blocks()?;
        let p = self.arch.num_pathways();
        for (key, lists) in [
            ("RESNET.SPATIAL_STRIDES", &self.spatial_strides),
            ("RESNET.SPATIAL_DILATIONS", &self.spatial_dilations),
            ("RESNET.NUM_BLOCK_TEMP_KERNEL", &self.num_block_temp_kernel),
        ] {
            if lists.iter().any(|l| l.len() != p) {
                return refuse(format!("{key}: expected {p} numbers (one a pathway) in each stage, got {lists:?}"));
            }
        }
        let steps = || self.spatial_strides.iter().chain(&self.spatial_dilations).flatten();
        if let Some(got) = steps().find(|step| !(1..=MAX_STEP).contains(*step)) {
            return refuse(format!(
                "RESNET.SPATIAL_STRIDES and SPATIAL_DILATIONS: expected 1 to {MAX_STEP}, got {got}"
            ));
        }
        for (stage, counts) in self.num_block_temp_kernel.iter().enumerate() {
            if counts.iter().any(|&c| c > blocks[stage]) {
                let (got, stage, most) = (counts, stage + 2, blocks[stage]);
                return refuse(format!("RESNET.NUM_BLOCK_TEMP_KERNEL: s{stage} has {most} blocks, got {got:?}"));
            }
        }
        if self.width_per_group == 0 || self.num_groups == 0 || self.num_classes == 0 || self.input_channels == 0 {
            return refuse("RESNET.WIDTH_PER_GROUP, NUM_GROUPS and MODEL.NUM_CLASSES: must be at least 1".into());
        }
        if !(0.0..1.0).contains(&self.dropout_rate) {
            return refuse(format!("MODEL.DROPOUT_RATE: expected 0 <= rate < 1, got {}", self.dropout_rate));
        }
        if self.arch == Arch::SlowFast {
            self.check_slowfast()?;
        }
        self.non_local.check(self)
    }

    fn check_slowfast(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Config(message));
        let (ratio, beta_inv) = (self.fusion_conv_channel_ratio, self.beta_inv);
        if self.alpha == 0 || beta_inv == 0 || ratio == 0 || self.fusion_kernel_size == 0 {
            return refuse(
                "SLOWFAST.ALPHA, BETA_INV, FUSION_CONV_CHANNEL_RATIO, FUSION_KERNEL_SZ: at least 1".to_string(),
            );
        }
        if !self.width_per_group.is_multiple_of(beta_inv) || !beta_inv.is_multiple_of(ratio) {
            return refuse(format!(
                "SLOWFAST.BETA_INV: expected a divisor of RESNET.WIDTH_PER_GROUP {} and a multiple of \
                 SLOWFAST.FUSION_CONV_CHANNEL_RATIO {ratio}, got {beta_inv}",
                self.width_per_group
            ));
        }
        if self.stride_1x1 {
            return refuse("RESNET.STRIDE_1X1: PySlowFast never uses it for SlowFast; set it to False".into());
        }
        Ok(())
    }
}

/// Largest stride and dilation, in pixels: beyond it no picture has a second tap.
const MAX_STEP: usize = 1 << 14;

fn blocks_of_depth(depth: usize) -> Option<[usize; 4]> {
    match depth {
        18 => Some([2, 2, 2, 2]),
        50 => Some([3, 4, 6, 3]),
        101 => Some([3, 4, 23, 3]),
        _ => None,
    }
}
