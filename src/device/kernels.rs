//! The kernels that `build.rs` compiled into this program; none where it found no CUDA compiler.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// One compiled kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompiledKernel {
    /// Its symbol, `<op>_<direction>_<method>_<dtype>`.
    pub name: &'static str,
    /// What it was compiled for, such as `sm_80`, `sm_90a`, `compute_80` (PTX).
    pub archs: &'static [&'static str],
    /// Index in [`FATBINS`].
    pub fatbin: usize,
}

/// The kernel of that name.
pub fn find(name: &str) -> Option<&'static CompiledKernel> {
    KERNELS.binary_search_by(|kernel| kernel.name.cmp(name)).ok().map(|i| &KERNELS[i])
}

/// A number that changes with any of the compiled kernels: FNV-1a of them all.
pub fn hash() -> u64 {
    static HASH: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let fold = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    *HASH.get_or_init(|| FATBINS.iter().copied().flatten().fold(0xcbf2_9ce4_8422_2325, fold))
}
