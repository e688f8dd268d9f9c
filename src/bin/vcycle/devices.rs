//! `vcycle devices`.

use std::collections::BTreeMap;

use vcycle::Error;
use vcycle::device::{Device, kernels};

/// Arguments of `vcycle devices`.
#[derive(clap::Args)]
pub struct Arguments {}

/// Prints executors, GPUs, compiled kernels and decoders.
pub fn run(_arguments: Arguments) -> vcycle::Result<()> {
    println!("executors");
    for spec in ["cpu", "cuda", "simt"] {
        match Device::select(spec) {
            Ok((_, chosen)) => println!("  {spec:<5} {}", chosen.trim_start_matches("device: ")),
            Err(error) => println!("  {spec:<5} none: {}", reason(error)),
        }
    }
    print_gpus();
    print_kernels();
    println!("decoders");
    println!("  h264  built in (8-bit 4:2:0 in MP4)");
    match vcycle::clip::decode::find_ffmpeg() {
        Some(path) => println!("  other ffmpeg, found at {}", path.display()),
        None => println!("  other none: there is no ffmpeg on PATH"),
    }
    println!("--device auto would take {}", Device::select("auto")?.1.trim_start_matches("device: "));
    Ok(())
}

/// An error without the words that a list of devices says anyway.
fn reason(error: Error) -> String {
    match error {
        Error::NoDevice(reason) => reason,
        other => other.to_string(),
    }
}

fn print_gpus() {
    println!("GPUs");
    match Device::gpus() {
        Err(error) => println!("  none: {}", reason(error)),
        Ok((driver, gpus)) => {
            println!("  driver for CUDA {driver}");
            for gpu in gpus {
                let (major, minor) = gpu.compute_capability;
                println!(
                    "  cuda:{} {}, compute capability {major}.{minor}, {} SMs, {:.1} GiB, {} KiB shared memory a block",
                    gpu.ordinal,
                    gpu.name,
                    gpu.num_sms,
                    gpu.memory_bytes as f64 / (1u64 << 30) as f64,
                    gpu.max_shared_bytes >> 10
                );
            }
        }
    }
}

fn print_kernels() {
    let bytes: usize = kernels::FATBINS.iter().map(|fatbin| fatbin.len()).sum();
    println!("kernels compiled in: {} ({} KiB)", kernels::KERNELS.len(), bytes >> 10);
    if kernels::KERNELS.is_empty() {
        println!("  none: this program was built without nvcc (`make cuda-toolkit` brings it)");
    }
    let mut by_archs: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kernel in kernels::KERNELS {
        by_archs.entry(kernel.archs.join(" ")).or_default().push(kernel.name);
    }
    for (archs, names) in by_archs {
        println!("  {archs}");
        names.iter().for_each(|name| println!("    {name}"));
    }
}
