//! Keys whose value is one of a few words: the words, and what they mean.

use super::entry::choice;

choice! {
    /// MODEL.ARCH.
    Arch {
        /// Two pathways with lateral connections.
        SlowFast = "slowfast",
        /// One pathway, temporal filters in the last two stages only.
        Slow = "slow",
        /// One pathway, inflated filters, temporal pooling after the second stage.
        I3d = "i3d",
        /// As i3d, without temporal pooling.
        SlowI3d = "slow_i3d",
        /// One pathway, spatial filters only, temporal pooling after the second stage.
        C2d = "c2d",
        /// As c2d, without temporal pooling.
        SlowC2d = "slow_c2d",
        /// Another name of slow_c2d.
        TwoD = "2d",
    }
}

choice! {
    /// MODEL.MODEL_NAME.
    ModelName {
        /// Goes with ARCH slowfast.
        SlowFast = "SlowFast",
        /// Goes with every other ARCH.
        ResNet = "ResNet",
        /// ResNet without temporal pooling after the second stage, as the model zoo's first C2D file names it.
        ResNetNoPool = "ResNet_nopool",
    }
}

choice! {
    /// RESNET.TRANS_FUNC.
    TransFunc {
        /// 1x1x1, 1x3x3, 1x1x1.
        Bottleneck = "bottleneck_transform",
        /// Two filters of 3x3.
        Basic = "basic_transform",
    }
}

choice! {
    /// BN.NORM_TYPE.
    NormType {
        /// Statistics over the clips of one device.
        BatchNorm = "batchnorm",
        /// Statistics over each of NUM_SPLITS parts of one device's clips.
        SubBatchNorm = "sub_batchnorm",
        /// Statistics over the clips of NUM_SYNC_DEVICES devices.
        SyncBatchNorm = "sync_batchnorm",
    }
}

choice! {
    /// SOLVER.LR_POLICY.
    LrPolicy {
        /// Half a cosine from BASE_LR to COSINE_END_LR.
        Cosine = "cosine",
        /// BASE_LR times the entry of LRS that STEPS selects.
        StepsWithRelativeLrs = "steps_with_relative_lrs",
    }
}

choice! {
    /// SOLVER.OPTIMIZING_METHOD.
    OptimizingMethod {
        /// Stochastic gradient descent with momentum.
        Sgd = "sgd",
    }
}

choice! {
    /// MODEL.LOSS_FUNC.
    LossFunc {
        /// Softmax cross-entropy over single labels.
        CrossEntropy = "cross_entropy",
        /// The same, over targets that may be shared among classes, as those of MIXUP.
        SoftCrossEntropy = "soft_cross_entropy",
        /// Binary cross-entropy of sigmoids, for several labels a clip.
        Bce = "bce",
        /// The same, from logits.
        BceLogit = "bce_logit",
    }
}

choice! {
    /// MODEL.HEAD_ACT: what becomes of the logits in validation and test.
    HeadAct {
        /// Probabilities that add up to 1.
        Softmax = "softmax",
        /// A probability for each class by itself, for clips with several labels.
        Sigmoid = "sigmoid",
        /// Nothing: scores are the logits.
        None = "none",
    }
}

choice! {
    /// DATA.ENSEMBLE_METHOD.
    EnsembleMethod {
        /// The sum over the views.
        Sum = "sum",
        /// The largest of the views, for each class.
        Max = "max",
    }
}

choice! {
    /// TRAIN.DATASET and TEST.DATASET.
    Dataset {
        /// Videos listed in `train.csv` and `val.csv`, one label each.
        Kinetics = "kinetics",
        /// Clips made on the fly from RNG_SEED; the label is the motion.
        MovingShapes = "moving_shapes",
        /// Something-Something V2: json lists, frames or video files.
        Ssv2 = "ssv2",
        /// Charades: frame lists with any number of labels a frame.
        Charades = "charades",
    }
}

choice! {
    /// DATA.DECODING_BACKEND.
    DecodingBackend {
        /// PySlowFast's word for video files and pictures as they are; decoded by the program itself or by `ffmpeg`.
        Torchvision = "torchvision",
        /// The same.
        Pyav = "pyav",
        /// Frames that `vcycle pack` has stored.
        Packed = "packed",
    }
}

choice! {
    /// VCYCLE.PRECISE_BN_SHAPE: which batches BN.USE_PRECISE_STATS looks at.
    PreciseBnShape {
        /// TRAIN.BATCH_SIZE, DATA.NUM_FRAMES and DATA.TRAIN_CROP_SIZE: the shape that is evaluated.
        Default = "default",
        /// The shape that the long cycle stands at, without the short cycle: what PySlowFast's loader gives.
        LongCycle = "long_cycle",
    }
}

choice! {
    /// VCYCLE.PRECISION: what executors with kernels store activations and their gradients in.
    Precision {
        /// bfloat16: the exponents of f32, no loss scale needed.
        Bf16 = "bf16",
        /// IEEE half precision, three more digits, with dynamic loss scaling.
        F16 = "f16",
    }
}

choice! {
    /// VCYCLE.GRAM_BATCH_NORM: where batch norm takes its statistics from the convolution's input (docs/gram_batch_norm.md).
    GramBatchNorm {
        /// Where that is predicted to save time.
        Auto = "auto",
        /// Wherever it can be done.
        Always = "always",
        /// Nowhere.
        Never = "never",
    }
}

choice! {
    /// TRAIN.CHECKPOINT_TYPE.
    CheckpointType {
        /// Any format but caffe2's; which one tells the file itself.
        PyTorch = "pytorch",
        /// A pickle of caffe2's blobs.
        Caffe2 = "caffe2",
    }
}

choice! {
    /// VCYCLE.RESAMPLE: how source frames become the pixels of a grid.
    Resample {
        /// Linear in t, y and x at fractional positions.
        Trilinear = "trilinear",
        /// Linear with the support widened by the stride where the grid is coarser than the source.
        TrilinearAntialias = "trilinear_antialias",
        /// PySlowFast's: nearest frame, its rounding, resize then crop.
        Peer = "peer",
    }
}
