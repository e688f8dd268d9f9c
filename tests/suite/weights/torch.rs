//! Files are exchanged with PyTorch itself, where a Python with it is found.

use std::path::{Path, PathBuf};
use std::process::Command;

use vcycle::model::{Arch, Model, ModelConfig, NamedArray};
use vcycle::weights::{self, Format, entries};

use crate::golden::fill;

/// `$VCYCLE_TORCH_PYTHON` or `python3`, if it has PyTorch; else a loud skip.
pub fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("VCYCLE_TORCH_PYTHON").unwrap_or_else(|| "python3".into()));
    let has_torch = Command::new(&python).args(["-c", "import torch"]).output().is_ok_and(|o| o.status.success());
    if !has_torch {
        eprintln!("SKIPPED: files of PyTorch itself, because {} has no torch (VCYCLE_TORCH_PYTHON)", python.display());
    }
    has_torch.then_some(python)
}

fn run(python: &Path, arguments: &[&Path]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/weights/exchange.py");
    let output = Command::new(python).arg("-W").arg("ignore").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lets PyTorch write `new.pyth`, `old.pyth` and `plain.pth` with these arrays to `folder`.
pub fn save(python: &Path, folder: &Path, state: &[NamedArray]) {
    let entry = |a: &NamedArray| serde_json::json!({"name": a.name, "shape": a.shape, "len": a.values.len()});
    let list: Vec<_> = state.iter().map(entry).collect();
    std::fs::write(folder.join("entries.json"), serde_json::to_vec(&list).unwrap()).unwrap();
    let bytes: Vec<u8> = state.iter().flat_map(|a| &a.values).flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.join("values.bin"), bytes).unwrap();
    run(python, &[Path::new("save"), folder]);
    std::fs::remove_file(folder.join("values.bin")).unwrap();
}

#[test]
fn slowfast_goes_from_pytorch_and_back_bit_for_bit() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = Model::new(&ModelConfig::new(Arch::SlowFast, 50, 400)).unwrap();
    let array = |(name, shape): (String, Vec<usize>)| {
        let values = fill::f32(&name, shape.iter().product(), 0.5, 0.0);
        NamedArray { name, shape, values }
    };
    let mut state: Vec<NamedArray> = entries(&model).into_iter().map(array).collect();
    state.iter_mut().filter(|a| a.name.ends_with("num_batches_tracked")).for_each(|a| a.values = vec![19.0]);
    save(&python, folder.path(), &state);
    let path = |name: &str| folder.path().join(name);
    for (name, format, epoch) in [
        ("new.pyth", Format::PyTorch, Some(3)),
        ("old.pyth", Format::PyTorchLegacy, Some(3)),
        ("plain.pth", Format::PyTorch, None),
    ] {
        let read = weights::load(&path(name)).unwrap();
        assert_eq!((read.format, read.epoch), (format, epoch), "{name}");
        let (complete, clear_name_patterns) = (true, vec![]);
        let options = weights::Options { inflate: false, clear_name_patterns, complete };
        let (tensors, report) = weights::fit(&model, read, &options).unwrap();
        assert_eq!((report.matched.len(), report.unexpected.len()), (state.len(), 0), "{name}");
        let same = tensors.iter().zip(&state).all(|(tensor, array)| tensor.to_array() == *array);
        assert!(same, "{name}");
    }
    let convert = |from: &str, to: &str| weights::save(&path(to), &weights::load(&path(from)).unwrap()).unwrap();
    convert("new.pyth", "a.safetensors");
    convert("a.safetensors", "b.pyth");
    run(&python, &[Path::new("same"), &path("new.pyth"), &path("b.pyth")]);
}
