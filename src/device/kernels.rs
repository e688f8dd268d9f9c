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
