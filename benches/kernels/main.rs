//! Criterion benches of every op, one module each: `cargo bench --bench kernels`. Ids are `op_direction/case/method`, with
//! the names of tests/cases. Throughput counts the bytes that must be read and written at least once, or the FLOPs. With `--layers` the program
//! is no criterion bench: see `layers`.

mod attention;
mod batch_norm;
mod cases;
mod conv3d;
mod conv3d_backward;
mod conv3d_grad_filter;
mod device;
mod dropout;
mod gram;
mod layers;
mod linear;
mod mixup;
mod pointwise;
mod pool3d;
mod resample;
mod resize;
mod sgd;
mod softmax_loss;

/// Each op's name beside its benches.
macro_rules! benches {
    ($($op:ident::bench,)*) => {
        const BENCHES: &[(&str, fn(&mut criterion::Criterion))] = &[$((stringify!($op), $op::bench)),*];
    };
}

benches! {
    attention::bench,
    batch_norm::bench,
    conv3d::bench,
    conv3d_backward::bench,
    conv3d_grad_filter::bench,
    dropout::bench,
    gram::bench,
    linear::bench,
    mixup::bench,
    pointwise::bench,
    pool3d::bench,
    resample::bench,
    resize::bench,
    sgd::bench,
    softmax_loss::bench,
}

fn main() {
    if std::env::args().any(|argument| argument == "--layers") {
        if let Err(error) = layers::main() {
            eprintln!("kernels: {error}");
            std::process::exit(1);
        }
        return;
    }
    // Unlike a filter of criterion's this spares the setup of all other ops, and their faults.
    let only = std::env::var("VCYCLE_BENCH_OP").ok();
    if let Some(op) = only.as_deref().filter(|op| !BENCHES.iter().any(|(name, _)| name == op)) {
        eprintln!(
            "VCYCLE_BENCH_OP={op}: there are {}",
            BENCHES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        );
        std::process::exit(1);
    }
    let mut criterion = criterion::Criterion::default().configure_from_args();
    BENCHES
        .iter()
        .filter(|(name, _)| only.as_deref().is_none_or(|op| op == *name))
        .for_each(|(_, bench)| bench(&mut criterion));
    criterion.final_summary();
}
