//! Criterion benches of every op, one module each: `cargo bench --bench kernels`. Ids are `op_direction/case/method`, with
//! the names of tests/cases. Throughput counts the bytes that must be read and written at least once, or the FLOPs.

mod batch_norm;
mod cases;
mod conv3d;
mod device;
mod linear;
mod pool3d;
mod resample;
mod resize;

criterion::criterion_group!(
    kernels,
    batch_norm::bench,
    conv3d::bench,
    linear::bench,
    pool3d::bench,
    resample::bench,
    resize::bench
);
criterion::criterion_main!(kernels);
