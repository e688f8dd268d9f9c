//! `vcycle devices`.

use std::collections::BTreeMap;

use vcycle::Error;
use vcycle::device::{Device, kernels};

/// Arguments of `vcycle devices`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Prints executors, GPUs, compiled kernels and decoders.
pub fn run(_arguments: Arguments) -> vcycle::Result<()> {
    let mut lines = vec!["executors".to_string()];
    for spec in ["cpu", "cuda", "simt"] {
        lines.push(match Device::select(spec) {
            Ok((_, chosen)) => format!("  {spec:<5} {}", chosen.trim_start_matches("device: ")),
            Err(error) => format!("  {spec:<5} none: {}", reason(error)),
        });
    }
    lines.extend(gpus());
    lines.extend(compiled_kernels());
    lines.push("decoders".into());
    lines.push("  h264  built in (8-bit 4:2:0 in MP4)".into());
    lines.push(match vcycle::clip::decode::find_ffmpeg() {
        Some(path) => format!("  other ffmpeg, found at {}", path.display()),
        None => "  other none: there is no ffmpeg on PATH".into(),
    });
    let auto = Device::select("auto")?.1;
    lines.push(format!("--device auto would take {}", auto.trim_start_matches("device: ")));
    super::out::stdout(&(lines.join("\n") + "\n"))
}

/// An error without the words that a list of devices says anyway.
fn reason(error: Error) -> String {
    match error {
        Error::NoDevice(reason) => reason,
        other => other.to_string(),
    }
}

fn gpus() -> Vec<String> {
    let mut lines = vec!["GPUs".to_string()];
    match Device::gpus() {
        Err(error) => lines.push(format!("  none: {}", reason(error))),
        Ok((driver, gpus)) => {
            lines.push(format!("  driver for CUDA {driver}"));
            lines.extend(gpus.iter().map(|gpu| {
                let (major, minor) = gpu.compute_capability;
                format!(
                    "  cuda:{} {}, compute capability {major}.{minor}, {} SMs, {:.1} GiB, {} KiB shared memory a block",
                    gpu.ordinal,
                    gpu.name,
                    gpu.num_sms,
                    gpu.memory_bytes as f64 / (1u64 << 30) as f64,
                    gpu.max_shared_bytes >> 10
                )
            }));
        }
    }
    lines
}

fn compiled_kernels() -> Vec<String> {
    let bytes: usize = kernels::FATBINS.iter().map(|fatbin| fatbin.len()).sum();
    let mut lines = vec![format!("kernels compiled in: {} ({} KiB)", kernels::KERNELS.len(), bytes >> 10)];
    if kernels::KERNELS.is_empty() {
        lines.push("  none: this program was built without nvcc (`make cuda-toolkit` brings it)".into());
    }
    let mut by_archs: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kernel in kernels::KERNELS {
        by_archs.entry(kernel.archs.join(" ")).or_default().push(kernel.name);
    }
    for (archs, names) in by_archs {
        lines.push(format!("  {archs}"));
        lines.extend(names.iter().map(|name| format!("    {name}")));
    }
    lines
}
