//! Plans: no two live tensors overlap, every tensor is written before it is read, memory and work as expected.

use proptest::prelude::*;
use vcycle::config::Config;
use vcycle::device::{CudaDevice, Device, Gpu};
use vcycle::model::plan::{ALIGNMENT_BYTES, Access, Memory, Place, Storage, assign_offsets};
use vcycle::model::{Arch, Mode, Model, ModelConfig, Network, Plan, Transform};
use vcycle::ops::attention::Instantiation;
use vcycle::optimizer::{SgdConfig, param_ranges};
use vcycle::shape::StepShape;

fn plan(config: &ModelConfig, shape: StepShape, mode: Mode) -> vcycle::Result<Plan> {
    let stream = Device::Cpu.stream().expect("stream");
    Plan::new(&stream, &Model::new(config).expect("model"), shape, mode, 3)
}

fn small(arch: Arch) -> ModelConfig {
    ModelConfig { width_per_group: 16, ..ModelConfig::new(arch, 18, 5) }
}

proptest! {
    #[test]
    fn storages_that_live_together_never_overlap(
        sizes in prop::collection::vec((1usize..5000, 0usize..40, 0usize..12), 1..60),
    ) {
        let mut storages: Vec<Storage> = sizes
            .iter()
            .map(|&(len_bytes, first_op, length)| Storage { len_bytes, first_op, last_op: first_op + length, offset_bytes: 0 })
            .collect();
        let arena_bytes = assign_offsets(&mut storages);
        for (i, a) in storages.iter().enumerate() {
            prop_assert!(a.offset_bytes % ALIGNMENT_BYTES == 0 && a.offset_bytes + a.len_bytes <= arena_bytes);
            for b in &storages[..i] {
                let apart = a.offset_bytes + a.len_bytes <= b.offset_bytes || b.offset_bytes + b.len_bytes <= a.offset_bytes;
                prop_assert!(apart || !a.lives_with(b), "{a:?} and {b:?}");
            }
        }
        // No better than the most that is alive at once, and not worse than everything side by side.
        let at = |op: usize| -> usize { storages.iter().filter(|s| s.first_op <= op && op <= s.last_op).map(|s| s.len_bytes).sum() };
        let side_by_side: usize = storages.iter().map(|s| s.len_bytes.next_multiple_of(ALIGNMENT_BYTES)).sum();
        prop_assert!((0..60).all(|op| at(op) <= arena_bytes) && arena_bytes <= side_by_side);
    }

    #[test]
    fn plans_read_only_what_is_written(
        arch in prop::sample::select(vec![Arch::SlowFast, Arch::Slow, Arch::I3d, Arch::C2d]),
        basic in any::<bool>(),
        train in any::<bool>(),
        clips in 1usize..4,
        frames in prop::sample::select(vec![4usize, 8, 16]),
        height_px in 32usize..70,
        splits in 1usize..4,
        non_local in prop::option::of((any::<bool>(), 1usize..3, 1usize..3)),
    ) {
        let transform = if basic { Transform::Basic } else { Transform::Bottleneck };
        let config = with_blocks(ModelConfig { transform, ..small(arch) }, non_local);
        let mode = if train { Mode::Train } else { Mode::Eval };
        let plan = plan(&config, StepShape { clips, frames, height_px, width_px: 40, splits }, mode).expect("plan");
        check_plan(&plan);
    }
}

/// Softmax or not, temporal groups (which divide the frames), pool of keys.
pub(super) fn with_blocks(config: ModelConfig, blocks: Option<(bool, usize, usize)>) -> ModelConfig {
    let Some((is_softmax, groups, pool)) = blocks else { return config };
    let kind = if is_softmax { Instantiation::Softmax } else { Instantiation::DotProduct };
    let is_short = matches!(config.arch, Arch::SlowFast | Arch::I3d | Arch::C2d); // one frame may be left
    super::with_non_local(config, kind, if is_short { 1 } else { groups }, [1, pool, pool])
}

/// Bytes of the arena that a tensor may touch: its channels at every position are counted as its whole storage.
fn storage_of(plan: &Plan, tensor: usize) -> Option<usize> {
    match plan.tensors[tensor].place {
        Place::Input(_) => None,
        Place::Arena { storage, .. } => Some(storage),
    }
}

/// What a tensor covers: its storage and the channels of it.
fn covers(plan: &Plan, tensor: usize) -> Option<(usize, std::ops::Range<usize>)> {
    match plan.tensors[tensor].place {
        Place::Input(_) => None,
        Place::Arena { storage, offset_c, .. } => Some((storage, offset_c..offset_c + plan.tensors[tensor].shape.c)),
    }
}

pub(super) fn check_plan(plan: &Plan) {
    // Channels of each storage that hold something.
    let mut written: Vec<Vec<std::ops::Range<usize>>> = vec![vec![]; plan.storages.len()];
    for (i, op) in plan.ops().enumerate() {
        let mut accesses = vec![];
        op.visit(&mut |a| accesses.push(a));
        for access in &accesses {
            let Some((storage, channels)) = covers(plan, access.tensor()) else { continue };
            if !matches!(access, Access::Write(_)) {
                let is_there = channels.clone().all(|c| written[storage].iter().any(|w| w.contains(&c)));
                assert!(is_there, "op {i} {op:?} reads {} before it is written", plan.tensors[access.tensor()].name);
            }
        }
        for access in &accesses {
            if let (Access::Write(t), Some((storage, channels))) = (access, covers(plan, access.tensor())) {
                written[storage].push(channels);
                // Nothing alive may be hit by this write.
                for (j, other) in plan.storages.iter().enumerate() {
                    let mine = &plan.storages[storage];
                    let overlaps = mine.offset_bytes < other.offset_bytes + other.len_bytes
                        && other.offset_bytes < mine.offset_bytes + mine.len_bytes;
                    let is_alive = other.first_op <= i && i <= other.last_op;
                    assert!(j == storage || !overlaps || !is_alive, "op {i} overwrites storage {j}: {t}");
                }
            }
        }
    }
    assert!(storage_of(plan, plan.logits).is_some_and(|s| plan.storages[s].last_op >= plan.ops().count()));
}

#[test]
fn concatenations_cost_nothing() {
    let plan = plan(&small(Arch::SlowFast), StepShape::square(2, 8, 64, 1), Mode::Train).expect("plan");
    let pitched: Vec<&str> = plan
        .tensors
        .iter()
        .filter(|t| matches!(t.place, Place::Arena { pitch_c, .. } if pitch_c != t.shape.c))
        .map(|t| t.name.as_str())
        .collect();
    for name in ["s2.pathway0_res1.branch2.c_bn", "s2_fuse.bn", "grad s2_fuse.bn", "head.pathway1_avgpool"] {
        assert!(pitched.contains(&name), "{name} does not lie in its concatenation: {pitched:?}");
    }
}

#[test]
fn evaluation_needs_less_memory_than_training() {
    let config = ModelConfig::new(Arch::SlowFast, 50, 400);
    let shape = StepShape::square(1, 32, 112, 1);
    let train = plan(&config, shape, Mode::Train).expect("train");
    let eval = plan(&config, shape, Mode::Eval).expect("eval");
    assert!(eval.arena_bytes * 4 < train.arena_bytes, "{} and {}", eval.summary(), train.summary());
    // Every tensor that backward needs, once: the arena's floor.
    let kept: usize = train.storages.iter().filter(|s| s.last_op > train.forward.len()).map(|s| s.len_bytes).sum();
    assert!(train.arena_bytes < kept + kept / 4, "{} for {kept} bytes", train.summary());
    // Backward is twice forward but for the input gradient of the stems.
    assert!(train.backward_macs < 2 * train.forward_macs && 3 * train.backward_macs > 5 * train.forward_macs);
}

/// What is counted is what a network asks of its device, but for labels, tables and counters.
#[test]
fn memory_is_counted_as_it_is_allocated() {
    let gpu = CudaDevice::described(Gpu::known("h100").expect("h100"));
    let model = Model::new(&ModelConfig { width_per_group: 32, ..small(Arch::SlowFast) }).expect("model");
    let mut network = Network::new(&Device::Cuda(gpu.clone()), model, 0).expect("network");
    let shapes = [StepShape::square(64, 8, 112, 4), StepShape::square(8, 32, 224, 1)];
    network.prepare(&shapes, &shapes[1..]).expect("prepare");
    let modes = [(Mode::Train, shapes[0]), (Mode::Train, shapes[1]), (Mode::Eval, shapes[1])];
    let plans: Vec<&Plan> = modes.iter().map(|&(mode, shape)| network.plan(mode, shape).expect("plan")).collect();
    let (asked, counted) = (gpu.asked_bytes(), Memory::of(network.model(), &plans).total() as u64);
    assert!(
        counted <= asked && asked - counted < counted / 1000 + (1 << 20),
        "{counted} bytes counted, {asked} asked for"
    );
}

#[test]
fn a_plan_can_be_read() {
    let plan = plan(&small(Arch::C2d), StepShape::square(2, 4, 32, 2), Mode::Train).expect("plan");
    let text = plan.to_string();
    assert_eq!(text.lines().count(), 1 + plan.ops().count());
    assert!(text.starts_with("train 2x4x32: ") && text.contains("ConvGradFilter"), "{text}");
}

#[test]
fn grids_that_do_not_fit_are_refused() {
    let refused = |config: &ModelConfig, shape: StepShape, word: &str| {
        let message = plan(config, shape, Mode::Train).expect_err("must be refused").to_string();
        assert!(message.contains(word), "{message}");
    };
    refused(&small(Arch::SlowFast), StepShape::square(2, 6, 64, 1), "2x6x64");
    refused(&small(Arch::SlowFast), StepShape::square(2, 6, 64, 1), "ALPHA");
    refused(&small(Arch::Slow), StepShape::square(0, 4, 64, 1), "at least 1");
    refused(&small(Arch::Slow), StepShape::square(1, 4, 64, 0), "split");
    refused(&small(Arch::I3d), StepShape::square(1, 1, 64, 1), "pool");
    refused(&small(Arch::Slow), StepShape::square(1, 1, 32, 1), "s5.pathway0_res0.branch1_bn");
    refused(&small(Arch::Slow), StepShape::square(4, 1, 32, 4), "no variance");
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let refused = |config: ModelConfig, key: &str| {
        let message = Model::new(&config).expect_err("must be refused").to_string();
        assert!(message.contains(key), "{message}");
    };
    let base = small(Arch::SlowFast);
    refused(ModelConfig { depth: 34, ..base.clone() }, "RESNET.DEPTH");
    refused(ModelConfig { beta_inv: 3, ..base.clone() }, "SLOWFAST.BETA_INV");
    refused(ModelConfig { alpha: 0, ..base.clone() }, "SLOWFAST.ALPHA");
    refused(ModelConfig { stride_1x1: true, ..base.clone() }, "RESNET.STRIDE_1X1");
    refused(ModelConfig { dropout_rate: 1.0, ..base.clone() }, "MODEL.DROPOUT_RATE");
    refused(
        ModelConfig { num_block_temp_kernel: [(); 4].map(|()| vec![3, 3]), ..base.clone() },
        "NUM_BLOCK_TEMP_KERNEL",
    );
    refused(ModelConfig { spatial_strides: [(); 4].map(|()| vec![1]), ..base }, "RESNET.SPATIAL_STRIDES");
    assert!(Arch::from_name("x3d").is_err() && Transform::from_name("x3d_transform").is_err());
}

#[test]
fn a_configuration_file_gives_the_network_that_pyslowfast_builds() {
    let yaml = "
MODEL: {NUM_CLASSES: 400, ARCH: slowfast, MODEL_NAME: SlowFast}
SLOWFAST: {ALPHA: 4, BETA_INV: 8, FUSION_CONV_CHANNEL_RATIO: 2, FUSION_KERNEL_SZ: 7}
RESNET:
  ZERO_INIT_FINAL_BN: True
  NUM_BLOCK_TEMP_KERNEL: [[3, 3], [4, 4], [6, 6], [3, 3]]
  SPATIAL_STRIDES: [[1, 1], [2, 2], [2, 2], [2, 2]]
  SPATIAL_DILATIONS: [[1, 1], [1, 1], [1, 1], [1, 1]]
BN: {WEIGHT_DECAY: 0.25}
SOLVER: {WEIGHT_DECAY: 0.5, ZERO_WD_1D_PARAM: True}
";
    let config = Config::parse(yaml, "test", &[]).expect("config");
    let built = ModelConfig::from_config(&config).expect("model");
    let expected = ModelConfig::new(Arch::SlowFast, 50, 400);
    assert_eq!(built, ModelConfig { head_grid: Some((8, 224)), ..expected.clone() });
    // PySlowFast's head then averages whole maps, at whatever crop.
    let short_cycle =
        Config::parse(yaml, "test", &["MULTIGRID.SHORT_CYCLE", "True"].map(String::from)).expect("config");
    assert_eq!(ModelConfig::from_config(&short_cycle).expect("model"), expected);
    let single = ["MODEL.ARCH", "slow", "MODEL.MODEL_NAME", "ResNet"].map(String::from);
    let message = match Config::parse(yaml, "test", &single).and_then(|c| ModelConfig::from_config(&c)) {
        Ok(_) => panic!("two pathways' strides must not do for one"),
        Err(e) => e.to_string(),
    };
    assert!(message.contains("RESNET."), "{message}");
    check_param_ranges(&Model::new(&built).expect("model"), &SgdConfig::from_config(&config));
}

#[test]
fn names_of_networks() {
    let of = |arch: &str, name: &str| {
        let words =
            ["MODEL.ARCH", arch, "MODEL.MODEL_NAME", name, "DATA.INPUT_CHANNEL_NUM", "[3]", "TEST.ENABLE", "False"];
        let config = Config::parse(
            "MODEL: {SINGLE_PATHWAY_ARCH: [2d, c2d, i3d, slow, slow_i3d]}",
            "test",
            &words.map(String::from),
        )?;
        config.check_trainable()?;
        Ok::<_, vcycle::Error>(ModelConfig::from_config(&config)?.arch)
    };
    for (arch, name, expected) in [
        ("slow", "ResNet", Arch::Slow),
        ("i3d", "ResNet", Arch::I3d),
        ("slow_i3d", "ResNet", Arch::SlowI3d),
        ("c2d", "ResNet", Arch::C2d),
        ("2d", "ResNet", Arch::SlowC2d),
        ("c2d", "ResNet_nopool", Arch::SlowC2d),
        ("i3d", "ResNet_nopool", Arch::SlowI3d),
    ] {
        assert_eq!(of(arch, name).unwrap_or_else(|e| panic!("{arch} {name}: {e}")), expected);
    }
    for (arch, name, words) in [
        ("slow", "ResNet_nopool", "MODEL.MODEL_NAME: expected ResNet for MODEL.ARCH slow"),
        ("slow", "SlowFast", "MODEL.MODEL_NAME: expected ResNet"),
        // Not in the list above, as it is not in PySlowFast's default: its loader has no pathways for it.
        ("slow_c2d", "ResNet", "MODEL.SINGLE_PATHWAY_ARCH: expected a list with MODEL.ARCH slow_c2d"),
    ] {
        let message = of(arch, name).expect_err(arch).to_string();
        assert!(message.contains(words), "{message}");
    }
}

/// Filters and projection 0.5, batch norms 0.25, the bias 0; every parameter in exactly one range.
fn check_param_ranges(model: &Model, config: &SgdConfig) {
    let ranges = param_ranges(model, config);
    assert_eq!(ranges.len(), 3);
    for param in &model.params {
        let expected = match () {
            () if param.name == "head.projection.bias" => 0.0,
            () if param.shape.len() == 1 => 0.25,
            () => 0.5,
        };
        let holders: Vec<_> = ranges
            .iter()
            .filter(|r| r.start <= param.offset && param.offset + param.len() <= r.start + r.len)
            .collect();
        assert!(holders.len() == 1 && holders[0].weight_decay == expected, "{}: {holders:?}", param.name);
    }
}
