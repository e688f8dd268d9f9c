//! Tests of the kernel emulator (kernels/simt).
//!
//! `unit`: one case a wrapper of kernels/common/ptx.cuh, for any device that runs kernels: what the emulator gives must be
//! the bits that a plain computation here gives, and so must what a GPU gives. `calibration`: what GPUs gave, in files.
//! `on_a_gpu`: each kernel in a process of its own. `fault`: kernels with a mistake, which the emulator must find.

mod calibration;
#[cfg(feature = "simt")]
mod fault;
mod on_a_gpu;
mod unit;
mod unit_copies;
mod unit_matrix;
mod unit_reduce;
mod unit_tma;
mod unit_warp;
mod unit_wgmma;

#[cfg(feature = "simt")]
use vcycle::device::Device;

/// All cases.
fn unit_cases() -> Vec<unit::UnitCase> {
    [
        unit_warp::cases(),
        unit_reduce::cases(),
        unit_copies::cases(),
        unit_matrix::cases(),
        unit_tma::cases(),
        unit_wgmma::cases(),
    ]
    .concat()
}

#[cfg(feature = "simt")]
#[test]
fn every_instruction_gives_its_meaning_on_simt() {
    use vcycle::device::simt::{SimtOptions, with_options};
    for options in SimtOptions::all() {
        with_options(options, || {
            for case in unit_cases() {
                case.check(&Device::Simt).unwrap_or_else(|e| panic!("{} with {options:?}: {e}", case.name));
            }
        });
    }
}

#[cfg(feature = "simt")]
#[test]
fn every_unit_kernel_has_a_case() {
    let cases = unit_cases();
    for name in vcycle::device::simt::kernel_names().iter().filter(|name| name.starts_with("unit_")) {
        assert!(cases.iter().any(|case| case.kernel == name), "kernel {name} has no unit case");
    }
}

/// A wrapper without emulation would not compile in the emulator's build, one without a unit kernel would go untested.
#[test]
fn every_wrapper_is_emulated_and_has_a_unit_kernel() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels"));
    if !root.is_dir() {
        return eprintln!("SKIPPED: the sources of the kernels are not here");
    }
    let text = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let all = |folder: &str, prefix: &str| -> String {
        let files = std::fs::read_dir(root.join(folder)).expect(folder).map(|entry| entry.expect(folder));
        files.filter(|f| f.file_name().to_string_lossy().starts_with(prefix)).map(|f| text(&f.path())).collect()
    };
    let (wrappers, units) = (all("common", "ptx"), all("unit", ""));
    let emulation = text(&root.join("simt/ptx_emulation.hpp"));
    let names: std::collections::BTreeSet<&str> = wrappers
        .lines()
        .filter_map(|line| line.strip_prefix("PTX_FUNCTION ")?.split('(').next()?.rsplit(' ').next())
        .collect();
    assert!(names.len() > 40, "only {} wrappers found", names.len());
    let mentions = |text: &str, name: &str| text.contains(&format!("{name}(")) || text.contains(&format!("{name}<"));
    for name in names {
        assert!(mentions(&emulation, name), "{name} is not emulated");
        assert!(mentions(&units, name), "{name} has no unit kernel");
    }
}

#[cfg(feature = "simt")]
mod refusals {
    use vcycle::device::{Buffer, DType, Device, LaunchConfig, OutOfBounds, Swizzle, TensorLayout, TensorMap, launch};

    use super::unit::UnitArgs;

    fn launch_error(kernel: &str, config: LaunchConfig, arguments: &[&[u8]]) -> String {
        let stream = Device::Simt.stream().unwrap();
        // SAFETY: the launch is refused before any thread runs.
        unsafe { launch::launch(&stream, "test", kernel, config, arguments) }.unwrap_err().to_string()
    }

    #[test]
    fn launches_that_cannot_be() {
        let args = UnitArgs::default();
        let bytes = bytemuck::bytes_of(&args);
        let config = LaunchConfig { grid: [1; 3], block: [64, 1, 1], shared_bytes: 0 };
        assert!(launch_error("no_such_kernel", config, &[bytes]).contains("no_such_kernel is not compiled in"));
        assert!(launch_error("unit_vote", config, &[]).contains("expected 1 arguments, got 0"));
        assert!(launch_error("unit_vote", config, &[&bytes[8..]]).contains("expected 72 bytes in argument 0, got 64"));
        let wide = LaunchConfig { block: [1025, 1, 1], ..config };
        assert!(launch_error("unit_vote", wide, &[bytes]).contains("a block of 1025 threads"));
        let empty = LaunchConfig { grid: [0, 1, 1], ..config };
        assert!(launch_error("unit_vote", empty, &[bytes]).contains("grid (0,1,1)"));
        let greedy = LaunchConfig { shared_bytes: 300 << 10, ..config };
        assert!(launch_error("unit_vote", greedy, &[bytes]).contains("307200 bytes of dynamic shared memory"));
    }

    #[test]
    fn tensor_maps_that_cannot_be() {
        let memory = Buffer::zeroed(&Device::Simt, 4096).unwrap().slice_of(DType::Bf16, 0, 2048).unwrap();
        let layout = TensorLayout {
            memory: &memory,
            sizes: &[64, 32],
            pitches_bytes: &[128],
            element_steps: &[1, 1],
            swizzle: Swizzle::Bytes128,
            out_of_bounds: OutOfBounds::Zero,
        };
        assert!(TensorMap::tiled(&layout, &[64, 32]).is_ok());
        let error =
            |layout: TensorLayout<'_>, box_sizes: &[u32]| TensorMap::tiled(&layout, box_sizes).unwrap_err().to_string();
        assert!(error(layout.clone(), &[64]).contains("1 box sizes for 2 dimensions"));
        assert!(error(layout.clone(), &[64, 300]).contains("a side of the box"));
        assert!(error(layout.clone(), &[128, 8]).contains("longer than the swizzle"));
        assert!(error(layout.clone(), &[4, 8]).contains("no multiple of 16 bytes"));
        assert!(error(TensorLayout { sizes: &[64, 33], ..layout.clone() }, &[64, 8]).contains("do not fit memory"));
        assert!(error(TensorLayout { pitches_bytes: &[120], ..layout.clone() }, &[64, 8]).contains("a stride"));
        assert!(error(TensorLayout { element_steps: &[1, 9], ..layout }, &[64, 8]).contains("element stride"));
    }
}
