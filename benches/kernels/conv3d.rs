//! The convolutions of a training step, at layers of SlowFast-8x8-R50: on the CPU as they are, on kernels with what is fused to
//! them as well, on mma.sync and, where the device and the layer have them, on wgmma. GFLOP/s count two per multiply-add, padding
//! included; bytes count each operand once.

use criterion::{Criterion, Throughput};
use vcycle::device::cpu::Isa;
use vcycle::device::{Buffer, DType, Device, Slice, Stream, Tensor};
use vcycle::error::Error;
use vcycle::ops::conv3d::{
    self, Conv3d, Direction, Epilogue, GradEpilogue, GradNorm, GradTable, Mask, Method, Prologue, Statistics,
    with_method,
};
use vcycle::shape::ActivationShape;

use crate::cases::{self, slice, tensor};
use crate::device::{device, is_smoke, time};

/// The convolution of a row.
pub fn op_of(row: &toml::Table) -> Conv3d {
    let or = |key: &str, default: usize| match row.contains_key(key) {
        true => cases::sizes(row, key),
        false => [default; 3],
    };
    Conv3d {
        input: cases::shape(row, "input"),
        c_out: row["c_out"].as_integer().expect("c_out") as usize,
        filter: cases::sizes(row, "filter"),
        stride: or("stride", 1),
        padding: or("padding", 0),
        dilation: or("dilation", 1),
        groups: 1,
        part: None,
    }
}

pub fn bench(c: &mut Criterion) {
    match device() {
        Device::Cpu => bench_cpu(c),
        _ => bench_kernels(c),
    }
}

/// Clips of a bench on kernels: the batch of the default grid, one in the smoke run.
const CLIPS: usize = 8;

/// All that the calls of one layer take, on the device; bf16 where it is an activation or the filter.
struct Layer {
    op: Conv3d,
    x: Tensor,
    y: Tensor,
    w: Slice,
    dx: Tensor,
    dy: Tensor,
    scale_shift: Slice,
    table: Slice,
    gamma: [Slice; 2],
    stats: [Slice; 2],
    out: [Slice; 4],
    workspace: [Slice; 2],
}

impl Layer {
    fn new(stream: &Stream, op: Conv3d) -> Layer {
        let device = stream.device();
        let halves = |len: usize, seed: u64| -> Slice {
            let all: Vec<half::bf16> = cases::random(len, seed).into_iter().map(half::bf16::from_f32).collect();
            Buffer::from_host(device, &all).expect("buffer")
        };
        let tensor = |shape: ActivationShape, seed: u64| {
            Tensor::new(halves(shape.num_elements(), seed), shape, shape.c).expect("tensor")
        };
        let floats = |len: usize, seed: u64| Buffer::from_host(device, &cases::random(len, seed)).expect("buffer");
        let scratch = |direction| {
            let bytes = conv3d::workspace_bytes_fused(stream, &op, direction, 1);
            Buffer::zeroed(device, bytes).and_then(|b| b.slice_of(DType::U8, 0, bytes)).expect("workspace")
        };
        let (c_in, c_out) = (op.input.c, op.c_out);
        Layer {
            op,
            x: tensor(op.input, 1),
            y: tensor(op.output(), 2),
            w: halves(op.filter_len(), 3),
            dx: tensor(op.input, 4),
            dy: tensor(op.output(), 5),
            scale_shift: floats(2 * c_in, 6),
            table: floats(3 * c_out, 7),
            gamma: [floats(c_in, 8), floats(c_out, 9)],
            stats: [floats(3 * c_in, 10), floats(3 * c_out, 11)],
            out: [floats(3 * c_in, 12), floats(c_in, 13), floats(c_in, 14), floats(2 * c_out, 15)],
            workspace: [scratch(Direction::Forward), scratch(Direction::GradInput)],
        }
    }

    fn forward(&self, stream: &Stream, is_fused: bool) -> vcycle::Result<()> {
        let prologue = Prologue { scale_shift: &self.scale_shift, splits: 1, join: None };
        let statistics = Statistics {
            splits: 1,
            eps: 1e-5,
            gamma: &self.gamma[1],
            beta: &self.gamma[1],
            running: None,
            stats: &self.stats[1],
            scale_shift: &self.out[3],
            skip: None,
        };
        let (prologue, epilogue) = match is_fused {
            true => (Some(&prologue), Epilogue::Statistics(statistics)),
            false => (None, Epilogue::None),
        };
        conv3d::forward_fused(stream, &self.op, &self.x, prologue, &self.w, &epilogue, &self.y, &self.workspace[0])
    }

    /// `x` stands for what the ReLU and the batch norm before the layer saw.
    fn grad_input(&self, stream: &Stream, is_fused: bool) -> vcycle::Result<()> {
        let table = GradTable { table: &self.table, y: &self.y, splits: 1, store_dy: None };
        let norms = [GradNorm {
            y: &self.x,
            stats: &self.stats[0],
            gamma: &self.gamma[0],
            grad_table: &self.out[0],
            grad_gamma: &self.out[1],
            grad_beta: &self.out[2],
        }];
        let mask = Mask::Recomputed { scale_shift: &self.scale_shift, y: &self.x };
        let (table, epilogue) = match is_fused {
            true => (Some(&table), GradEpilogue { add: None, mask, splits: 1, norms: &norms }),
            false => (None, GradEpilogue::default()),
        };
        let workspace = &self.workspace[1];
        conv3d::grad_input_fused(stream, &self.op, &self.dy, table, &self.w, &epilogue, &self.dx, workspace)
    }
}

fn bench_kernels(c: &mut Criterion) {
    let stream = device().stream().expect("stream");
    for row in cases::of("conv3d") {
        let mut op = op_of(&row);
        // Clips have four stored channels.
        op.input.c = op.input.c.max(4);
        op.input.n = if is_smoke() { 1 } else { CLIPS };
        let is_first = cases::flag(&row, "is_first");
        for (method, name) in [(Method::Mma, "mma"), (Method::Wgmma { tile_n: None }, "wgmma")] {
            with_method(method, || bench_layer(c, &stream, cases::text(&row, "name"), name, op, is_first));
        }
    }
}

fn bench_layer(c: &mut Criterion, stream: &Stream, name: &str, method: &str, op: Conv3d, is_first: bool) {
    let layer = Layer::new(stream, op);
    let (i, o) = (op.input.num_elements(), op.output().num_elements());
    for (direction, is_fused) in [("forward", false), ("forward", true), ("grad_input", false), ("grad_input", true)] {
        if is_first && (direction == "grad_input" || is_fused) {
            continue;
        }
        let run = || match direction {
            "forward" => layer.forward(stream, is_fused),
            _ => layer.grad_input(stream, is_fused),
        };
        // Not every layer and device has wgmma.
        match run() {
            Err(Error::Unsupported { .. }) if method == "wgmma" => continue,
            outcome => outcome.expect(name),
        }
        let beside = match (direction, is_fused) {
            (_, false) => 0,
            ("forward", _) => 0,
            _ => i + o, // x for mask and sums; y of the table
        };
        let bytes = 2 * (i + o + beside + op.filter_len()) as u64;
        let mut group = c.benchmark_group(format!("conv3d_{direction}"));
        group.throughput(Throughput::ElementsAndBytes { elements: 2 * op.macs(), bytes });
        let form = if is_fused { "fused_bf16" } else { "bf16" };
        group.bench_function(format!("{name}/{method}_{form}_n{}", op.input.n), |b| {
            b.iter_custom(|rounds| time(stream, rounds, || run().expect(name)));
        });
        group.finish();
    }
}

fn bench_cpu(c: &mut Criterion) {
    let stream = Device::Cpu.stream().expect("stream");
    let isa = Isa::chosen().expect("isa").name();
    for row in cases::of("conv3d") {
        let op = op_of(&row);
        let [x, dx] = [1, 2].map(|seed| tensor(op.input, seed));
        let [y, dy] = [3, 4].map(|seed| tensor(op.output(), seed));
        let [w, dw] = [5, 6].map(|seed| slice(&cases::random(op.filter_len(), seed)));
        let bytes = 4 * (op.input.num_elements() + op.output().num_elements() + op.filter_len()) as u64;
        for direction in [Direction::Forward, Direction::GradInput, Direction::GradFilter] {
            if direction == Direction::GradInput && cases::flag(&row, "is_first") {
                continue;
            }
            let workspace = slice(&vec![0f32; conv3d::workspace_bytes(&stream, &op, direction) / 4]);
            let name = ["conv3d_forward", "conv3d_grad_input", "conv3d_grad_filter"][direction as usize];
            let mut group = c.benchmark_group(name);
            group.throughput(Throughput::ElementsAndBytes { elements: 2 * op.macs(), bytes });
            group.bench_function(format!("{}/{isa}", cases::text(&row, "name")), |b| {
                b.iter(|| {
                    match direction {
                        Direction::Forward => conv3d::forward(&stream, &op, &x, &w, None, &y, &workspace),
                        Direction::GradInput => conv3d::grad_input(&stream, &op, &dy, &w, &dx, false, &workspace),
                        Direction::GradFilter => conv3d::grad_filter(&stream, &op, &x, &dy, &dw, None, &workspace),
                    }
                    .expect("conv3d")
                });
            });
            group.finish();
        }
    }
}
