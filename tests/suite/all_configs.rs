//! Configuration files as wholes: those that ship, and PySlowFast's own where `$PYSLOWFAST_CONFIGS` names a copy of its `configs` folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vcycle::config::Config;
use vcycle::device::{DType, Device};
use vcycle::model::{GramUse, Lowering, Mode, Model, ModelConfig, Plan};
use vcycle::multigrid::Schedule;
use vcycle::shape::StepShape;

use super::config::{files_below, shipped_configs};

/// A configuration with everything that a run makes of it before its first step.
struct Planned {
    config: Config,
    schedule: Schedule,
    model: Model,
    grids: usize,
}

/// Parses `path` and plans every grid of its schedule, validation and test in the CPU's form, and the first and the last of training
/// in that of kernels.
fn plan(path: &Path) -> vcycle::Result<Planned> {
    let config = Config::load(path, &[])?;
    let schedule = Schedule::new(&config)?;
    let model = Model::new(&ModelConfig::from_config(&config)?)?;
    let (stream, data) = (Device::Cpu.stream()?, &config.data);
    let test = StepShape::square(config.test.batch_size, data.num_frames, data.test_crop_size, 1);
    let train = schedule.step_shapes().into_iter().map(|shape| (Mode::Train, shape));
    let evals = [schedule.evaluation_shape(), test].map(|shape| (Mode::Eval, shape));
    let grids: Vec<(Mode, StepShape)> = train.chain(evals).collect();
    for (i, &(mode, shape)) in grids.iter().enumerate() {
        let form = |lowering, stored| Plan::with_lowering(&stream, &model, shape, mode, stored, lowering);
        let plain = form(Lowering::Plain, 3)?;
        assert!(plain.forward_macs > 0 && plain.arena_bytes > 0, "{}: {shape}", path.display());
        if mode == Mode::Train && (i == 0 || grids[i + 1].0 == Mode::Eval) {
            let fused = form(Lowering::Fused(DType::Bf16), 4)?;
            let mut standard = model.clone();
            (standard.config.gram, standard.config.fused_conv_backward) = (GramUse::Never, false);
            let standard = Plan::with_lowering(&stream, &standard, shape, mode, 4, fused.lowering)?;
            assert_eq!(standard.forward_macs, plain.forward_macs, "{}: {shape}", path.display());
            // What the Gram form multiplies more it saves in bytes.
            assert!(fused.forward_macs >= plain.forward_macs && fused.cost().bytes <= standard.cost().bytes);
        }
    }
    Ok(Planned { config, schedule, model, grids: grids.len() })
}

/// One line: network, parameters, epochs, and either each shape of the long cycle with its last epoch, or the only one.
fn line(planned: &Planned) -> String {
    let Planned { config, schedule, model, grids } = planned;
    let batch = config.train.batch_size;
    let shapes: Vec<String> = match schedule.segments() {
        Some(segments) => segments
            .iter()
            .map(|s| format!("{}x{}x{} to {}", s.batch_factor * batch, s.frames, s.crop_px, s.end_epoch))
            .collect(),
        None => schedule.step_shapes().iter().map(StepShape::to_string).collect(),
    };
    let (baseline, epochs) = (config.solver.max_epoch, schedule.max_epoch());
    let (arch, params) = (config.model.arch, model.param_count());
    format!("{arch} {params}; {baseline} -> {epochs} epochs; {grids} grids; {}", shapes.join(", "))
}

/// Parameters are those of PySlowFast's networks (golden has six of them), epochs and shapes those of its schedules.
#[test]
fn every_shipped_configuration_plans_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut lines = vec![];
    for path in shipped_configs() {
        let planned = plan(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.strip_prefix(&root).expect("below configs/").with_extension("");
        lines.push(format!("{}: {}", name.display(), line(&planned)));
    }
    let expected: Vec<&str> = include_str!("../cases/configs.txt").lines().filter(|l| !l.starts_with('#')).collect();
    let found: String = lines.iter().map(|line| format!("{line}\n")).collect();
    assert!(lines == expected, "tests/cases/configs.txt does not hold what configs/ plans:\n{found}");
}

/// Files that this project is for: networks of ResNet and SlowFast on Kinetics, Something-Something and Charades, by PySlowFast's own
/// code. Everything else in the folder is for networks, data sets or training that are out of scope.
fn is_in_scope(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let of_ours = ["C2D_", "I3D_", "SLOW_", "SLOWFAST_"].iter().any(|start| name.starts_with(start));
    of_ours && ["Kinetics", "Kinetics/c2", "SSv2", "Charades"].contains(&folder)
}

/// Keys whose value our file of the same name may have differently: theirs only tests, with weights that they name.
const OF_THE_RUN: [&str; 2] = ["TRAIN.ENABLE", "TRAIN.CHECKPOINT_TYPE"];

/// Keys of ours that `config` has another value for, with both.
fn differences(config: &Config, ours: &Config) -> Vec<String> {
    let (theirs, ours) = (config.entries(), ours.entries());
    let pairs = theirs.into_iter().zip(ours).filter(|(a, b)| a != b && !OF_THE_RUN.contains(&a.0.as_str()));
    pairs.map(|((key, theirs), (_, ours))| format!("{key} {theirs}, ours {ours}")).collect()
}

#[test]
fn pyslowfasts_own_files_are_planned_or_refused_by_key() {
    let Some(root) = std::env::var_os("PYSLOWFAST_CONFIGS").map(PathBuf::from) else {
        eprintln!("SKIPPED: PySlowFast's own configurations, because PYSLOWFAST_CONFIGS names no folder");
        return;
    };
    let (mut planned, mut refused, mut compared) = (0, BTreeMap::<String, usize>::new(), 0);
    for path in files_below(&root) {
        let name = path.strip_prefix(&root).expect("below").to_string_lossy().replace('\\', "/");
        match plan(&path) {
            Ok(theirs) => {
                assert!(is_in_scope(&name), "{name} is planned, although it is out of scope");
                planned += 1;
                println!("planned {name}: {}", line(&theirs));
                // The zoo's own files repeat names of the folder above, with their first networks.
                let dataset = theirs.config.train.dataset.as_str();
                let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(dataset);
                let ours = ours.join(path.file_name().unwrap_or_default());
                if ours.is_file() && !name.contains("/c2/") {
                    let ours = Config::load(ours, &[]).expect("a shipped configuration");
                    let differences = differences(&theirs.config, &ours);
                    assert!(differences.is_empty(), "{name}: {differences:?}");
                    compared += 1;
                }
            }
            Err(error) => {
                let message = error.to_string();
                assert!(!is_in_scope(&name), "{name}: {message}");
                assert_eq!(message.lines().count(), 1, "{name}: {message}");
                // Some files hold a key twice, and one is no YAML at all.
                let no_yaml = message.contains("not valid YAML").then(|| "not valid YAML".to_string());
                let twice = message.split_once("duplicate mapping key").map(|_| "a key twice".to_string());
                let key = key_of(&message).or(twice).or(no_yaml);
                let key = key.unwrap_or_else(|| panic!("{name} is refused without a key: {message}"));
                *refused.entry(key).or_default() += 1;
                println!("refused {name}: {message}");
            }
        }
    }
    assert!(planned > 0, "{} holds no configuration of ours", root.display());
    let all: usize = refused.values().sum();
    println!(
        "{planned} planned, {compared} of them equal to the shipped file of the same name; {all} refused: {refused:?}"
    );
}

/// The key that a message names: `….yaml: line 4: TASK: …`.
fn key_of(message: &str) -> Option<String> {
    let mut known: Vec<String> = Config::keys().into_iter().map(|key| key.name).collect();
    known.extend(Config::other_keys().iter().map(|key| key.name.to_string()));
    message.split(": ").find(|part| known.iter().any(|key| key == part)).map(String::from)
}
