//! Index mappings of kernels, as plain C++: each file of tests/mapping includes the very header that the kernels include, checks
//! its functions, and is compiled and run here. They reach sizes that no test could run a kernel at.

use std::path::Path;
use std::process::Command;

#[test]
fn mappings_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/mapping");
    if !folder.is_dir() || !root.join("kernels").is_dir() {
        return eprintln!("SKIPPED: the sources of the kernels are not here");
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        return eprintln!("SKIPPED: mappings of kernels, because there is no C++ compiler ({compiler}); CXX names one");
    }
    let output = tempfile::tempdir().unwrap();
    let mut count = 0;
    for file in std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()) {
        if file.extension().is_none_or(|e| e != "cpp") {
            continue;
        }
        let program = output.path().join(file.file_stem().unwrap());
        let mut command = Command::new(&compiler);
        command.args([
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsanitize=undefined",
            "-fno-sanitize-recover",
        ]);
        command.arg("-I").arg(root.join("kernels")).arg("-o").arg(&program).arg(&file);
        let compiled = command.output().unwrap();
        assert!(compiled.status.success(), "{}:\n{}", file.display(), String::from_utf8_lossy(&compiled.stderr));
        let run = Command::new(&program).output().unwrap();
        let said = [run.stdout, run.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(run.status.success(), "{}:\n{said}", file.display());
        count += 1;
    }
    assert!(count > 0, "no mapping was checked");
}
