//! Bent files of weights: read, renamed and fitted as far as they let it.

use std::fs;
use std::path::Path;

use vcycle::checkpoint::{Checkpoint, FORMAT_VERSION, State};
use vcycle::model::{Arch, Model, ModelConfig};
use vcycle::weights::{self, Format, Options, StateDict, StoredTensor};

use super::writer::zip_file;
use crate::fuzz;

/// All that can be asked of a file of weights.
fn use_weights(path: &Path, model: &Model) {
    let _ = weights::load_momenta(path, model);
    if let Ok(mut state) = weights::load(path) {
        let _ = weights::fit(model, state.clone(), &Options { inflate: true, ..Options::default() });
        let _ = weights::rename(&mut state, &["module.".into()]);
    }
}

fn tiny() -> Model {
    Model::new(&ModelConfig { width_per_group: 8, ..ModelConfig::new(Arch::C2d, 18, 5) }).unwrap()
}

/// Files that PyTorch, NumPy and Python wrote.
fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz_seeds/weights");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn files() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny());
    let path = folder.path().join("weights");
    // The seeds are kept inputs of this name.
    fuzz::run("weights", &[], &mut |bytes| {
        fs::write(&path, bytes).unwrap();
        use_weights(&path, &model);
    });
}

/// The pickle inside of a zip file: damage to the file itself is caught by checksums before it gets there.
#[test]
fn pickles_in_a_zip() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny());
    let path = folder.path().join("weights.pyth");
    let storages = [24, 32, 4, 4, 8, 8, 4].map(|len| vec![1; len]);
    let storages: Vec<_> = ["0", "1", "2", "3", "4", "5", "6"].into_iter().zip(storages).collect();
    let whole: Vec<Vec<u8>> = seeds().into_iter().filter(|seed| seed.starts_with(b"\x80\x02}")).collect();
    fuzz::run("weights_pickle", &whole, &mut |bytes| {
        fs::write(&path, zip_file(bytes, &storages)).unwrap();
        use_weights(&path, &model);
    });
}

#[test]
fn safetensors_and_checkpoints() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny());
    let (path, checkpoint) = (folder.path().join("a.safetensors"), folder.path().join("iteration_00000001"));
    let tensor = |name: &str| StoredTensor::from_f32(name, &[2, 3], &[1.0; 6]);
    let tensors = vec![tensor("a"), tensor("head.projection.weight"), StoredTensor::from_i64("n", 3)];
    let state = StateDict { path: "x".into(), format: Format::Safetensors, tensors, epoch: Some(1) };
    weights::save(&path, &state).unwrap();
    let whole = fs::read(&path).unwrap();
    fs::create_dir(&checkpoint).unwrap();
    fs::write(checkpoint.join("optimizer.safetensors"), &whole).unwrap();
    let written = State { format: FORMAT_VERSION, ..State::default() };
    fs::write(checkpoint.join("state.json"), serde_json::to_vec(&written).unwrap()).unwrap();
    fuzz::run("safetensors", &[whole], &mut |bytes| {
        fs::write(&path, bytes).unwrap();
        use_weights(&path, &model);
        fs::write(checkpoint.join("model.safetensors"), bytes).unwrap();
        let _ = Checkpoint::load(&checkpoint);
    });
}
