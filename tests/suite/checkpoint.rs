//! Checkpoints: what was saved is read back bit for bit; what is broken or foreign is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vcycle::Error;
use vcycle::checkpoint::{Checkpoint, FORMAT_VERSION, Saver, State, Store, check_same_model};
use vcycle::model::NamedArray;

fn tensor(name: &str, shape: &[usize], first: f32) -> NamedArray {
    let values = (0..shape.iter().product::<usize>()).map(|i| first + i as f32 * 0.1).collect();
    NamedArray { name: name.into(), shape: shape.to_vec(), values }
}

pub fn checkpoint(iteration: u64) -> Checkpoint {
    let state = State {
        format: FORMAT_VERSION,
        version: "0.1.0".into(),
        iteration,
        epoch: iteration / 10,
        iteration_in_epoch: iteration % 10,
        clips: u64::MAX,
        config: BTreeMap::from([("SOLVER.BASE_LR".to_string(), "0.1".to_string())]),
        val_top1: Some(1.0 / 3.0),
        epoch_loss_sum: 0.1 + 0.2,
        ..State::default()
    };
    let first = iteration as f32;
    Checkpoint {
        state,
        model: vec![tensor("head.bias", &[5], f32::MIN_POSITIVE), tensor("s1.conv.weight", &[2, 3, 1, 2, 2], first)],
        momentum: vec![tensor("s1.conv.weight", &[2, 3, 1, 2, 2], -first)],
    }
}

fn message(result: Result<Checkpoint, Error>) -> String {
    match result {
        Err(error @ Error::Checkpoint(_)) => error.to_string(),
        other => panic!("expected a checkpoint error, got {other:?}"),
    }
}

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 2).unwrap();
    let saved = checkpoint(12);
    let path = store.save(&saved).unwrap();
    assert_eq!(store.newest().unwrap(), Some(path.clone()));
    assert_eq!(Checkpoint::load(&path).unwrap(), saved);
}

#[test]
fn keeps_the_newest_and_clears_what_a_crash_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 2).unwrap();
    fs::create_dir(folder.path().join(".unfinished_iteration_00000003")).unwrap();
    for iteration in [3, 20, 100] {
        store.save(&checkpoint(iteration)).unwrap();
    }
    assert_eq!(names(&store), ["iteration_00000020", "iteration_00000100"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left in the folder");
}

#[test]
fn a_second_checkpoint_of_an_iteration_is_the_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 2).unwrap();
    store.save(&checkpoint(9)).unwrap();
    let mut later = checkpoint(9);
    later.state.val_top1 = Some(50.0);
    store.save(&later).unwrap();
    assert_eq!(names(&store), ["iteration_00000009", "iteration_00000009_2"]);
    assert_eq!(Checkpoint::load(&store.newest().unwrap().unwrap()).unwrap(), later);
}

#[test]
fn a_save_that_fails_leaves_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 1).unwrap();
    let saved = checkpoint(1);
    store.save(&saved).unwrap();
    let mut broken = checkpoint(2);
    broken.momentum[0].values.pop();
    let error = store.save(&broken).unwrap_err().to_string();
    assert!(error.contains("cannot save") && error.contains("iteration_00000001 is complete"), "{error}");
    assert_eq!(names(&store), ["iteration_00000001"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the torso is gone");
    assert_eq!(Checkpoint::load(&store.newest().unwrap().unwrap()).unwrap(), saved);
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::open(folder.path(), 1).unwrap().save(&checkpoint(1)).unwrap();
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let whole = fs::read(path.join(file)).unwrap();
        for len in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            fs::write(path.join(file), &whole[..len]).unwrap();
            assert!(message(Checkpoint::load(&path)).contains(file), "{file} cut to {len} bytes");
        }
        fs::remove_file(path.join(file)).unwrap();
        assert!(message(Checkpoint::load(&path)).contains(file));
        fs::write(path.join(file), &whole).unwrap();
    }
    Checkpoint::load(&path).unwrap();
}

#[test]
fn wrong_state_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::open(folder.path(), 1).unwrap().save(&checkpoint(1)).unwrap();
    let state = fs::read_to_string(path.join("state.json")).unwrap();
    for (text, expected) in [
        ("[1, 2]".to_string(), "format version 1, got none"),
        (state.replace("\"format\": 1", "\"format\": 7"), "format version 1, got 7"),
        (state.replace("\"iteration\"", "\"iterations\""), "iterations"),
        (state.replace("18446744073709551615", "-1"), "expected u64"),
    ] {
        fs::write(path.join("state.json"), text).unwrap();
        let error = message(Checkpoint::load(&path));
        assert!(error.contains("state.json") && error.contains(expected), "{error}");
    }
}

#[test]
fn tensors_of_another_type_are_refused() {
    use safetensors::tensor::{Dtype, TensorView};
    let folder = tempfile::tempdir().unwrap();
    let path = Store::open(folder.path(), 1).unwrap().save(&checkpoint(1)).unwrap();
    let view = TensorView::new(Dtype::F64, vec![1], &[0; 8]).unwrap();
    fs::write(path.join("model.safetensors"), safetensors::serialize([("a", view)], None).unwrap()).unwrap();
    assert!(message(Checkpoint::load(&path)).contains("expected a in F32, got F64"));
}

#[test]
fn another_model_is_refused_with_names() {
    let got = [tensor("a", &[2], 0.0), tensor("b", &[3], 0.0), tensor("d", &[1], 0.0)];
    let expected = [("a", vec![2]), ("b", vec![4]), ("c", vec![1])].map(|(n, s)| (n.to_string(), s));
    let error = check_same_model(Path::new("x"), &expected, &got).unwrap_err().to_string();
    assert_eq!(
        error,
        "checkpoint: x is of another model: 1 missing: c; 1 unexpected: d; 1 of another shape: b (expected [4], got [3])"
    );
    check_same_model(Path::new("x"), &expected[..1], &got[..1]).unwrap();
}

#[test]
fn a_thread_saves_one_checkpoint_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 9).unwrap();
    let mut saver = Saver::new(store.clone());
    assert!(!saver.is_busy().unwrap(), "nothing was begun");
    let log = fs::File::create(folder.path().join("log")).unwrap();
    for iteration in 1..4 {
        saver.begin(move || checkpoint(iteration), Some(log.try_clone().unwrap())).unwrap();
    }
    assert!(store.list().unwrap().len() >= 2, "those before the last are complete");
    saver.wait().unwrap();
    assert_eq!(names(&store), ["iteration_00000001", "iteration_00000002", "iteration_00000003"]);
    assert!(!saver.is_busy().unwrap() && !saver.took().is_zero());
    saver.begin(|| checkpoint(4), None).unwrap();
    drop(saver);
    assert_eq!(
        Checkpoint::load(&store.newest().unwrap().unwrap()).unwrap(),
        checkpoint(4),
        "the end waits for the last"
    );
}

#[test]
fn an_error_of_the_thread_that_saves_comes_once_and_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 9).unwrap();
    let mut saver = Saver::new(store.clone());
    saver.begin(|| checkpoint(1), None).unwrap();
    let mut broken = checkpoint(2);
    broken.momentum[0].values.pop();
    let is_named = |error: Error| {
        let text = error.to_string();
        matches!(error, Error::Checkpoint(_)) && text.contains("cannot save") && text.contains("00000001 is complete")
    };
    let made = |checkpoint: &Checkpoint| {
        let copy = checkpoint.clone();
        move || copy
    };
    // By the next save, by a question, or by waiting: each time it is told once.
    saver.begin(made(&broken), None).unwrap();
    assert!(is_named(saver.begin(|| checkpoint(3), None).unwrap_err()));
    saver.begin(made(&broken), None).unwrap();
    let told = std::iter::repeat_with(|| saver.is_busy()).find(|busy| !matches!(busy, Ok(true)));
    assert!(is_named(told.unwrap().unwrap_err()) && !saver.is_busy().unwrap());
    saver.begin(made(&broken), None).unwrap();
    assert!(is_named(saver.wait().unwrap_err()) && saver.wait().is_ok());
    saver.begin(|| checkpoint(4), None).unwrap();
    saver.wait().unwrap();
    assert_eq!(names(&store), ["iteration_00000001", "iteration_00000004"]);
}
