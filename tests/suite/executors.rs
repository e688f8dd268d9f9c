//! Which devices a test runs on: the same binary tests whatever is there.

use vcycle::device::Device;

/// The text of tests/cases/`name`.toml, or of `name`.toml in the folder VCYCLE_CASES, for binaries that left their clone.
pub fn cases(name: &str) -> String {
    let folder =
        std::env::var("VCYCLE_CASES").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases").into());
    let path = format!("{folder}/{name}.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every executor of this build and machine that can be used. With `VCYCLE_REQUIRE_GPU=1` a missing GPU is a failure.
pub fn all() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    devices.extend(with_kernels());
    devices
}

/// Those that run the CUDA kernels.
pub fn with_kernels() -> Vec<Device> {
    let mut devices = Vec::new();
    if cfg!(feature = "simt") {
        devices.push(Device::select("simt").expect("the emulator").0);
    }
    match Device::select("cuda") {
        Ok((device, _)) => devices.push(device),
        Err(reason) => {
            assert!(std::env::var_os("VCYCLE_REQUIRE_GPU").is_none(), "VCYCLE_REQUIRE_GPU is set: {reason}");
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| eprintln!("SKIPPED: tests on a GPU, because {reason}"));
        }
    }
    devices
}

/// Runs `test` once, or on the emulator once for each of its modes: copies early and late, threads in several orders,
/// watched memory behind and before buffers.
pub fn in_all_modes(device: &Device, test: impl Fn(&str)) {
    match device {
        #[cfg(feature = "simt")]
        Device::Simt => {
            use vcycle::device::simt::{Guard, SimtOptions, with_options};
            let guarded_start = SimtOptions { guard: Guard::Start, ..Default::default() };
            for options in SimtOptions::all().into_iter().chain([guarded_start]) {
                with_options(options, || test(&format!("simt {options:?}")));
            }
        }
        other => test(&other.to_string()),
    }
}
