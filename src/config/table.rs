//! The key table: every key that this project reads, with its type, default and meaning, in this one place.
//! Names and defaults are those of PySlowFast (slowfast/config/defaults.py); `VCYCLE` is our own.

use super::choices::{
    Arch, CheckpointType, Dataset, DecodingBackend, EnsembleMethod, GramBatchNorm, HeadAct, LossFunc, LrPolicy,
    ModelName, NormType, OptimizingMethod, PreciseBnShape, Precision, Resample, TransFunc,
};
use super::entry::section;

section! {
    /// Section TRAIN.
    Train {
        /// Trains; `vcycle train` refuses False.
        enable: bool = true;
        /// Where clips come from.
        dataset: Dataset = Dataset::Kinetics;
        /// Clips in a mini-batch at the default shape, over all devices.
        batch_size: usize = 64;
        /// Epochs between two validations where no long cycle sets them.
        eval_period: usize = 10;
        /// Epochs between two checkpoints where no long cycle sets them.
        checkpoint_period: usize = 10;
        /// Continues from the newest checkpoint in OUTPUT_DIR where there is one, as `--resume` does.
        auto_resume: bool = true;
        /// Weights to start from: a file of PyTorch, caffe2 or safetensors, or the folder of a run.
        checkpoint_file_path: String = String::new();
        /// `caffe2` refuses files of any other program; otherwise the file itself tells its format.
        checkpoint_type: CheckpointType = CheckpointType::PyTorch;
        /// Inflates 2D filters of that file.
        checkpoint_inflate: bool = false;
        /// Takes its weights alone and begins at epoch 0, even if it holds an epoch and momenta.
        checkpoint_epoch_reset: bool = false;
        /// Texts of which the first occurrence in each of its names goes away.
        checkpoint_clear_name_pattern: Vec<String> = vec![];
        /// 16-bit activations, of the type VCYCLE.PRECISION. Kernels have them always, the CPU never; a run says what it computes in.
        mixed_precision: bool = false;
    }
}

section! {
    /// Section TEST.
    Test {
        /// Tests after training, with the views below.
        enable: bool = true;
        /// Where the videos of the test come from.
        dataset: Dataset = Dataset::Kinetics;
        /// Clips in a mini-batch of validation and test, over all devices.
        batch_size: usize = 8;
        /// Weights to test; if empty the newest checkpoint in OUTPUT_DIR, or else TRAIN.CHECKPOINT_FILE_PATH.
        checkpoint_file_path: String = String::new();
        /// Clips in time of each video.
        num_ensemble_views: usize = 10;
        /// Crops in space of each clip: 1 to 3, along the longer side.
        num_spatial_crops: usize = 3;
        /// A test for each of these numbers of clips in time, in place of NUM_ENSEMBLE_VIEWS.
        num_temporal_clips: Vec<usize> = vec![];
        /// File for the scores of all videos, below OUTPUT_DIR; none if empty.
        save_results_path: String = String::new();
    }
}

section! {
    /// Section BN.
    Bn {
        /// Recomputes the running statistics before each validation, at the shape of VCYCLE.PRECISE_BN_SHAPE.
        use_precise_stats: bool = false;
        /// Batches for that.
        num_batches_precise: usize = 200;
        /// Weight decay of gamma and beta.
        weight_decay: f64 = 0.0;
        /// Whose clips share statistics. The long cycle sets it.
        norm_type: NormType = NormType::BatchNorm;
        /// Parts of one device's batch, for sub_batchnorm. The long cycle sets it.
        num_splits: usize = 1;
        /// Devices that share statistics, for sync_batchnorm. The long cycle sets it.
        num_sync_devices: usize = 1;
    }
}

section! {
    /// Section RESNET.
    ResNet {
        /// Residual block.
        trans_func: TransFunc = TransFunc::Bottleneck;
        /// Groups of the middle filter.
        num_groups: usize = 1;
        /// Channels of the first stage's middle filter.
        width_per_group: usize = 64;
        /// Puts the spatial stride in the first 1x1 filter instead of the 3x3.
        stride_1x1: bool = false;
        /// Starts the last gamma of each block at zero.
        zero_init_final_bn: bool = false;
        /// Starts the last filter of each block at zero.
        zero_init_final_conv: bool = false;
        /// Layers: 18 (two blocks a stage), 50 or 101.
        depth: usize = 50;
        /// Blocks with temporal filters, per stage and pathway.
        num_block_temp_kernel: Vec<Vec<usize>> = vec![vec![3], vec![4], vec![6], vec![3]];
        /// Spatial stride, per stage and pathway.
        spatial_strides: Vec<Vec<usize>> = vec![vec![1], vec![2], vec![2], vec![2]];
        /// Spatial dilation, per stage and pathway.
        spatial_dilations: Vec<Vec<usize>> = vec![vec![1]; 4];
    }
}

section! {
    /// Section NONLOCAL.
    NonLocal {
        /// Blocks that get a non-local block, per stage and pathway.
        location: Vec<Vec<Vec<usize>>> = vec![vec![vec![]]; 4];
        /// Temporal groups, per stage and pathway.
        group: Vec<Vec<usize>> = vec![vec![1]; 4];
        /// `softmax` or `dot_product`.
        instantiation: String = "dot_product".into();
        /// Pooling window `[t, h, w]`, per stage and pathway.
        pool: Vec<Vec<Vec<usize>>> = vec![vec![vec![1, 2, 2]; 2]; 4];
    }
}

section! {
    /// Section MODEL.
    Model {
        /// Network.
        arch: Arch = Arch::SlowFast;
        /// Family of the network; must go with ARCH.
        model_name: ModelName = ModelName::SlowFast;
        /// Values of ARCH whose clips have one pathway.
        single_pathway_arch: Vec<String> = ["2d", "c2d", "i3d", "slow", "x3d", "mvit", "maskmvit"].map(String::from).to_vec();
        /// Values of ARCH whose clips have a slow and a fast pathway.
        multi_pathway_arch: Vec<String> = vec!["slowfast".into()];
        /// Classes.
        num_classes: usize = 400;
        /// Loss.
        loss_func: LossFunc = LossFunc::CrossEntropy;
        /// Dropout before the classifier.
        dropout_rate: f64 = 0.5;
        /// Standard deviation of the classifier's initial weights.
        fc_init_std: f64 = 0.01;
        /// Trains with the running statistics of the batch norms and leaves them as they are.
        frozen_bn: bool = false;
        /// Activation of the classifier in validation and test.
        head_act: HeadAct = HeadAct::Softmax;
    }
}

section! {
    /// Section SLOWFAST.
    SlowFast {
        /// Slow pathway's channels over the fast one's.
        beta_inv: usize = 8;
        /// Fast pathway's frames over the slow one's.
        alpha: usize = 8;
        /// Channels of a lateral connection over the fast pathway's.
        fusion_conv_channel_ratio: usize = 2;
        /// Frames under a lateral filter.
        fusion_kernel_sz: usize = 5;
    }
}

section! {
    /// Section DATA.
    Data {
        /// Folder of the lists, such as train.csv and val.csv; with DECODING_BACKEND `packed`, the folder that `vcycle pack` made.
        path_to_data_dir: String = String::new();
        /// Between path and label in a list file.
        path_label_separator: String = " ".into();
        /// Put before relative paths of a list file; empty: PATH_TO_DATA_DIR.
        path_prefix: String = String::new();
        /// `packed` reads frames that `vcycle pack` has stored; the others read video files and pictures as they are.
        decoding_backend: DecodingBackend = DecodingBackend::Torchvision;
        /// Frames of the (fast) input at the default shape, T.
        num_frames: usize = 8;
        /// Distance of two frames in the source, in frames at TARGET_FPS.
        sampling_rate: usize = 8;
        /// Frame rate that SAMPLING_RATE counts in.
        target_fps: usize = 30;
        /// Mean of R, G, B in 0..1.
        mean: [f64; 3] = [0.45; 3];
        /// Standard deviation of R, G, B in 0..1.
        std: [f64; 3] = [0.225; 3];
        /// Channels of each pathway's input.
        input_channel_num: Vec<usize> = vec![3, 3];
        /// Short side after the random resize, smallest and largest, px.
        train_jitter_scales: [usize; 2] = [256, 320];
        /// Crop at the default shape, px.
        train_crop_size: usize = 224;
        /// Crop of the multi-view test, px; validation uses TRAIN_CROP_SIZE.
        test_crop_size: usize = 256;
        /// Draws the reciprocal of the short side uniformly.
        inv_uniform_sample: bool = false;
        /// Mirrors half of the training clips.
        random_flip: bool = true;
        /// Places the views of a test clip at whole offsets.
        use_offset_sampling: bool = false;
        /// How the scores of a video's views become its own.
        ensemble_method: EnsembleMethod = EnsembleMethod::Sum;
        /// Several labels a clip: Charades.
        multi_label: bool = false;
        /// Turns the order of the channels: videos, which are RGB, to BGR; frames of Something-Something V2 and Charades,
        /// which PySlowFast reads as BGR, to RGB.
        reverse_input_channel: bool = false;
    }
}

section! {
    /// Section SOLVER.
    Solver {
        /// Learning rate.
        base_lr: f64 = 0.1;
        /// How it falls.
        lr_policy: LrPolicy = LrPolicy::Cosine;
        /// Last rate of the cosine.
        cosine_end_lr: f64 = 0.0;
        /// Factor from one rate to the next, for the long cycle.
        gamma: f64 = 0.1;
        /// Epochs at which the rate changes, starting with 0.
        steps: Vec<usize> = vec![];
        /// Rates relative to BASE_LR, one for each of STEPS.
        lrs: Vec<f64> = vec![];
        /// Epochs of the baseline; multigrid rescales it.
        max_epoch: usize = 300;
        /// Momentum.
        momentum: f64 = 0.9;
        /// Dampening of the gradient in the momentum.
        dampening: f64 = 0.0;
        /// Nesterov's form of momentum.
        nesterov: bool = true;
        /// Weight decay of filters and the classifier.
        weight_decay: f64 = 1e-4;
        /// Epochs of linear warm-up; multigrid does not rescale it.
        warmup_epochs: f64 = 0.0;
        /// Rate at the start of the warm-up.
        warmup_start_lr: f64 = 0.01;
        /// Optimizer.
        optimizing_method: OptimizingMethod = OptimizingMethod::Sgd;
        /// Starts the cosine at the end of the warm-up.
        cosine_after_warmup: bool = false;
        /// No weight decay for parameters of one dimension.
        zero_wd_1d_param: bool = false;
        /// Cuts every element of the gradient off at this absolute value; None or 0 does not.
        clip_grad_val: Option<f64> = None;
        /// Scales the gradient of all parameters together down to this norm; None or 0 does not.
        clip_grad_l2norm: Option<f64> = None;
    }
}

section! {
    /// Section MIXUP: blends of two clips of a training batch, and of their labels.
    Mixup {
        /// Blends, and smooths labels.
        enable: bool = false;
        /// Parameter of the beta distribution that shares are drawn from; 0: no mixup.
        alpha: f64 = 0.8;
        /// The same for CutMix, which exchanges a box; 0: no CutMix.
        cutmix_alpha: f64 = 1.0;
        /// Share of the batches that are blended.
        prob: f64 = 1.0;
        /// Share of those for CutMix, where both are asked for.
        switch_prob: f64 = 0.5;
        /// Share of every label that is spread over all classes.
        label_smooth_value: f64 = 0.1;
    }
}

section! {
    /// Section MULTIGRID.
    Multigrid {
        /// Epochs over the baseline's.
        epoch_factor: f64 = 1.5;
        /// Changes the crop every iteration.
        short_cycle: bool = false;
        /// Crops of the short cycle's first two iterations over the default crop.
        short_cycle_factors: [f64; 2] = [0.5, std::f64::consts::FRAC_1_SQRT_2];
        /// Changes frames and crop in steps of epochs.
        long_cycle: bool = false;
        /// (frames, crop) of each long-cycle shape over the default's.
        long_cycle_factors: Vec<[f64; 2]> = {
            let root_half = std::f64::consts::FRAC_1_SQRT_2;
            vec![[0.25, root_half], [0.5, root_half], [0.5, 1.0], [1.0, 1.0]]
        };
        /// Clips in a group of batch-norm statistics.
        bn_base_size: usize = 8;
        /// Validations per segment of the long cycle.
        eval_freq: usize = 3;
    }
}

section! {
    /// Section DATA_LOADER.
    DataLoader {
        /// Threads that decode.
        num_workers: usize = 8;
    }
}

section! {
    /// Section DEMO.
    Demo {
        /// Names of the classes: a JSON object from name to number, a JSON list, or a name a line.
        label_file_path: String = String::new();
    }
}

section! {
    /// Section VCYCLE.MOVING_SHAPES, the synthetic data set.
    MovingShapes {
        /// Clips of the training set.
        num_train_clips: usize = 2048;
        /// Clips of the validation set.
        num_val_clips: usize = 512;
        /// Frames of a source clip.
        frames: usize = 40;
        /// Rows and columns of a source clip.
        size_px: usize = 80;
        /// Standard deviation of the noise on every byte, in grey levels.
        noise: f64 = 12.0;
        /// Shapes that move as the label says.
        shapes: usize = 3;
        /// Shapes that swing to and fro and do not matter.
        distractors: usize = 2;
        /// Slowest and fastest motion; 1 moves by a 64th of the picture a frame.
        speed: Vec<f64> = vec![0.5, 1.5];
        /// How far the main shape's colours are from the background, 0..=1.
        contrast: f64 = 0.6;
        /// Largest random shift of the whole picture in each frame, in pixels.
        shake_px: f64 = 0.5;
        /// Share of the clips, for training and for validation, that move as drawn at random, whatever their label.
        label_noise: f64 = 0.0;
    }
}

section! {
    /// Section VCYCLE: what PySlowFast has no key for.
    Vcycle {
        /// How source frames become the pixels of a grid.
        resample: Resample = Resample::Trilinear;
        /// Which batches BN.USE_PRECISE_STATS looks at.
        precise_bn_shape: PreciseBnShape = PreciseBnShape::Default;
        /// 16-bit type of activations and their gradients on executors with kernels.
        precision: Precision = Precision::Bf16;
        /// Batch norms of expanding 1x1x1 convolutions, on executors with kernels: from moments of the convolution's input, its output stored
        /// nowhere (docs/gram_batch_norm.md).
        gram_batch_norm: GramBatchNorm = GramBatchNorm::Auto;
        /// Both gradients of a 1x1x1 convolution by one kernel where memory limits them, on executors with kernels.
        fused_conv_backward: bool = true;
        /// Decoded clips that are kept in memory, GiB for training and as much for validation; the rest is decoded each time.
        cache_gib: f64 = 1.0;
        /// Share of the device's memory (of the machine's, on the CPU) that a network may take. A training step that would need more runs in
        /// micro-batches of whole batch-norm splits, with the same bits.
        memory_fraction: f64 = 0.9;
        /// Ending of Something-Something V2's video files, such as `webm`: PATH_PREFIX/ID.webm is read. Empty: the frames
        /// that train.csv and val.csv list.
        ssv2_videos: String = String::new();
        /// Checkpoints kept, the newest.
        keep_checkpoints: usize = 3;
        /// Minutes of training that a kill may lose: an epoch that lasts longer is saved in between.
        checkpoint_minutes: f64 = 2.0;
        /// The synthetic data set.
        moving_shapes: MovingShapes = MovingShapes::default();
    }
}

section! {
    /// A configuration: PySlowFast's keys in lower case (`cfg.data.train_crop_size` is `DATA.TRAIN_CROP_SIZE`).
    Config {
        /// Training.
        train: Train = Train::default();
        /// Validation and test.
        test: Test = Test::default();
        /// Batch norm.
        bn: Bn = Bn::default();
        /// Residual stages.
        resnet: ResNet = ResNet::default();
        /// Non-local blocks.
        nonlocal: NonLocal = NonLocal::default();
        /// Network.
        model: Model = Model::default();
        /// The two pathways.
        slowfast: SlowFast = SlowFast::default();
        /// Clips.
        data: Data = Data::default();
        /// Optimizer and learning rate.
        solver: Solver = Solver::default();
        /// Mixup and CutMix.
        mixup: Mixup = Mixup::default();
        /// Multigrid.
        multigrid: Multigrid = Multigrid::default();
        /// Loader.
        data_loader: DataLoader = DataLoader::default();
        /// Names of classes.
        demo: Demo = Demo::default();
        /// Own additions.
        vcycle: Vcycle = Vcycle::default();
        /// GPUs that TRAIN.BATCH_SIZE is divided among; fewer devices take several shares each.
        num_gpus: usize = 1;
        /// Folder of the run; `.` means runs/NAME/.
        output_dir: String = ".".into();
        /// Seed of every random stream.
        rng_seed: usize = 1;
        /// Iterations between two lines of progress.
        log_period: usize = 10;
    }
}
