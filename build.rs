//! Compiles the CUDA kernels into the crate: with nvcc where there is one, and as host C++ with the feature `simt`.

#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/simt.rs"]
mod simt;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    nvcc::build();
    simt::build();
}
