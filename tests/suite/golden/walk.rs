//! No file of the golden folder is left out.

use std::path::{Path, PathBuf};

use super::{folder, list};

/// Files with nothing to compare: PyTorch's times on another machine, and the folder's own description.
const NOT_COMPARED: [&str; 2] = ["cpu_baseline.json", "README.md"];

/// Files below `folder`, by their paths there.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// The text of all tests of this suite.
fn tests() -> String {
    let files = files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite"));
    let sources = files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    sources.map(|path| std::fs::read_to_string(path).expect("a source")).collect()
}

/// Files are opened by their path, those of models and traces by their name alone; whoever lists a folder opens all of it. That all
/// cases of a file are compared is for [`super::Golden::passed`] to say.
#[test]
fn golden_walk() {
    let Some(folder) = folder() else { return };
    let tests = tests();
    let is_listed = |subfolder: &str| tests.contains(&format!("golden::list(\"{subfolder}\")"));
    let mut compared = 0;
    for path in files_below(&folder) {
        let name = path.strip_prefix(&folder).expect("below").to_string_lossy().replace('\\', "/");
        let (subfolder, stem) = match name.rsplit_once('/') {
            Some((subfolder, file)) => (subfolder, file.rsplit_once('.').map_or(file, |(stem, _)| stem)),
            None => {
                assert!(NOT_COMPARED.contains(&name.as_str()), "{name}: no golden test opens it");
                continue;
            }
        };
        if name.ends_with(".safetensors") {
            assert!(path.with_extension("json").is_file(), "{name}: nothing describes these tensors");
            continue;
        }
        let is_opened = match subfolder {
            "models" | "train" => tests.contains(&format!("check(\"{stem}\")")),
            _ => tests.contains(&format!("golden::open(\"{name}\")")) || is_listed(subfolder),
        };
        assert!(is_opened, "{name}: no golden test opens it");
        compared += 1;
    }
    assert!(compared >= 38 && list("schedule").len() >= 17, "{compared} files: some are gone");
}
