//! Batch norm at layers of SlowFast-8x8-R50: whole (forward of training, backward) and, where kernels run, piece by piece.

use criterion::{Criterion, Throughput};
use vcycle::device::{Device, Slice, Stream, Tensor};
use vcycle::ops::batch_norm::{self, BatchNorm, GradTables, Mask, Tables};
use vcycle::shape::ActivationShape;

use crate::cases;
use crate::device::{activations, clips, device, f32s, label, time, workspace};

/// One layer in memory.
struct Layer {
    op: BatchNorm,
    tensors: [Tensor; 6],
    gamma: Slice,
    beta: Slice,
    dgamma: Slice,
    dbeta: Slice,
    stats: Slice,
    scale_shift: Slice,
    grad_table: Slice,
    workspace: Slice,
    has_residual: bool,
}

impl Layer {
    fn new(row: &toml::Table, stream: &Stream) -> Layer {
        let on = device();
        let shape = cases::shape(row, "input");
        let shape = ActivationShape { n: clips(shape.n), ..shape };
        let op = BatchNorm { shape, splits: 1, eps: 1e-5, relu: cases::flag(row, "relu"), part: None };
        let c = shape.c;
        Layer {
            op,
            tensors: [1, 2, 3, 4, 5, 6].map(|seed| activations(on, shape, seed)),
            gamma: f32s(on, &vec![1.0; c]),
            beta: f32s(on, &vec![0.0; c]),
            dgamma: f32s(on, &vec![0.0; c]),
            dbeta: f32s(on, &vec![0.0; c]),
            stats: f32s(on, &vec![0.0; op.stats_len()]),
            scale_shift: f32s(on, &vec![0.0; op.scale_shift_len()]),
            grad_table: f32s(on, &vec![0.0; op.grad_table_len()]),
            workspace: workspace(on, batch_norm::workspace_bytes(stream, &op)),
            has_residual: cases::flag(row, "residual"),
        }
    }

    fn forward(&self, stream: &Stream) {
        let [x, y, residual, ..] = &self.tensors;
        let joined = self.has_residual.then_some(residual);
        batch_norm::forward_train(
            stream,
            &self.op,
            x,
            &self.gamma,
            &self.beta,
            joined,
            y,
            &self.stats,
            &self.workspace,
        )
        .expect("forward_train");
    }

    fn backward(&self, stream: &Stream) {
        let [x, y, _, dy, dx, dr] = &self.tensors;
        let dr = self.has_residual.then_some((dr, false));
        let (op, stats) = (&self.op, &self.stats);
        let grads = (&self.dgamma, &self.dbeta);
        batch_norm::backward(stream, op, x, y, dy, &self.gamma, stats, dx, dr, grads.0, grads.1, &self.workspace)
            .expect("backward");
    }

    fn statistics(&self, stream: &Stream) {
        let to = Tables {
            gamma: &self.gamma,
            beta: &self.beta,
            stats: &self.stats,
            scale_shift: Some(&self.scale_shift),
            running: None,
            skip: None,
        };
        batch_norm::statistics(stream, &self.op, &self.tensors[0], &to, &self.workspace).expect("statistics");
    }

    fn apply(&self, stream: &Stream) {
        let [x, y, residual, ..] = &self.tensors;
        let second = self.has_residual.then_some((residual, None));
        batch_norm::apply(stream, &self.op, x, &self.scale_shift, second, y).expect("apply");
    }

    fn gradient_sums(&self, stream: &Stream) {
        let [x, y, _, dy, ..] = &self.tensors;
        let to = GradTables {
            gamma: &self.gamma,
            stats: &self.stats,
            grad_table: &self.grad_table,
            grad_gamma: &self.dgamma,
            grad_beta: &self.dbeta,
        };
        batch_norm::gradient_sums(stream, &self.op, x, dy, Mask::Output(y), &to, &self.workspace)
            .expect("gradient_sums");
    }

    fn gradient(&self, stream: &Stream) {
        let [x, y, _, dy, dx, dr] = &self.tensors;
        let dr = self.has_residual.then_some((dr, false));
        batch_norm::gradient(stream, &self.op, x, dy, Mask::Output(y), &self.grad_table, dx, dr).expect("gradient");
    }
}

/// What is timed: a name, tensors that must be read or written at least once without and with a residual, and the call.
type Bench = (&'static str, [usize; 2], fn(&Layer, &Stream));

static WHOLE: [Bench; 2] =
    [("batch_norm_forward", [2, 3], Layer::forward), ("batch_norm_backward", [4, 5], Layer::backward)];
static PIECES: [Bench; 4] = [
    ("batch_norm_statistics", [1, 1], Layer::statistics),
    ("batch_norm_apply", [2, 3], Layer::apply),
    ("batch_norm_gradient_sums", [3, 3], Layer::gradient_sums),
    ("batch_norm_gradient", [4, 5], Layer::gradient),
];

/// Runs them.
pub fn bench(c: &mut Criterion) {
    let stream = device().stream().expect("stream");
    let pieces = if *device() == Device::Cpu { &PIECES[..0] } else { &PIECES[..] };
    for row in cases::of("batch_norm") {
        let layer = Layer::new(&row, &stream);
        // Pieces of the backward pass need what forward leaves.
        layer.forward(&stream);
        let (name, n) = (cases::text(&row, "name"), layer.op.shape.n);
        for (group, tensors, call) in WHOLE.iter().chain(pieces) {
            let mut group = c.benchmark_group(*group);
            let bytes = tensors[usize::from(layer.has_residual)] * layer.tensors[0].memory().len_bytes();
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(format!("{name}/{}_n{n}", label()), |b| {
                b.iter_custom(|rounds| time(&stream, rounds, || call(&layer, &stream)));
            });
            group.finish();
        }
    }
}
