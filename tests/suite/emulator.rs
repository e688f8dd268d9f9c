//! Tests of the kernel emulator (kernels/simt).
//!
//! `unit`: one case a wrapper of kernels/common/ptx.cuh, for any device that runs kernels: what the emulator gives must be
//! the bits that a plain computation here gives, and so must what a GPU gives. `fault`: kernels with a mistake, which the
//! emulator must find.

#[cfg(feature = "simt")]
mod fault;
mod unit;
mod unit_copies;
mod unit_matrix;
mod unit_tma;
mod unit_warp;
mod unit_wgmma;

use vcycle::device::{Device, kernels};

/// All cases.
fn unit_cases() -> Vec<unit::UnitCase> {
    [unit_warp::cases(), unit_copies::cases(), unit_matrix::cases(), unit_tma::cases(), unit_wgmma::cases()].concat()
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

/// The same cases on a GPU, where one is and the unit kernels are compiled in: what calibrates the emulator.
#[test]
fn every_instruction_gives_its_meaning_on_a_gpu() {
    let device = match vcycle::device::CudaDevice::open(0) {
        Ok(device) => Device::Cuda(device),
        Err(reason) => return eprintln!("SKIPPED: unit kernels on a GPU: {reason}"),
    };
    let (mut passed, mut failures) = (0, Vec::new());
    for case in unit_cases() {
        if !kernels::KERNELS.iter().any(|kernel| kernel.name == case.kernel) {
            continue;
        }
        match case.check(&device) {
            Ok(()) => passed += 1,
            Err(error) => failures.push(format!("{}: {error}", case.name)),
        }
    }
    println!("{passed} unit cases passed on {device}");
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), passed + failures.len(), failures.join("\n"));
    if passed == 0 {
        eprintln!("SKIPPED: the unit kernels are not compiled into this program");
    }
}
