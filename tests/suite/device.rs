//! Devices, memory, streams, copies.

mod graph;
mod host;

use std::process::Command;

use vcycle::device::{Buffer, DType, Device, Pinned, Tensor};
use vcycle::error::Error;
use vcycle::ops::{pointwise, resize};
use vcycle::shape::ActivationShape;

#[test]
fn selects_by_name_and_says_what() {
    let (device, reason) = Device::select("cpu").unwrap();
    assert_eq!(device, Device::Cpu);
    assert!(reason.starts_with("device: cpu, "), "{reason}");
    let (device, reason) = Device::select("auto").unwrap();
    match device {
        Device::Cpu => assert!(reason.contains("no usable device"), "why there is no GPU: {reason}"),
        _ => assert!(reason.starts_with("device: cuda:0, "), "{reason}"),
    }
    assert!(matches!(Device::select("tpu"), Err(Error::Config(m)) if m.contains("auto, cpu, cuda")));
    assert!(matches!(Device::select("cuda:123"), Err(Error::NoDevice(_))));
    if !cfg!(feature = "simt") {
        assert!(matches!(Device::select("simt"), Err(Error::NoDevice(m)) if m.contains("feature `simt`")));
    }
}

/// In a process of its own, which is asked by its environment.
#[test]
fn launches_are_printed_once_where_asked_for() {
    if !cfg!(feature = "simt") {
        return eprintln!("SKIPPED: printed launches, because this build runs no kernels");
    }
    if std::env::var_os("VCYCLE_PRINT_PLANS").is_some_and(|v| v == "1") {
        let device = Device::select("simt").unwrap().0;
        let stream = device.stream().unwrap();
        let tensor = |size| Tensor::zeroed(&device, DType::Bf16, ActivationShape::new(1, 1, size, size, 8)).unwrap();
        let (large, small) = (tensor(4), tensor(2));
        for _ in 0..2 {
            resize::forward(&stream, false, &large, &small).unwrap();
            resize::grad_input(&stream, false, &small, &large).unwrap();
            pointwise::fill(&stream, &small, 0.0).unwrap();
        }
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "device::launches_are_printed_once_where_asked_for", "--nocapture"]);
    let run = |child: &mut Command| String::from_utf8(child.output().unwrap().stdout).unwrap();
    let said = run(child.env("VCYCLE_PRINT_PLANS", "1"));
    for (kernel, lines) in [
        ("resize_forward_vector8_bf16, 1 x 2 x 1 blocks", 1),
        ("resize_grad_input_vector8_bf16", 1),
        ("pointwise_fill", 2),
    ] {
        assert_eq!(said.matches(kernel).count(), lines, "{kernel} in\n{said}");
    }
}

#[test]
fn copies_through_pinned_memory_keep_every_byte() {
    for device in crate::executors::all() {
        let stream = device.stream().unwrap();
        let values: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let mut pinned = Pinned::zeroed(&device, 1000).unwrap();
        pinned.bytes_mut().unwrap().copy_from_slice(&values);
        let buffer = Buffer::zeroed(&device, 1024).unwrap();
        let slice = buffer.slice::<u8>(24, 1000).unwrap();
        let start = stream.record().unwrap();
        stream.upload(&mut pinned, &slice).unwrap();
        pinned.bytes_mut().unwrap().fill(0);
        stream.download(&slice, &mut pinned).unwrap();
        let end = stream.record().unwrap();
        assert_eq!(pinned.bytes().unwrap(), values);
        assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
        assert_eq!(buffer.slice::<u8>(0, 24).unwrap().read::<u8>().unwrap(), [0; 24]);
        stream.write_small(&[9; 8], &slice).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(slice.read::<u8>().unwrap()[..9], [9, 9, 9, 9, 9, 9, 9, 9, values[8]]);
    }
}

#[test]
fn copies_refuse_what_does_not_fit() {
    let device = Device::Cpu;
    let stream = device.stream().unwrap();
    let slice = Buffer::zeroed(&device, 64).unwrap().slice::<f32>(0, 16).unwrap();
    let mut small = Pinned::zeroed(&device, 63).unwrap();
    assert!(stream.upload(&mut small, &slice).unwrap_err().to_string().contains("63 bytes"));
    assert!(stream.write_small(&[0; 63], &slice).unwrap_err().to_string().contains("no multiple of 4"));
    assert!(stream.write_small(&[0; 68], &slice).is_err());
    assert!(slice.write(&[0u32; 16]).is_err(), "other element type");
    assert!(slice.write(&[0f32; 15]).is_err(), "other length");
}

/// A driver's words for its errors, as C.
const ERROR_TEXTS: &str = r#"
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "no CUDA-capable device is detected"; return 0; }
"#;

/// Runs `vcycle devices` with a driver library made of `source`; `None` where there is no C compiler or no program.
fn devices_with_driver(source: &str) -> Option<std::process::Output> {
    let program = env!("CARGO_BIN_EXE_vcycle");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("driver.c");
    std::fs::write(&file, source).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(folder.path().join("libcuda.so")).arg(&file);
    if !std::path::Path::new(program).is_file() || !compiler.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: driver libraries that answer oddly, because there is no C compiler or no vcycle program");
        return None;
    }
    let mut command = std::process::Command::new(program);
    Some(command.arg("devices").env("LD_LIBRARY_PATH", folder.path()).output().unwrap())
}

#[test]
fn a_driver_that_cannot_be_used_is_a_reason_and_no_panic() {
    let version = |v: u32| format!("int cuDriverGetVersion(int *v) {{ *v = {v}; return 0; }}\n");
    let cases = [
        ("too old", version(12020), "the CUDA driver is for CUDA 12.2, the kernels need 13.0"),
        ("no version", "int nothing(void) { return 0; }".into(), "Missing symbol cuDriverGetVersion"),
        (
            "version fails",
            "int cuDriverGetVersion(int *v) { return 999; }".into(),
            "does not tell its version (error 999)",
        ),
        (
            "no device",
            version(13000) + ERROR_TEXTS + "int cuInit(unsigned f) { return 100; }",
            "no CUDA-capable device",
        ),
        (
            "no GPU",
            version(13000) + "int cuInit(unsigned f) { return 0; } int cuDeviceGetCount(int *n) { *n = 0; return 0; }",
            "the CUDA driver sees no GPU",
        ),
        ("half a library", version(13000) + "int cuInit(unsigned f) { return 0; }", "Missing symbol cuDeviceGetCount"),
    ];
    for (case, source, reason) in cases {
        let Some(output) = devices_with_driver(&source) else { return };
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{case}: {out}{err}");
        assert!(out.contains(reason), "{case}: expected `{reason}` in\n{out}");
        assert!(!err.contains("panicked"), "{case}: {err}");
        assert!(out.contains("cpu   cpu, "), "{case}: the cpu is there all the same\n{out}");
    }
}

#[test]
fn kernels_are_compiled_for_both_architectures() {
    use vcycle::device::kernels::{KERNELS, find};
    if KERNELS.is_empty() || option_env!("VCYCLE_CUDA_ARCHS").is_some() {
        eprintln!("SKIPPED: compiled kernels, because this build had no nvcc or other architectures");
        return;
    }
    for kernel in KERNELS {
        assert_eq!(find(kernel.name), Some(kernel), "the table is sorted");
        assert!(kernel.archs.contains(&"sm_90a"), "{kernel:?}");
    }
    for name in ["resample_forward_linear_bf16", "resize_forward_vector8_bf16", "resize_grad_input_scalar_f32"] {
        let kernel = find(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(kernel.archs, ["sm_80", "sm_90a", "compute_80"], "{name}");
    }
}

/// Nobody sees a buffer while an emulated kernel is writing it: the emulator works on the host's memory.
#[cfg(feature = "simt")]
#[test]
fn reading_waits_for_an_emulated_kernel() {
    use vcycle::device::{DType, Tensor};
    use vcycle::ops::resize;
    use vcycle::shape::ActivationShape;
    let (device, shape) = (Device::Simt, ActivationShape::new(1, 4, 16, 16, 8));
    let input = Tensor::from_host(&device, shape, &vec![1f32; shape.num_elements()]).unwrap();
    let output = Tensor::zeroed(&device, DType::F32, shape).unwrap();
    let zeros = vec![0f32; shape.num_elements()];
    std::thread::scope(|scope| {
        let kernels = scope.spawn(|| {
            for _ in 0..20 {
                resize::forward(&device.stream().unwrap(), false, &input, &output).unwrap();
                output.memory().write(&zeros).unwrap();
            }
        });
        while !kernels.is_finished() {
            let seen = output.read::<f32>().unwrap();
            assert!(seen.iter().all(|&v| v == seen[0]), "half of a kernel's output");
        }
    });
}
