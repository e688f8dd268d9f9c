//! Our own checkpoints: state as JSON, tensors as safetensors.

use std::fs;

use vcycle::checkpoint::{Checkpoint, Store};

use super::run;
use crate::checkpoint::checkpoint;

#[test]
fn checkpoints() {
    let folder = tempfile::tempdir().expect("folder");
    let path = Store::open(folder.path(), 1).expect("open").save(&checkpoint(12)).expect("save");
    for (name, file) in [("checkpoint_state", "state.json"), ("checkpoint_tensors", "model.safetensors")] {
        let file = path.join(file);
        let whole = fs::read(&file).expect("read");
        run(name, std::slice::from_ref(&whole), &mut |input| {
            fs::write(&file, input).expect("write");
            let Ok(loaded) = Checkpoint::load(&path) else { return };
            for array in &loaded.model {
                assert_eq!(array.values.len(), array.shape.iter().product::<usize>(), "{}", array.name);
            }
        });
        fs::write(&file, &whole).expect("write");
    }
}
