//! GPUs that can be planned for where they are not.

use super::Gpu;

/// The names of [`Gpu::known`].
pub const KNOWN_GPUS: [&str; 3] = ["h100", "h200", "a100"];

impl Gpu {
    /// What the driver tells about an H100 or H200 (SXM) or an A100 (80 GB), by NVIDIA's data sheets.
    pub fn known(name: &str) -> Option<Gpu> {
        let gpu = |name: &str, major, gib: usize, num_sms, shared_kib: usize| Gpu {
            ordinal: 0,
            name: name.into(),
            compute_capability: (major, 0),
            memory_bytes: gib << 30,
            num_sms,
            max_shared_bytes: shared_kib << 10,
        };
        match name {
            "h100" => Some(gpu("H100", 9, 80, 132, 227)),
            "h200" => Some(gpu("H200", 9, 140, 132, 227)),
            "a100" => Some(gpu("A100", 8, 80, 108, 163)),
            _ => None,
        }
    }
}
