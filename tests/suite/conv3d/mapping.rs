//! The index mappings of the kernels: mapping.cpp, compiled by the host's C++ compiler.

use std::path::Path;
use std::process::Command;

#[test]
fn index_mappings_hold_beyond_2_to_the_31() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/suite/conv3d/mapping.cpp");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if !source.is_file() || Command::new(&compiler).arg("--version").output().is_err() {
        if cfg!(feature = "simt") {
            panic!("the feature simt needs a C++ compiler and the sources");
        }
        eprintln!("SKIPPED: index mappings, because there is no C++ compiler or no source");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("mapping");
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-Wno-unknown-pragmas", "-I"])
        .arg(root.join("kernels"))
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("the compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let run = Command::new(&program).output().expect("the program runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}
