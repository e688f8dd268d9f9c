//! Runs that go on elsewhere: on another executor, or with a checkpoint that knows less.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vcycle::checkpoint::{Checkpoint, Store};
use vcycle::config::Config;
use vcycle::device::Device;
use vcycle::model::NamedArray;
use vcycle::train::{Start, Trainer};

use super::{Colours, Watch, config};
use crate::executors;

fn two_epochs() -> Config {
    let overrides = "TRAIN.EVAL_PERIOD 2 SOLVER.MAX_EPOCH 2 SOLVER.STEPS [0] SOLVER.LRS [1] VCYCLE.PRECISION f16";
    config("", &overrides.split(' ').collect::<Vec<_>>())
}

fn trainer(device: &Device, folder: &Path, start: Start) -> vcycle::Result<Trainer> {
    Trainer::new(&two_epochs(), device, Colours::new(12), Colours::new(4), folder, start)
}

fn newest(folder: &Path) -> (PathBuf, Checkpoint) {
    let path = Store::open(&folder.join("checkpoints"), 3).unwrap().newest().unwrap().unwrap();
    let checkpoint = Checkpoint::load(&path).unwrap();
    (path, checkpoint)
}

/// Stops a run after its second step, and returns what it saved.
fn stopped(device: &Device, folder: &Path) -> (PathBuf, Checkpoint) {
    let stop = AtomicBool::new(false);
    let mut watch = Watch::new(|_| stop.store(true, Ordering::Relaxed));
    let outcome = trainer(device, folder, Start::New).unwrap().run(&mut watch, &stop).unwrap();
    assert!(!outcome.finished);
    let saved = newest(folder);
    assert!((1..4).contains(&saved.1.state.iteration), "{}", saved.1.state.iteration);
    saved
}

fn sorted(mut arrays: Vec<NamedArray>) -> Vec<NamedArray> {
    arrays.sort_by(|a, b| a.name.cmp(&b.name));
    arrays
}

#[test]
fn a_run_goes_on_on_another_executor() {
    let kernels = executors::with_kernels();
    for (from, to) in kernels.iter().flat_map(|k| [(k.clone(), Device::Cpu), (Device::Cpu, k.clone())]) {
        let folder = tempfile::tempdir().unwrap();
        let (_, saved) = stopped(&from, folder.path());
        assert_eq!(saved.state.loss_scale.is_some(), from != Device::Cpu, "f16 gradients have a scale");
        let mut trainer = trainer(&to, folder.path(), Start::Resume).unwrap();
        let (model, optimizer) =
            (trainer.network().state_dict().unwrap(), trainer.network().optimizer_state().unwrap());
        assert!(sorted(model) == saved.model, "{from} to {to}");
        assert!(sorted(optimizer.momentum) == saved.momentum, "{from} to {to}");
        assert_eq!(optimizer.has_momentum, saved.state.has_momentum, "{from} to {to}");
        let outcome = trainer.run(&mut Watch::nothing(), &AtomicBool::new(false)).unwrap();
        assert!(outcome.finished && outcome.summary.iterations == 6, "{from} to {to}: {outcome:?}");
        // The CPU has no loss scale; it hands on what it found.
        let last = newest(folder.path()).1.state;
        assert!(last.loss_scale.is_some(), "{from} to {to}");
    }
}

/// Keys that did not exist when a checkpoint was written stood at their defaults, whatever the program knows now.
#[test]
fn a_checkpoint_of_before_a_key_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = stopped(&Device::Cpu, folder.path());
    let file = path.join("state.json");
    let without = |keys: &[&str]| {
        let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        state.as_object_mut().unwrap().retain(|key, _| !key.starts_with("loss_scale"));
        state["config"].as_object_mut().unwrap().retain(|key, _| !keys.contains(&key.as_str()));
        fs::write(&file, serde_json::to_vec(&state).unwrap()).unwrap();
    };
    without(&["BN.USE_PRECISE_STATS"]);
    drop(trainer(&Device::Cpu, folder.path(), Start::Resume).unwrap());
    // This one is not at its default.
    without(&["VCYCLE.PRECISION"]);
    let error = trainer(&Device::Cpu, folder.path(), Start::Resume).map(drop).unwrap_err().to_string();
    assert!(error.contains("VCYCLE.PRECISION is f16, was bf16"), "{error}");
}
