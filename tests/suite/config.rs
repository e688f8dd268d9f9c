//! Configuration: every key of PySlowFast is known, values are typed, and bad input gets one clear message.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vcycle::Error;
use vcycle::config::{Arch, Config, Dataset, LrPolicy, NormType, Resample};

fn words(overrides: &[&str]) -> Vec<String> {
    overrides.iter().map(|s| s.to_string()).collect()
}

fn parse(yaml: &str) -> Config {
    Config::parse(yaml, "f.yaml", &[]).unwrap_or_else(|e| panic!("{yaml}: {e}"))
}

/// The message that `yaml` with `overrides` is refused with.
fn refusal(yaml: &str, overrides: &[&str]) -> String {
    match Config::parse(yaml, "f.yaml", &words(overrides)) {
        Err(error @ Error::Config(_)) => error.to_string(),
        other => panic!("{yaml} {overrides:?}: expected a config error, got {other:?}"),
    }
}

fn assert_refused(yaml: &str, overrides: &[&str], parts: &[&str]) {
    let message = refusal(yaml, overrides);
    for part in parts {
        assert!(message.contains(part), "{yaml} {overrides:?}: expected `{part}` in `{message}`");
    }
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// The files under configs/ that ship with the crate.
pub fn shipped_configs() -> Vec<PathBuf> {
    files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs"))
}

/// YAML files in `folder` and its subfolders, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.extension().is_some_and(|e| e == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn values_take_the_type_of_their_key() {
    let cfg = parse(
        "TRAIN:\n  DATASET: moving_shapes\n  BATCH_SIZE: 16\nSOLVER:\n  WEIGHT_DECAY: 1e-4\n  BASE_LR: 1\n  NESTEROV: no\n\
         MODEL: {ARCH: slow, MODEL_NAME: ResNet}\nDATA:\n  RANDOM_FLIP: off\n  MEAN: [0, 0.5, 1]\n  PATH_TO_DATA_DIR: /videos/ut\n\
         MULTIGRID:\n  SHORT_CYCLE_FACTORS: (0.6, 0.8)\nVCYCLE:\n  RESAMPLE: peer\n  MOVING_SHAPES:\n    FRAMES: 33\nBN:\n",
    );
    assert_eq!(cfg.train.dataset, Dataset::MovingShapes);
    assert_eq!(cfg.train.batch_size, 16);
    assert_eq!(cfg.solver.weight_decay, 1e-4);
    assert_eq!(cfg.solver.base_lr, 1.0);
    assert!(!cfg.solver.nesterov && !cfg.data.random_flip);
    assert_eq!(cfg.model.arch, Arch::Slow);
    assert_eq!(cfg.data.mean, [0.0, 0.5, 1.0]);
    assert_eq!(cfg.data.path_to_data_dir, "/videos/ut");
    assert_eq!(cfg.multigrid.short_cycle_factors, [0.6, 0.8]);
    assert_eq!(cfg.vcycle.resample, Resample::Peer);
    assert_eq!(cfg.vcycle.moving_shapes.frames, 33);
    assert_eq!(cfg.bn.norm_type, NormType::BatchNorm);
}

#[test]
fn overrides_are_python_literals() {
    let overrides = words(&[
        "SOLVER.STEPS",
        "[0, 4,6]",
        "SOLVER.LRS",
        "[1, .1, 1e-2]",
        "SOLVER.LR_POLICY",
        "steps_with_relative_lrs",
        "MULTIGRID.LONG_CYCLE",
        "True",
        "MULTIGRID.LONG_CYCLE_FACTORS",
        "[(0.5, 0.5**0.5)]",
    ]);
    // Python's literal_eval refuses the power too.
    let error = Config::parse("", "f.yaml", &overrides).unwrap_err().to_string();
    assert!(error.contains("MULTIGRID.LONG_CYCLE_FACTORS"), "{error}");

    let mut overrides = overrides;
    *overrides.last_mut().unwrap() = "((0.5, 0.75), (1, 1),)".into();
    let cfg = Config::parse("", "f.yaml", &overrides).unwrap();
    assert_eq!(cfg.solver.steps, [0, 4, 6]);
    assert_eq!(cfg.solver.lrs, [1.0, 0.1, 0.01]);
    assert_eq!(cfg.solver.lr_policy, LrPolicy::StepsWithRelativeLrs);
    assert_eq!(cfg.multigrid.long_cycle_factors, [[0.5, 0.75], [1.0, 1.0]]);

    let text = words(&["DATA.PATH_TO_DATA_DIR", "2024", "DATA.PATH_LABEL_SEPARATOR", ",", "OUTPUT_DIR", "'my runs'"]);
    let cfg = Config::parse("", "f.yaml", &text).unwrap();
    assert_eq!(
        [cfg.data.path_to_data_dir, cfg.data.path_label_separator, cfg.output_dir],
        ["2024", ",", "my runs"].map(String::from)
    );
    assert!(Config::parse("", "f.yaml", &words(&["SOLVER.CLIP_GRAD_VAL", "None"])).is_ok());
}

#[test]
fn the_config_as_run_reads_back() {
    for path in shipped_configs() {
        let overrides = words(&[
            "DATA.PATH_TO_DATA_DIR",
            "/a b/c: 'd' #e\\",
            "OUTPUT_DIR",
            "1e5",
            "SOLVER.BASE_LR",
            "0.30000000000000004",
        ]);
        let cfg = Config::load(&path, &overrides).unwrap();
        let again = Config::parse(&cfg.to_yaml(), "as run", &[]).unwrap_or_else(|e| panic!("{e}\n{}", cfg.to_yaml()));
        assert_eq!(cfg, again);
        assert_eq!(cfg.to_yaml(), again.to_yaml());
    }
}

#[test]
fn unknown_keys_name_the_nearest_known_key() {
    assert_refused(
        "TRAIN:\n  BATCHSIZE: 8",
        &[],
        &["f.yaml: line 2", "unknown key TRAIN.BATCHSIZE", "TRAIN.BATCH_SIZE"],
    );
    assert_refused("", &["SOLVER.BASE_RL", "1"], &["override", "SOLVER.BASE_RL", "SOLVER.BASE_LR"]);
    assert_refused("", &["TRAIN_CROP_SIZE", "1"], &["DATA.TRAIN_CROP_SIZE"]);
    assert_refused("", &["data.num_frames", "1"], &["DATA.NUM_FRAMES"]);
    assert_refused("MULTIGRD:\n  LONG_CYCLE: True", &[], &["f.yaml: line 1", "unknown section MULTIGRD", "MULTIGRID"]);
    assert_refused("", &["VCYCLE.RESAMPL", "peer"], &["VCYCLE.RESAMPLE"]);
}

#[test]
fn wrong_types_say_what_was_expected() {
    assert_refused(
        "TRAIN:\n  ENABLE: True\n  BATCH_SIZE: many",
        &[],
        &["f.yaml: line 3", "TRAIN.BATCH_SIZE", "an integer", "many"],
    );
    assert_refused("TRAIN: {BATCH_SIZE: 8.5}", &[], &["an integer", "8.5"]);
    assert_refused("TRAIN: {BATCH_SIZE: -8}", &[], &["an integer >= 0", "-8"]);
    assert_refused("SOLVER: {BASE_LR: yes}", &[], &["a number", "True"]);
    assert_refused("SOLVER: {NESTEROV: 1}", &[], &["a boolean"]);
    assert_refused("DATA: {MEAN: [1, 2]}", &[], &["a list of 3 numbers", "[1, 2]"]);
    assert_refused("TRAIN: 5", &[], &["TRAIN", "a section"]);
    assert_refused("TRAIN: {BATCH_SIZE: {A: 1}}", &[], &["TRAIN.BATCH_SIZE"]);
    assert_refused("TRAIN: {DATASET: imagenet}", &[], &["TRAIN.DATASET", "one of kinetics, moving_shapes", "imagenet"]);
    assert_refused("MODEL: {ARCH: mvit}", &[], &["MODEL.ARCH", "slowfast, slow, i3d, slow_i3d, c2d", "mvit"]);
    assert_refused("MODEL: {ARCH: x3d}", &[], &["MODEL.ARCH", "got x3d: X3D is out of scope"]);
    assert_refused("MODEL: {MODEL_NAME: ContrastiveModel}", &[], &["contrastive training is out of scope"]);
    assert_refused("TRAIN: {DATASET: ava}", &[], &["TRAIN.DATASET", "detection (AVA) is out of scope"]);
    assert_refused("TEST: {DATASET: ptvssv2}", &[], &["TEST.DATASET", "out of scope"]);
    assert_refused("VCYCLE: {RESAMPLE: bicubic}", &[], &["trilinear, trilinear_antialias, peer"]);
    assert_refused("AVA: {BGR: 3}", &[], &["AVA.BGR", "a boolean"]);
}

#[test]
fn bad_files_are_named() {
    let error = Config::load("no/such.yaml", &[]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("no/such.yaml"), "{error}");
    assert_refused("TRAIN:\n  BATCH_SIZE: [1, 2\nDATA: {}", &[], &["f.yaml: line", "not valid YAML"]);
    assert_refused(
        "TRAIN:\n  BATCH_SIZE: 8\n  BATCH_SIZE: 16",
        &[],
        &["f.yaml: line 3", "duplicate mapping key: BATCH_SIZE"],
    );
    assert_refused("- 1\n- 2", &[], &["expected sections of keys", "a list"]);
    assert_refused("", &["TRAIN.BATCH_SIZE"], &["TRAIN.BATCH_SIZE", "no value"]);
}

#[test]
fn keys_that_ask_for_what_is_not_built_are_refused_by_name() {
    for (key, value) in [
        ("DETECTION.ENABLE", "True"),
        ("AUG.ENABLE", "True"),
        ("SOLVER.LARS_ON", "True"),
        ("SOLVER.OPTIMIZING_METHOD", "adamw"),
        ("NUM_SHARDS", "2"),
        ("TASK", "ssl"),
        ("CONTRASTIVE.NUM_MLP_LAYERS", "2"),
        ("MULTIGRID.DEFAULT_S", "224"),
        ("MODEL.DETACH_FINAL_FC", "True"),
        ("MODEL.ACT_CHECKPOINT", "True"),
        ("SOLVER.LAYER_DECAY", "0.75"),
        ("BN.GLOBAL_SYNC", "True"),
        ("TENSORBOARD.ENABLE", "True"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "[0.08, 1.0]"),
    ] {
        assert_refused("", &[key, value], &[key]);
    }
    // Known, and without effect here.
    for (key, value) in [
        ("DATA_LOADER.PIN_MEMORY", "False"),
        ("TEST.NUM_ENSEMBLE_VIEWS", "3"),
        ("LOG_MODEL_INFO", "False"),
        ("X3D.WIDTH_FACTOR", "2"),
        ("MVIT.POOL_KVQ_KERNEL", "[3, 3, 3]"),
        ("NUM_SHARDS", "1"),
        ("TENSORBOARD.MODEL_VIS.GRAD_CAM.ENABLE", "False"),
        ("CONTRASTIVE.DELTA_CLIPS_MAX", "3.5"),
    ] {
        Config::parse("", "f.yaml", &words(&[key, value])).unwrap_or_else(|e| panic!("{key} {value}: {e}"));
    }
}

#[test]
fn contradictions_are_refused() {
    assert_refused("NUM_GPUS: 3", &[], &["TRAIN.BATCH_SIZE", "multiple of NUM_GPUS (3)", "64"]);
    assert_refused("DATA: {TRAIN_JITTER_SCALES: [320, 256]}", &[], &["DATA.TRAIN_JITTER_SCALES"]);
    assert_refused("DATA: {TRAIN_CROP_SIZE: 300}", &[], &["DATA.TRAIN_JITTER_SCALES", "300"]);
    assert_refused("SOLVER: {LR_POLICY: steps_with_relative_lrs, STEPS: [0, 5], LRS: [1]}", &[], &["SOLVER.LRS"]);
    assert_refused("SOLVER: {LR_POLICY: steps_with_relative_lrs, STEPS: [3, 5], LRS: [1, 1]}", &[], &["SOLVER.STEPS"]);
    assert_refused("MULTIGRID: {LONG_CYCLE: True}", &[], &["SOLVER.STEPS"]);
    assert_refused("SOLVER: {MOMENTUM: 0}", &[], &["SOLVER.NESTEROV", "MOMENTUM 0"]);
    assert_refused("SOLVER: {DAMPENING: 0.1}", &[], &["SOLVER.NESTEROV", "DAMPENING 0.1"]);
    assert_refused("SOLVER: {CLIP_GRAD_VAL: 1, CLIP_GRAD_L2NORM: 1}", &[], &["SOLVER.CLIP_GRAD_VAL", "one of them"]);
    assert_refused("SOLVER: {CLIP_GRAD_L2NORM: -1}", &[], &["SOLVER.CLIP_GRAD_L2NORM", "-1"]);
    assert_refused("MIXUP: {ALPHA: -1}", &[], &["MIXUP.ALPHA: expected 0 or a number in [0.01, 100], got -1"]);
    assert_refused(
        "MIXUP: {ENABLE: True, ALPHA: 0, CUTMIX_ALPHA: 0}",
        &[],
        &["MIXUP.ALPHA", "MIXUP.CUTMIX_ALPHA above 0"],
    );
    assert_refused("MIXUP: {ENABLE: True}\nDATA: {MULTI_LABEL: True}", &[], &["MIXUP.ENABLE: expected False"]);
    assert_refused("TEST: {NUM_SPATIAL_CROPS: 4}", &[], &["TEST.NUM_SPATIAL_CROPS: expected 1 to 3"]);
    assert_refused("TEST: {NUM_ENSEMBLE_VIEWS: 0}", &[], &["TEST.NUM_ENSEMBLE_VIEWS: expected 1 to 1024"]);
    assert_refused("TEST: {NUM_TEMPORAL_CLIPS: [1, 0]}", &[], &["TEST.NUM_TEMPORAL_CLIPS", "[1, 0]"]);
    assert_refused("MULTIGRID: {SHORT_CYCLE_FACTORS: [0, 1]}", &[], &["MULTIGRID.SHORT_CYCLE_FACTORS"]);
}

#[test]
fn what_can_be_planned_but_not_trained_is_refused_by_train_alone() {
    let trainable = "TEST: {ENABLE: False}\nRESNET: {NUM_BLOCK_TEMP_KERNEL: [[3, 3], [4, 4], [6, 6], [3, 3]], \
                     SPATIAL_STRIDES: [[1, 1], [2, 2], [2, 2], [2, 2]], SPATIAL_DILATIONS: [[1, 1], [1, 1], [1, 1], [1, 1]]}";
    parse(trainable).check_trainable().unwrap();
    for (overrides, part) in [
        (["MODEL.LOSS_FUNC", "bce"], "MODEL.LOSS_FUNC bce"),
        (["RESNET.DEPTH", "20"], "RESNET.DEPTH"),
        (["MODEL.ARCH", "slow"], "MODEL.MODEL_NAME"),
        (["RESNET.SPATIAL_STRIDES", "[[1], [2], [2], [2]]"], "RESNET.SPATIAL_STRIDES"),
        (["SLOWFAST.BETA_INV", "7"], "SLOWFAST.BETA_INV"),
    ] {
        let cfg = Config::parse(trainable, "f.yaml", &words(&overrides)).unwrap();
        let message = cfg.check_trainable().unwrap_err().to_string();
        assert!(message.contains(part), "{overrides:?}: {message}");
    }
}

#[test]
fn shipped_configs_load() {
    let files = shipped_configs();
    assert!(files.len() >= 2);
    for path in files {
        let cfg = Config::load(&path, &[]).unwrap();
        cfg.check_trainable().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        cfg.check_testable().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

#[test]
fn every_key_is_documented() {
    for key in Config::keys() {
        assert!(key.doc.ends_with('.') && !key.expected.is_empty(), "{key:?}");
    }
}

#[test]
fn numbers_too_large_for_arithmetic_are_refused() {
    let huge = i64::MAX.to_string();
    for (key, value) in [
        ("TRAIN.BATCH_SIZE", huge.as_str()),
        ("DATA.NUM_FRAMES", "99999999"),
        ("SOLVER.MAX_EPOCH", "1_000_000_000"),
        ("MULTIGRID.EPOCH_FACTOR", "1e300"),
        ("VCYCLE.MOVING_SHAPES.NUM_TRAIN_CLIPS", "1_000_000_000_000"),
        ("DATA.MEAN", "[1e300, 0, 0]"),
        ("MULTIGRID.SHORT_CYCLE_FACTORS", "[1e-9, 1]"),
    ] {
        assert_refused("", &[key, value], &[key, "expected"]);
    }
    assert_refused("", &["TRAIN.BATCH_SIZE", "99999999999999999999"], &["an integer"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the value of whatever key: an answer, and a configuration that is taken reads back and can be planned or refused.
    #[test]
    fn any_value_gets_an_answer(
        choice in any::<prop::sample::Index>(),
        value in prop_oneof![
            "[-0-9.e]{1,6}", "\\PC{0,12}", "\\[[0-9., ]{0,12}\\]", "(True|None|no|~|slow|sync_batchnorm|cosine|\\[\\]|\\(1,\\))",
            "[0-9]{1,20}",
        ],
    ) {
        let keys = Config::keys();
        let words = [choice.get(&keys).name.clone(), value];
        if let Ok(cfg) = Config::parse("MULTIGRID: {SHORT_CYCLE: True}", "any", &words) {
            let yaml = cfg.to_yaml();
            let again = Config::parse(&yaml, "again", &[]);
            prop_assert!(again.as_ref().is_ok_and(|again| *again == cfg), "{words:?}: {again:?}");
            let _ = cfg.check_trainable();
            if let Ok(schedule) = vcycle::multigrid::Schedule::new(&cfg) {
                prop_assert!(schedule.lr(0.5).is_finite());
            }
        }
    }

    /// Any text as a file: an answer in one line.
    #[test]
    fn any_file_gets_an_answer(yaml in "(\\PC|\n|: |  |- |[A-Z]{2,5}){0,40}") {
        if let Err(error) = Config::parse(&yaml, "any.yaml", &[]) {
            prop_assert!(error.to_string().starts_with("config: any.yaml: "), "{error}");
            prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
        }
    }
}

/// What docs/configs.md says of the keys, from the tables that decide it.
fn documented_keys() -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut text = String::from("## Keys that are read\n\n| key | default | takes | meaning |\n|---|---|---|---|\n");
    for key in Config::keys() {
        let (name, default, takes, doc) = (key.name, cell(&key.default), cell(&key.expected), cell(&key.doc));
        text += &format!("| {name} | `{default}` | {takes} | {doc} |\n");
    }
    text += "\n## Keys that must keep PySlowFast's default\n\n| key | default | because |\n|---|---|---|\n";
    let (kept, free): (Vec<_>, Vec<_>) = Config::other_keys().into_iter().partition(|key| key.reason.is_some());
    for key in kept {
        text += &format!("| {} | `{}` | {} |\n", key.name, cell(key.default), cell(key.reason.unwrap_or_default()));
    }
    text += "\n## Keys that may have any value, since nothing here depends on them\n\n";
    let names: Vec<&str> = free.iter().map(|key| key.name).collect();
    let sections: std::collections::BTreeSet<&str> =
        names.iter().map(|name| name.split('.').next().unwrap_or(name)).collect();
    for section in sections {
        let of_section: Vec<&str> =
            names.iter().copied().filter(|name| name.split('.').next() == Some(section)).collect();
        text += &format!("- {}\n", of_section.join(", "));
    }
    text
}

#[test]
fn the_documentation_lists_every_key() {
    const HEAD: &str =
        "<!-- from here on: VCYCLE_WRITE_DOCS=1 cargo test --test suite the_documentation_lists_every_key -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configs.md");
    let text = std::fs::read_to_string(&path).expect("docs/configs.md");
    let (introduction, listed) = text.split_once(HEAD).expect("the line above the lists");
    if std::env::var_os("VCYCLE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{introduction}{HEAD}\n{}", documented_keys())).expect("docs/configs.md");
    } else {
        assert!(listed.trim() == documented_keys().trim(), "docs/configs.md is behind the key tables: {HEAD}");
    }
}

/// Every `_C.KEY = value` of PySlowFast's defaults, where its source lies beside `$PYSLOWFAST_CONFIGS`.
#[test]
fn every_key_of_pyslowfasts_defaults_is_known() {
    let source =
        std::env::var_os("PYSLOWFAST_CONFIGS").map(|p| PathBuf::from(p).join("../slowfast/config/defaults.py"));
    let Some(text) = source.and_then(|path| std::fs::read_to_string(path).ok()) else {
        eprintln!("SKIPPED: PySlowFast's defaults, because PYSLOWFAST_CONFIGS names no folder beside its source");
        return;
    };
    let mut known: Vec<String> = Config::keys().into_iter().map(|key| key.name).collect();
    known.extend(Config::other_keys().iter().map(|key| key.name.to_string()));
    let assigned = text.lines().filter_map(|line| line.strip_prefix("_C.")?.split_once(" = "));
    let keys: Vec<&str> = assigned.filter(|(_, value)| !value.starts_with("CfgNode")).map(|(key, _)| key).collect();
    assert!(keys.len() > 300, "{} keys", keys.len());
    for key in &keys {
        assert!(known.iter().any(|name| name == key), "{key} is not known");
    }
    println!("{} keys of PySlowFast's defaults are known", keys.len());
}
