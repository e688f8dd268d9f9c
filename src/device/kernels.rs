//! The kernels that `build.rs` compiled into this program.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// One compiled kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompiledKernel {
    /// Its symbol, `<op>_<direction>_<method>_<dtype>`.
    pub name: &'static str,
    /// What it was compiled for, such as `sm_80`, `sm_90a`, `compute_80` (PTX).
    pub archs: &'static [&'static str],
}
