//! Criterion benches of every op, one module each: `cargo bench --bench kernels`. Ids are `op_direction/case/method`, with
//! the names of tests/cases. Throughput counts the bytes that must be read and written at least once, or the FLOPs. With `--layers` the program
//! is no criterion bench: see `layers`.

mod attention;
mod batch_norm;
mod cases;
mod conv3d;
mod conv3d_grad_filter;
mod device;
mod dropout;
mod layers;
mod linear;
mod pointwise;
mod pool3d;
mod resample;
mod resize;
mod sgd;
mod softmax_loss;

criterion::criterion_group!(
    kernels,
    attention::bench,
    batch_norm::bench,
    conv3d::bench,
    conv3d_grad_filter::bench,
    dropout::bench,
    linear::bench,
    pointwise::bench,
    pool3d::bench,
    resample::bench,
    resize::bench,
    sgd::bench,
    softmax_loss::bench
);

fn main() {
    if std::env::args().any(|argument| argument == "--layers") {
        if let Err(error) = layers::main() {
            eprintln!("kernels: {error}");
            std::process::exit(1);
        }
        return;
    }
    kernels();
    criterion::Criterion::default().configure_from_args().final_summary();
}
