//! The part of the build script that compiles kernels/**/*.cu with nvcc and embeds the result.
//!
//! Each file becomes one fatbin with code for every architecture, and kernels.rs in OUT_DIR embeds them all. A file whose
//! name ends in `_sm90.cu` uses instructions of sm_90a and is compiled for that alone. A fatbin is kept in OUT_DIR under a
//! hash of all that went into it, so that only what changed is compiled again. No GPU is asked anything.
//!
//! | variable | meaning |
//! |---|---|
//! | NVCC, CUDA_HOME | the compiler, or the toolkit's folder |
//! | VCYCLE_CUDA_ARCHS | instead of `sm_80,sm_90a,compute_80` (`compute_*` is PTX) |
//! | VCYCLE_DENY_SPILLS=1 | a register spill fails the build |
//! | VCYCLE_UNIT_KERNELS=1 | kernels/unit too: one kernel an instruction, to compare a GPU with the emulator |

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::{env, fs};

/// Oldest nvcc that the kernels are compiled with: its code asks for a driver of the same major version.
const MIN_RELEASE: (u32, u32) = (13, 0);
const DEFAULT_ARCHS: &str = "sm_80,sm_90a,compute_80";
/// No --use_fast_math: it would change division and denormals everywhere. Line numbers cost nothing at run time. Compressed, the
/// fatbins take about a fourth.
const FLAGS: [&str; 8] = [
    "-fatbin",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "--compress-mode=size",
    "-Xptxas",
    "-v,--warn-on-spills",
    "-Wno-deprecated-gpu-targets",
];

/// A file of kernels, compiled.
struct Compiled {
    fatbin: PathBuf,
    /// What nvcc and ptxas said.
    log: String,
    /// The PTX architectures in it, for which ptxas lists no kernels.
    ptx: Vec<String>,
}

/// Compiles the kernels if there is a compiler, and writes kernels.rs.
pub fn build() {
    for variable in ["NVCC", "CUDA_HOME", "VCYCLE_CUDA_ARCHS", "VCYCLE_DENY_SPILLS", "VCYCLE_UNIT_KERNELS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build/nvcc.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let with_units = env::var_os("VCYCLE_UNIT_KERNELS").is_some_and(|v| v == "1");
    let is_shipped = |f: &PathBuf| !f.starts_with("kernels/simt") && (with_units || !f.starts_with("kernels/unit"));
    let sources: Vec<PathBuf> = files(Path::new("kernels"), &["cu"]).into_iter().filter(is_shipped).collect();
    println!("cargo:rerun-if-changed=kernels");
    let compiled = match find_nvcc() {
        Ok(nvcc) => compile_all(&nvcc, &sources, &out),
        Err(looked) => {
            println!(
                "cargo:warning=no CUDA compiler found (looked at {looked}): this build has no GPU kernels. `make \
                 cuda-toolkit` brings one; or set CUDA_HOME"
            );
            vec![]
        }
    };
    write_table(&out, &compiled);
}

/// nvcc, or the places where it was looked for.
fn find_nvcc() -> Result<PathBuf, String> {
    if env::var_os("DOCS_RS").is_some() {
        return Err("nothing, because this is a documentation build".into());
    }
    let mut places = Vec::new();
    places.extend(env::var_os("NVCC").map(PathBuf::from));
    places.extend(env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    places.extend(on_path);
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    places.extend([PathBuf::from("/usr/local/cuda/bin/nvcc"), root.join(".cuda/bin/nvcc")]);
    let mut looked = Vec::new();
    for place in places {
        match release(&place) {
            Some(release) if release >= MIN_RELEASE => return Ok(place),
            Some((major, minor)) => looked.push(format!("{} (CUDA {major}.{minor}, too old)", place.display())),
            None => looked.push(place.display().to_string()),
        }
    }
    Err(format!("{}, PATH", looked.join(", ")))
}

/// CUDA release of a compiler, from `Cuda compilation tools, release 13.0, V13.0.88`; `None` if it is none.
fn release(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (major, minor) = text.split("release ").nth(1)?.split(',').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Compiles what is not in OUT_DIR yet, as many files at a time as cargo allows jobs.
fn compile_all(nvcc: &Path, sources: &[PathBuf], out: &Path) -> Vec<Compiled> {
    let archs = env::var("VCYCLE_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let version = Command::new(nvcc).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).clamp(1, 16);
    let waiting = Mutex::new(sources.iter());
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                // `all` is moved into the closure: the lock is free again while the file is compiled.
                while let Some(source) = waiting.lock().ok().and_then(|mut all| all.next()) {
                    let gencode = gencode(source, &archs);
                    if gencode.is_empty() {
                        continue;
                    }
                    let compiled = compile(nvcc, source, &gencode, key(source, &gencode, &version), out);
                    if let Ok(mut done) = done.lock() {
                        done.insert(source.clone(), compiled);
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_default();
    forget_all_but(&done, out);
    done.into_iter()
        .map(|(source, outcome)| match outcome {
            Ok(compiled) => {
                report(&source, &compiled.log);
                compiled
            }
            Err(log) => {
                eprintln!("{}: nvcc failed:\n{log}", source.display());
                exit(1);
            }
        })
        .collect()
}

/// nvcc's options for the architectures of a file.
fn gencode(source: &Path, archs: &str) -> Vec<String> {
    let is_sm90 = source.to_string_lossy().ends_with("_sm90.cu");
    let wanted = archs.split(',').map(str::trim).filter(|arch| !arch.is_empty());
    wanted
        .filter(|arch| !is_sm90 || *arch == "sm_90a")
        .map(|arch| match (arch.strip_prefix("sm_"), arch.strip_prefix("compute_")) {
            (Some(number), _) => format!("arch=compute_{number},code=sm_{number}"),
            (_, Some(number)) => format!("arch=compute_{number},code=compute_{number}"),
            _ => {
                eprintln!("VCYCLE_CUDA_ARCHS: `{arch}` is neither sm_N nor compute_N");
                exit(1);
            }
        })
        .collect()
}

/// Hash of everything that the fatbin depends on: the file, all that it includes, compiler and options.
fn key(source: &Path, gencode: &[String], version: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (FLAGS, gencode, version, source).hash(&mut hasher);
    let mut texts = BTreeMap::new();
    read_with_includes(source, &mut texts);
    texts.hash(&mut hasher);
    hasher.finish()
}

/// The text of a file and of the project's headers that it includes, but for the emulator's, which nvcc does not see.
fn read_with_includes(file: &Path, texts: &mut BTreeMap<PathBuf, String>) {
    // `kernels/resize/../common/ptx.cuh` and `kernels/common/ptx.cuh` are one file.
    let mut path = PathBuf::new();
    for part in file.components() {
        if part == Component::ParentDir {
            path.pop();
        } else {
            path.push(part);
        }
    }
    if texts.contains_key(&path) || path.starts_with("kernels/simt") {
        return;
    }
    let Ok(text) = fs::read_to_string(&path) else { return };
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let included = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.split('"').next());
    let included: Vec<PathBuf> = included.map(|name| folder.join(name)).collect();
    texts.insert(path, text);
    included.iter().for_each(|header| read_with_includes(header, texts));
}

/// Compiles one file, unless its fatbin is there; on failure answers what nvcc said.
fn compile(nvcc: &Path, source: &Path, gencode: &[String], key: u64, out: &Path) -> Result<Compiled, String> {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let fatbin = out.join(format!("{stem}-{key:016x}.fatbin"));
    let log_file = fatbin.with_extension("log");
    let ptx =
        gencode.iter().filter_map(|g| g.split_once("code=compute_").map(|g| format!("compute_{}", g.1))).collect();
    if let (true, Ok(log)) = (fatbin.is_file(), fs::read_to_string(&log_file)) {
        return Ok(Compiled { fatbin, log, ptx });
    }
    let unfinished = fatbin.with_extension("unfinished");
    let mut command = Command::new(nvcc);
    command.args(FLAGS).args(gencode.iter().flat_map(|g| ["-gencode", g])).arg("-o").arg(&unfinished).arg(source);
    let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let log = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if !output.status.success() {
        return Err(log);
    }
    let keep = || fs::write(&log_file, &log).and_then(|()| fs::rename(&unfinished, &fatbin));
    keep().map_err(|e| format!("{}: {e}", fatbin.display()))?;
    Ok(Compiled { fatbin, log, ptx })
}

/// Shows warnings and spills; spills end the build where they are denied.
fn report(source: &Path, log: &str) {
    let notable = |line: &&str| line.contains("warning") || line.contains("error");
    for line in log.lines().filter(notable) {
        println!("cargo:warning={}: {line}", source.display());
    }
    let has_spills = log.lines().any(|line| line.contains("warning") && line.contains("spill"));
    if has_spills && env::var("VCYCLE_DENY_SPILLS").is_ok_and(|v| v == "1") {
        eprintln!("{}: registers are spilled, and VCYCLE_DENY_SPILLS=1 forbids it:\n{log}", source.display());
        exit(1);
    }
}

/// Removes fatbins of former versions of the files.
fn forget_all_but(done: &BTreeMap<PathBuf, Result<Compiled, String>>, out: &Path) {
    let current: Vec<&Path> = done.values().flatten().map(|c| c.fatbin.as_path()).collect();
    for old in files(out, &["fatbin"]).iter().filter(|f| !current.contains(&f.as_path())) {
        // What cannot be removed only takes space.
        let _ = fs::remove_file(old);
        let _ = fs::remove_file(old.with_extension("log"));
    }
}

/// The kernels of a compiled file with their architectures, as ptxas lists them.
fn kernels(compiled: &Compiled) -> BTreeMap<String, Vec<String>> {
    let mut kernels: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in compiled.log.lines() {
        let Some(rest) = line.split("Compiling entry function '").nth(1) else { continue };
        let mut quoted = rest.split('\'');
        if let (Some(name), Some(arch)) = (quoted.next(), quoted.nth(1)) {
            kernels.entry(name.into()).or_default().push(arch.into());
        }
    }
    for archs in kernels.values_mut() {
        archs.sort();
        archs.extend(compiled.ptx.iter().cloned());
    }
    kernels
}

/// Writes kernels.rs, which src/device/kernels.rs includes.
fn write_table(out: &Path, compiled: &[Compiled]) {
    let mut text =
        String::from("/// Fatbins, one a kernel file; a static is held once.\npub static FATBINS: &[&[u8]] = &[\n");
    for file in compiled {
        text += &format!("    include_bytes!({:?}),\n", file.fatbin);
    }
    text += "];\n/// All kernels, sorted by name.\npub const KERNELS: &[CompiledKernel] = &[\n";
    let all = compiled.iter().enumerate().flat_map(|(i, file)| kernels(file).into_iter().map(move |k| (k, i)));
    for ((name, archs), fatbin) in all.collect::<BTreeMap<_, _>>() {
        text += &format!("    CompiledKernel {{ name: {name:?}, archs: &{archs:?}, fatbin: {fatbin} }},\n");
    }
    text += "];\n";
    let path = out.join("kernels.rs");
    // An unchanged file keeps its time, and the crate is not compiled again.
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return;
    }
    if let Err(error) = fs::write(&path, text) {
        eprintln!("{}: {error}", path.display());
        exit(1);
    }
}

/// Files below `folder` with one of the extensions, sorted.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if path.extension().is_some_and(|e| extensions.iter().any(|known| e == *known)) {
            found.push(path);
        }
    }
    found.sort();
    found
}
