//! `--device`: which executor a user's word means.

use super::{CudaDevice, Device, Gpu, cuda, kernels};
use crate::error::{Error, Result};

impl Device {
    /// The device that `spec` names, with a sentence about the choice for the caller to print.
    ///
    /// | spec | meaning |
    /// |---|---|
    /// | `auto` | the first GPU if it can be used and kernels are compiled in, else `cpu`; the sentence says why |
    /// | `cuda`, `cuda:N` | GPU 0, GPU N, or an error |
    /// | `cpu` | native Rust |
    /// | `simt` | the emulator, in builds with the feature `simt` |
    ///
    /// # Errors
    /// [`Error::NoDevice`] for a device that cannot be used, [`Error::Config`] for any other word, and for a
    /// `VCYCLE_CPU_ISA` that this machine lacks.
    pub fn select(spec: &str) -> Result<(Device, String)> {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        let cpu = || -> Result<String> {
            let isa = crate::device::cpu::Isa::chosen()?.name();
            Ok(format!("device: cpu, {} of {} cores, {isa}", rayon::current_num_threads(), cores()))
        };
        match spec {
            "cpu" => Ok((Device::Cpu, cpu()?)),
            "auto" => match CudaDevice::open(0) {
                Ok(device) if kernels::KERNELS.is_empty() => {
                    let reason =
                        format!("{} is there, but no CUDA compiler was when this program was built", device.gpu().name);
                    Ok((Device::Cpu, format!("{} ({reason})", cpu()?)))
                }
                Ok(device) => Ok((Device::Cuda(device.clone()), chosen(device.gpu()))),
                Err(reason) => Ok((Device::Cpu, format!("{} ({reason})", cpu()?))),
            },
            "simt" => {
                check_emulator()?;
                Ok((Device::Simt, "device: simt, the emulator of CUDA kernels".into()))
            }
            _ => {
                let device = CudaDevice::open(ordinal(spec)?)?;
                Ok((Device::Cuda(device.clone()), chosen(device.gpu())))
            }
        }
    }

    /// Memory of the device, in all; of executors on the host that of the machine. `None` where no /proc/meminfo tells.
    pub fn memory_bytes(&self) -> Option<usize> {
        match self {
            Device::Cuda(device) => Some(device.gpu().memory_bytes),
            _ => total_memory_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?),
        }
    }

    /// `fraction` (VCYCLE.MEMORY_FRACTION) of [`Device::memory_bytes`].
    pub fn share_of_memory(&self, fraction: f64) -> Option<usize> {
        self.memory_bytes().map(|bytes| (bytes as f64 * fraction) as usize)
    }

    /// The CUDA version of the driver and all GPUs of the machine, usable or not.
    ///
    /// # Errors
    /// [`Error::NoDevice`] with the reason why there are none.
    pub fn gpus() -> Result<(String, Vec<Gpu>)> {
        cuda::list()
    }
}

/// Of the text of /proc/meminfo.
fn total_memory_bytes(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
}

#[cfg(feature = "simt")]
fn check_emulator() -> Result<()> {
    super::simt::check_processor()
}

#[cfg(not(feature = "simt"))]
fn check_emulator() -> Result<()> {
    Err(Error::NoDevice("this program was built without the feature `simt`".into()))
}

fn chosen(gpu: &Gpu) -> String {
    let (major, minor) = gpu.compute_capability;
    let gib = gpu.memory_bytes as f64 / (1u64 << 30) as f64;
    format!("device: cuda:{}, {} ({major}.{minor}, {gib:.0} GiB, {} SMs)", gpu.ordinal, gpu.name, gpu.num_sms)
}

fn ordinal(spec: &str) -> Result<usize> {
    let unknown = || Error::Config(format!("device `{spec}`: expected auto, cpu, cuda, cuda:N or simt"));
    match spec.strip_prefix("cuda").ok_or_else(unknown)? {
        "" => Ok(0),
        rest => rest.strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals() {
        assert_eq!(ordinal("cuda").unwrap(), 0);
        assert_eq!(ordinal("cuda:3").unwrap(), 3);
        for bad in ["gpu", "cuda:", "cuda:x", "cuda3", ""] {
            assert!(matches!(ordinal(bad), Err(Error::Config(_))), "{bad}");
        }
    }
}
