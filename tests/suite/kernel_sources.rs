//! What holds for the text of every kernel.

use std::fs;
use std::path::{Path, PathBuf};

/// Files under `folder` that nvcc compiles for users: not the emulator's, not those of single instructions.
fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of the kernels").map(|e| e.expect("an entry").path());
    let is_shipped = |path: &PathBuf| !["simt", "unit"].iter().any(|name| path.ends_with(name));
    let (folders, files): (Vec<_>, Vec<_>) = entries.filter(is_shipped).partition(|path| path.is_dir());
    let own = files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "cu"));
    own.chain(folders.iter().flat_map(|folder| kernel_files(folder))).collect()
}

/// A dependent launch is only right where a kernel waits for the grid before it touches memory.
fn kernels_that_do_not_begin(text: &str) -> Vec<String> {
    let text = text.replace('\\', " ");
    let bodies = text.split("__global__").skip(1).map(|kernel| kernel.split_once('{').unwrap_or((kernel, "")));
    let late = bodies.filter(|(_, body)| !body.trim_start().starts_with("begin_grid();"));
    late.map(|(head, _)| head.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn every_kernel_begins_with_begin_grid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    if !root.is_dir() {
        println!("SKIPPED: the sources of the kernels are not here");
        return;
    }
    let mut num_kernels = 0;
    for file in kernel_files(&root) {
        let text = fs::read_to_string(&file).expect("a source file");
        num_kernels += text.matches("__global__").count();
        let late = kernels_that_do_not_begin(&text);
        assert!(late.is_empty(), "{}: begin_grid() must be the first statement of {late:?}", file.display());
    }
    assert!(num_kernels > 30, "found only {num_kernels} kernels");
}

#[test]
fn a_kernel_that_begins_otherwise_is_found() {
    let good = "__global__ void a(int p) {\n    begin_grid();\n    f(p);\n}\n";
    let macro_form = "#define K(name) \\\n    __global__ void name(P p) { \\\n        begin_grid();  \\\n    }\n";
    assert!(kernels_that_do_not_begin(&format!("{good}{macro_form}")).is_empty());
    let bad = "__global__ void b(int p) {\n    f(p);\n    begin_grid();\n}\n";
    assert_eq!(kernels_that_do_not_begin(&format!("{good}{bad}")), ["void b(int p)"]);
}
