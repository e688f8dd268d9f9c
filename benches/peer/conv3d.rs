//! Our convolutions beside libtorch's, as criterion benches: a group for each distinct convolution and direction of a measured
//! network at one grid of its schedule, with ours and each way of libtorch's as functions of it. `VCYCLE_PEER_NETWORK` and
//! `VCYCLE_PEER_GRID` choose (SlowFast-8x8-R50 at its default shape otherwise), a filter as everywhere: `cargo bench -- s4.pathway0`.
//!
//! Both sides are timed alike: the wall clock around rounds of a flush of the L2 and the call, less that of rounds without the call.
//! conv3d.py times each call by device events; this is for looking at one layer while it changes.

#[path = "../kernels/layers/calls.rs"]
mod calls;
#[path = "../kernels/cases.rs"]
#[allow(dead_code)] // The other benches' half.
mod cases;
#[path = "../kernels/device.rs"]
#[allow(dead_code)]
mod device;
#[path = "../kernels/layers/list.rs"]
#[allow(dead_code)]
mod list;
mod torch;

use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use vcycle::device::{DType, Device, Stream, Tensor};
use vcycle::ops::pointwise;
use vcycle::shape::{ActivationShape, StepShape};

use calls::{Memory, Work};
use list::Row;
use torch::Torch;

/// More than any GPU's L2 holds.
const FLUSH_BYTES: usize = 256 << 20;

/// The time of `rounds` of `work`, of what is left when `rest` is taken off.
fn difference(rounds: u64, mut work: impl FnMut(), mut rest: impl FnMut(), mut wait: impl FnMut()) -> Duration {
    let mut wall = |call: &mut dyn FnMut()| {
        wait();
        let start = Instant::now();
        (0..rounds).for_each(|_| call());
        wait();
        start.elapsed()
    };
    let whole = wall(&mut work);
    // Criterion refuses a time of zero, which noise can make of a very short call.
    whole.saturating_sub(wall(&mut rest)).max(Duration::from_nanos(rounds))
}

/// What is wanted: tiny layers in the smoke run.
fn rows() -> vcycle::Result<Vec<Row>> {
    let name = std::env::var("VCYCLE_PEER_NETWORK").unwrap_or_else(|_| "SlowFast-8x8-R50".into());
    let network = list::network(&name)?;
    let grids = network.grids()?;
    let wanted = std::env::var("VCYCLE_PEER_GRID").ok();
    let grid = match (device::is_smoke(), wanted) {
        (true, _) => StepShape::square(1, 8, 32, 1),
        (_, None) => grids[0],
        (_, Some(text)) => grids.iter().copied().find(|g| g.to_string() == text).unwrap_or_else(|| {
            let known: Vec<String> = grids.iter().map(StepShape::to_string).collect();
            panic!("VCYCLE_PEER_GRID: expected one of {}, got {text}", known.join(", "));
        }),
    };
    Ok(network.rows(grid)?.into_iter().filter(|row| row.form.is_none()).collect())
}

fn bench_ours(group: &mut BenchmarkGroup<'_, WallTime>, stream: &Stream, memory: &mut Memory, row: &Row) {
    let work = Work::new(memory, row).expect("memory");
    let is_cuda = matches!(stream.device(), Device::Cuda(_));
    let flush_shape = ActivationShape::new(1, 1, 1, FLUSH_BYTES / 2 / 4096, 4096);
    let flush = is_cuda.then(|| Tensor::zeroed(stream.device(), DType::Bf16, flush_shape).expect("memory"));
    let flush = || flush.iter().for_each(|memory| pointwise::fill(stream, memory, 0.5).expect("fill"));
    group.bench_function(format!("vcycle_{}", device::label()), |b| {
        b.iter_custom(|rounds| {
            let run = || {
                flush();
                work.run(stream).expect("our convolution");
            };
            difference(rounds, run, flush, || stream.synchronize().expect("synchronize"))
        });
    });
}

fn bench(c: &mut Criterion) {
    let device = device::device();
    let stream = device.stream().expect("stream");
    let rows = rows().expect("layers");
    let torch = Torch::new(matches!(device, Device::Cuda(_)), FLUSH_BYTES);
    let mut memory = Memory::new(&stream, &rows, device::dtype()).expect("memory");
    for row in &rows {
        let mut group = c.benchmark_group(row.id().trim_end_matches("/plain"));
        group.throughput(Throughput::ElementsAndBytes { elements: row.flops(), bytes: row.bytes });
        bench_ours(&mut group, &stream, &mut memory, row);
        for way in torch.ways(row) {
            group.bench_function(format!("torch_{}", way.name), |b| {
                b.iter_custom(|rounds| {
                    let run = || {
                        torch.flush();
                        (way.run)();
                    };
                    let rest = || {
                        torch.flush();
                        (way.rest)();
                    };
                    difference(rounds, run, rest, || torch.synchronize())
                });
            });
        }
        group.finish();
    }
}

criterion::criterion_group!(peer, bench);
criterion::criterion_main!(peer);
