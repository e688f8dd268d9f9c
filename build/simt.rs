//! The part of the build script that compiles kernels/**/*.cu as host C++, for the executor `Simt`.
//!
//! Two libraries: the emulator (kernels/simt/*.cpp), and the kernels, which with the feature `simt-check` are compiled
//! with `-fsanitize=thread`. libtsan is not linked: the emulator supplies the functions that the compiler calls at every
//! load and store.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Compiles the emulator and the kernels if the feature `simt` is on.
pub fn build() {
    if env::var_os("CARGO_FEATURE_SIMT").is_none() {
        return;
    }
    let target = env::var("TARGET").unwrap_or_default();
    if !(target.starts_with("x86_64") && target.contains("linux")) {
        fail(&format!("feature `simt`: the kernel emulator runs on x86-64 Linux only, the target is {target}"));
    }
    let is_checked = env::var_os("CARGO_FEATURE_SIMT_CHECK").is_some();
    let toolkit_headers = find_toolkit_headers();
    rerun_if_changed(Path::new("kernels"));
    println!("cargo:rerun-if-changed=build/simt.rs");

    let mut kernels = compiler(&toolkit_headers, is_checked);
    kernels.flag("-x").flag("c++");
    if is_checked {
        kernels.flag("-fsanitize=thread");
    }
    // Kernels are known by the registrars that SIMT_EXPORT makes: nothing refers to their object files by name.
    kernels.link_lib_modifier("+whole-archive");
    kernels.files(sources(Path::new("kernels"), "cu")).compile("vcycle_simt_kernels");

    let mut emulator = compiler(&toolkit_headers, is_checked);
    emulator.files(sources(Path::new("kernels/simt"), "cpp")).compile("vcycle_simt");
}

fn compiler(toolkit_headers: &Path, is_checked: bool) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .extra_warnings(true)
        .define("SIMT_EMU", None)
        .flag("-march=x86-64-v3")
        // The host compiler fuses a * b + c where it likes; kernels write fmaf where they mean it.
        .flag("-ffp-contract=off")
        .flag("-Wno-unknown-pragmas")
        .flag("-Wno-psabi")
        .flag("-isystem")
        .flag(toolkit_headers);
    if is_checked {
        build.define("SIMT_CHECK", None);
    }
    build
}

/// The folder that holds cuda_fp16.h: $CUDA_HOME/include, `.cuda` of `make cuda-toolkit`, or /usr/local/cuda/include.
fn find_toolkit_headers() -> PathBuf {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut candidates = Vec::new();
    if let Some(home) = env::var_os("CUDA_HOME") {
        candidates.push(PathBuf::from(home).join("include"));
    }
    candidates.push(root.join(".cuda/include"));
    candidates.push(root.join(".cuda/nvidia/cu13/include"));
    candidates.push(PathBuf::from("/usr/local/cuda/include"));
    for candidate in &candidates {
        if candidate.join("cuda_fp16.h").is_file() {
            return candidate.clone();
        }
    }
    let looked: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
    fail(&format!(
        "feature `simt` needs the headers of the CUDA toolkit (cuda_fp16.h and others; no driver, no GPU). Looked in {}. \
         Run `make cuda-toolkit`, or set CUDA_HOME to a toolkit",
        looked.join(", ")
    ))
}

/// All files below `folder` (itself included) that end in `.extension`, sorted.
fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder) {
        if path.is_dir() {
            found.extend(sources(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn rerun_if_changed(folder: &Path) {
    println!("cargo:rerun-if-changed={}", folder.display());
    for path in entries(folder) {
        if path.is_dir() {
            rerun_if_changed(&path);
        } else if path.extension().is_some_and(|e| ["cu", "cuh", "cpp", "hpp"].iter().any(|known| e == *known)) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    match fs::read_dir(folder) {
        Ok(read) => read.filter_map(|entry| entry.ok().map(|e| e.path())).collect(),
        Err(error) => fail(&format!("{}: {error}", folder.display())),
    }
}

/// Stops the build with one message.
fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    std::process::exit(1)
}
