//! Compiles the CUDA kernels into the crate, where there is a CUDA compiler.

#[path = "build/nvcc.rs"]
mod nvcc;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    nvcc::build();
}
