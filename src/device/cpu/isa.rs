//! The instruction set of the CPU kernels.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// Environment variable that overrides the choice, for tests and comparisons: `avx512`, `avx2` or `portable`.
const OVERRIDE: &str = "VCYCLE_CPU_ISA";

/// Vector instructions that the CPU kernels use. Results differ in the last bits between them: `Portable` rounds after the
/// multiplication, and sums of wider vectors are grouped differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 16 lanes, 32 registers, fused multiply-add.
    Avx512,
    /// 8 lanes, 16 registers, fused multiply-add.
    Avx2,
    /// What every processor of the target has.
    Portable,
}

impl Isa {
    /// The instruction sets that this machine can run, best first.
    pub fn available() -> Vec<Isa> {
        [Isa::Avx512, Isa::Avx2, Isa::Portable].into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine can run it. Asked by every call of a kernel: no list is made.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => std::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma"),
            Isa::Portable => true,
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The best available one, or what the environment variable `VCYCLE_CPU_ISA` names. Chosen once per process.
    ///
    /// # Errors
    /// [`Error::Config`] where the variable names none, or one that this machine lacks.
    pub fn chosen() -> Result<Isa> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        CHOSEN.get_or_init(choose).clone().map_err(Error::Config)
    }

    /// `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// Floats in a vector.
    pub fn lanes(self) -> usize {
        match self {
            Isa::Avx512 => 16,
            Isa::Avx2 | Isa::Portable => 8,
        }
    }
}

fn choose() -> Result<Isa, String> {
    let available = Isa::available();
    let Some(wanted) = std::env::var_os(OVERRIDE) else { return Ok(available[0]) };
    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
    let found = available.iter().find(|isa| wanted == isa.name());
    found.copied().ok_or_else(|| format!("{OVERRIDE} is {wanted:?}: this machine has {}", names.join(", ")))
}
