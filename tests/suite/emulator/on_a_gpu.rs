//! The unit kernels on a GPU, each kernel in a process of its own: one that hangs, or whose fault spoils its context, says
//! nothing about the others. With VCYCLE_CALIBRATION_OUT=FOLDER what they write is kept there (`calibration`).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vcycle::device::{CudaDevice, Device, kernels};

use super::unit::UnitCase;
use super::{calibration, unit_cases};

/// Starting the driver and loading the kernels takes most of a process; a kernel takes microseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs all cases of a kernel and compares with their meaning; what they wrote is kept in `folder`. The number of cases.
pub fn run_cases(kernel: &str, device: &Device, folder: Option<&Path>) -> Result<usize, String> {
    let all = unit_cases();
    let of_kernel: Vec<&UnitCase> = all.iter().filter(|case| case.kernel == kernel).collect();
    let (mut outputs, mut errors) = (Vec::new(), Vec::new());
    for &case in &of_kernel {
        match case.run(device) {
            Ok(output) => {
                errors.extend(case.compare(&output).err().map(|e| format!("{}: {e}", case.name)));
                outputs.push((case, output));
            }
            Err(error) => {
                errors.push(format!("{}: {error}; the cases after it are left out", case.name));
                break;
            }
        }
    }
    if let Some(folder) = folder {
        calibration::write(folder, kernel, &outputs)?;
    }
    let (failed, ran) = (errors.len(), of_kernel.len());
    if errors.is_empty() { Ok(ran) } else { Err(format!("{failed} of {ran} cases fail:\n{}", errors.join("\n"))) }
}

/// [`run_cases`] in a process of its own, which is ended after `limit`. What fails it has printed itself.
pub fn run_apart(kernel: &str, device: &str, limit: Duration) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(program)
        .args(["--ignored", "--exact", "emulator::on_a_gpu::one_kernel", "--quiet"])
        .envs([("VCYCLE_UNIT_KERNEL", kernel), ("VCYCLE_UNIT_DEVICE", device)])
        .spawn()
        .map_err(|e| e.to_string())?;
    let begin = Instant::now();
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("{kernel}: {status}")),
            None if begin.elapsed() >= limit => {
                child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
                return Err(format!("{kernel}: not done after {} s, ended", limit.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[test]
#[ignore = "one kernel, which other tests start in a process of its own"]
fn one_kernel() {
    let (Ok(kernel), Ok(device)) = (std::env::var("VCYCLE_UNIT_KERNEL"), std::env::var("VCYCLE_UNIT_DEVICE")) else {
        return eprintln!("SKIPPED: VCYCLE_UNIT_KERNEL and VCYCLE_UNIT_DEVICE say which kernel on what");
    };
    let folder = std::env::var_os("VCYCLE_CALIBRATION_OUT");
    let device = Device::select(&device).map_err(|e| e.to_string());
    let outcome = device.and_then(|(device, _)| run_cases(&kernel, &device, folder.as_ref().map(Path::new)));
    if let Err(error) = outcome {
        // No panic, whose backtrace would stand among the other kernels' lines.
        eprintln!("{kernel}: {error}");
        std::process::exit(1);
    }
}

#[test]
fn every_instruction_gives_its_meaning_on_a_gpu() {
    let device = match CudaDevice::open(0) {
        Ok(device) => device,
        Err(reason) => {
            assert!(std::env::var_os("VCYCLE_REQUIRE_GPU").is_none(), "VCYCLE_REQUIRE_GPU is set: {reason}");
            return eprintln!("SKIPPED: unit kernels on a GPU: {reason}");
        }
    };
    let gpu = device.gpu();
    let has_code = |archs: &[&str]| gpu.compute_capability == (9, 0) || archs.iter().any(|arch| *arch != "sm_90a");
    let mut all: Vec<&str> = unit_cases().iter().map(|case| case.kernel).collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|kernel| kernels::find(kernel).is_some_and(|compiled| has_code(compiled.archs)));
    let keep = std::env::var_os("VCYCLE_CALIBRATION_OUT");
    if all.is_empty() {
        assert!(
            keep.is_none(),
            "build with VCYCLE_UNIT_KERNELS=1: the unit kernels are not compiled into this program"
        );
        return eprintln!("SKIPPED: the unit kernels are not compiled into this program");
    }
    if let Some(folder) = &keep {
        std::fs::create_dir_all(folder).expect("VCYCLE_CALIBRATION_OUT");
        let (driver, _) = Device::gpus().expect("the driver");
        let text =
            format!("{}, compute capability {:?}, CUDA {driver} of the driver\n", gpu.name, gpu.compute_capability);
        std::fs::write(Path::new(folder).join("device.txt"), text).expect("VCYCLE_CALIBRATION_OUT");
    }
    let failures: Vec<String> = all.iter().filter_map(|kernel| run_apart(kernel, "cuda", LIMIT).err()).collect();
    println!("{} of {} unit kernels give their meaning on {}", all.len() - failures.len(), all.len(), gpu.name);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The same way through processes, with the emulator in the GPU's place.
#[cfg(feature = "simt")]
#[test]
fn a_kernel_runs_in_a_process_of_its_own() {
    assert_eq!(run_apart("unit_vote", "simt", LIMIT), Ok(()));
    let late = run_apart("unit_vote", "simt", Duration::ZERO).unwrap_err();
    assert_eq!(late, "unit_vote: not done after 0 s, ended");
    assert!(run_apart("unit_vote", "no device", LIMIT).unwrap_err().starts_with("unit_vote: exit status"));
}
