//! Runs that begin with weights: TRAIN.CHECKPOINT_FILE_PATH and the keys beside it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use vcycle::model::NamedArray;
use vcycle::train::{OutputDir, Start, Trainer};
use vcycle::weights::{self, Format, StateDict, StoredTensor};

use super::{Colours, Watch, config, run, trainer};

/// Two epochs of one learning rate, and what `more` says.
fn begins_with(path: &Path, more: &[&str]) -> vcycle::Result<(tempfile::TempDir, Trainer)> {
    let mut overrides = vec!["SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[0]", "SOLVER.LRS", "[1]"];
    let path = path.display().to_string();
    overrides.extend(["TRAIN.CHECKPOINT_FILE_PATH", &path]);
    overrides.extend(more);
    let folder = tempfile::tempdir().unwrap();
    let trainer = trainer(&config("", &overrides), Colours::new(24), folder.path(), Start::New)?;
    Ok((folder, trainer))
}

fn refused(path: &Path, more: &[&str]) -> String {
    begins_with(path, more).map(drop).unwrap_err().to_string()
}

/// Weights that no seed gives, as `path` holds them.
fn save_weights(path: &Path) -> Vec<NamedArray> {
    let folder = tempfile::tempdir().unwrap();
    let other = config("", &["RNG_SEED", "77"]);
    let trainer = trainer(&other, Colours::new(24), folder.path(), Start::New).unwrap();
    let state = trainer.network().state_dict().unwrap();
    let tensors = state.iter().map(|a| StoredTensor::from_f32(&format!("net.{}", a.name), &a.shape, &a.values));
    let file = StateDict { path: path.into(), format: Format::PyTorch, tensors: tensors.collect(), epoch: None };
    weights::save(path, &file).unwrap();
    state
}

#[test]
fn a_run_begins_with_the_weights_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pyth");
    let state = save_weights(&path);
    let (_run, mut trainer) = begins_with(&path, &["TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN", "('net.',)"]).unwrap();
    assert_eq!(trainer.network().state_dict().unwrap(), state);
    assert_eq!(trainer.iteration(), 0);
    let mut watch = Watch::nothing();
    trainer.run(&mut watch, &AtomicBool::new(true)).unwrap();
    let told = watch.messages.iter().find(|m| m.starts_with("weights: ")).expect("a report");
    assert!(told.contains("tensors fit the model") && told.contains("the run begins at epoch 0"), "{told}");

    let error = refused(&path, &[]);
    assert!(error.contains("no tensor of it belongs to the model; the file has net."), "{error}");
    let error = refused(&path, &["TRAIN.CHECKPOINT_TYPE", "caffe2"]);
    assert!(error.contains("TRAIN.CHECKPOINT_TYPE: expected a file of caffe2"), "{error}");
    let error = refused(&path.with_extension("pkl"), &[]);
    assert!(error.contains("weights.pkl: No such file"), "{error}");
}

#[test]
fn a_run_goes_on_behind_the_epoch_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let two = ["SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[0]", "SOLVER.LRS", "[1]"];
    run(&config("", &two), folder.path(), Start::New, &mut Watch::nothing()).unwrap();
    assert!(OutputDir::has_checkpoint(folder.path()) && !OutputDir::has_checkpoint(&folder.path().join("none")));
    let first = trainer(&config("", &two), Colours::new(24), folder.path(), Start::Resume).unwrap();
    let (state, steps) = (first.network().state_dict().unwrap(), first.iteration());
    let momenta = first.network().optimizer_state().unwrap();
    drop(first);

    let (_run, mut longer) = begins_with(folder.path(), &["SOLVER.MAX_EPOCH", "4"]).unwrap();
    assert_eq!((longer.iteration(), longer.network().state_dict().unwrap()), (steps, state.clone()));
    assert_eq!(longer.network().optimizer_state().unwrap(), momenta);
    let mut watch = Watch::nothing();
    let outcome = longer.run(&mut watch, &AtomicBool::new(false)).unwrap();
    assert_eq!(outcome.summary.iterations, 2 * steps);
    assert!(watch.messages.iter().any(|m| m.contains("the run goes on at epoch 2")), "{:?}", watch.messages);

    let (_run, anew) = begins_with(folder.path(), &["TRAIN.CHECKPOINT_EPOCH_RESET", "True"]).unwrap();
    assert_eq!((anew.iteration(), anew.network().state_dict().unwrap()), (0, state));
    let error = refused(folder.path(), &[]);
    assert!(error.contains("saved after epoch 1, the schedule has 2 epochs; TRAIN.CHECKPOINT_EPOCH_RESET"), "{error}");
}
