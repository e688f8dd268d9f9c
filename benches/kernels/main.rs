//! Criterion benches of every op, one module each. `cargo bench --bench kernels`.

fn main() {}
