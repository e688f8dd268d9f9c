//! libtorch's side: each way to do a row's convolution.

use tch::{Kind, Tensor};
use vcycle::ops::conv3d::Direction;

use crate::list::Row;

/// One way: what is timed, and what is part of it only because libtorch's C interface asks for it, to be taken off.
pub struct Way {
    pub name: &'static str,
    pub run: Box<dyn Fn()>,
    pub rest: Box<dyn Fn()>,
}

pub struct Torch {
    device: tch::Device,
    kind: Kind,
    flush: Option<Tensor>,
}

/// Sizes as libtorch takes them.
struct Sizes {
    stride: Vec<i64>,
    padding: Vec<i64>,
    dilation: Vec<i64>,
    groups: i64,
}

fn to_i64(sizes: &[usize]) -> Vec<i64> {
    sizes.iter().map(|&size| size as i64).collect()
}

impl Torch {
    /// On the GPU in bf16, or on the CPU in f32.
    pub fn new(is_cuda: bool, flush_bytes: usize) -> Torch {
        if !is_cuda {
            return Torch { device: tch::Device::Cpu, kind: Kind::Float, flush: None };
        }
        assert!(tch::Cuda::is_available(), "vcycle runs on a GPU, libtorch sees none: was it built with CUDA?");
        tch::Cuda::cudnn_set_benchmark(true);
        let device = tch::Device::Cuda(0);
        let flush = Tensor::zeros([flush_bytes as i64 / 4], (Kind::Float, device));
        Torch { device, kind: Kind::BFloat16, flush: Some(flush) }
    }

    pub fn flush(&self) {
        if let Some(memory) = &self.flush {
            let _ = memory.shallow_clone().fill_(0.5);
        }
    }

    pub fn synchronize(&self) {
        if self.flush.is_some() {
            tch::Cuda::synchronize(0);
        }
    }

    /// Random, channels innermost: `[n][t][h][w][c]` in memory, `[n, c, t, h, w]` as libtorch names it.
    fn channels_last(&self, sizes: &[i64]) -> Tensor {
        let [n, c, t, h, w] = sizes else { panic!("five sizes, got {sizes:?}") };
        Tensor::randn([*n, *t, *h, *w, *c], (self.kind, self.device)).permute([0, 4, 1, 2, 3])
    }

    /// conv3d in both layouts, conv2d over n*t where a filter is 1 in time, a matrix product where it is 1 everywhere.
    pub fn ways(&self, row: &Row) -> Vec<Way> {
        let op = &row.op;
        let (i, o) = (op.input, op.output());
        let x = self.channels_last(&to_i64(&[i.n, row.c_in, i.t, i.h, i.w]));
        let dy = self.channels_last(&to_i64(&[o.n, o.c, o.t, o.h, o.w]));
        let w =
            self.channels_last(&to_i64(&[op.c_out, row.c_in / op.groups, op.filter[0], op.filter[1], op.filter[2]]));
        let sizes = |axes: std::ops::Range<usize>| Sizes {
            stride: to_i64(&op.stride[axes.clone()]),
            padding: to_i64(&op.padding[axes.clone()]),
            dilation: to_i64(&op.dilation[axes]),
            groups: op.groups as i64,
        };
        let contiguous = [&x, &w, &dy].map(Tensor::contiguous);
        let mut ways = vec![
            way(
                "conv3d_channels_last",
                [x.shallow_clone(), w.shallow_clone(), dy.shallow_clone()],
                sizes(0..3),
                row.direction,
            ),
            way("conv3d_contiguous", contiguous, sizes(0..3), row.direction),
        ];
        if (op.filter[0], op.stride[0], op.padding[0]) == (1, 1, 0) {
            let fold = |t: &Tensor| t.permute([0, 2, 3, 4, 1]).flatten(0, 1).permute([0, 3, 1, 2]);
            ways.push(way("conv2d_channels_last", [fold(&x), w.select(2, 0), fold(&dy)], sizes(1..3), row.direction));
            if (op.filter, op.stride, op.padding, op.groups) == ([1; 3], [1; 3], [0; 3], 1) {
                let fold = |t: &Tensor| t.permute([0, 2, 3, 4, 1]).flatten(0, 3);
                ways.push(product(fold(&x), w.flatten(1, 4), fold(&dy), row.direction));
            }
        }
        ways
    }
}

fn convolve(x: &Tensor, w: &Tensor, s: &Sizes) -> Tensor {
    match s.stride.len() {
        2 => x.conv2d(w, None::<Tensor>, &s.stride[..], &s.padding[..], &s.dilation[..], s.groups),
        _ => x.conv3d(w, None::<Tensor>, &s.stride[..], &s.padding[..], &s.dilation[..], s.groups),
    }
}

/// A convolution of libtorch's. Its transposed form is the gradient of the input.
fn way(name: &'static str, [x, w, dy]: [Tensor; 3], s: Sizes, direction: Direction) -> Way {
    let nothing: Box<dyn Fn()> = Box::new(|| ());
    match direction {
        Direction::Forward => Way { name, run: Box::new(move || drop(convolve(&x, &w, &s))), rest: nothing },
        Direction::GradInput => {
            let reach = |a: usize| {
                (dy.size()[a + 2] - 1) * s.stride[a] - 2 * s.padding[a] + s.dilation[a] * (w.size()[a + 2] - 1) + 1
            };
            let cut: Vec<i64> = (0..s.stride.len()).map(|a| x.size()[a + 2] - reach(a)).collect();
            let run = move || {
                let (stride, padding, dilation) = (&s.stride[..], &s.padding[..], &s.dilation[..]);
                drop(match stride.len() {
                    2 => dy.conv_transpose2d(&w, None::<Tensor>, stride, padding, &cut[..], s.groups, dilation),
                    _ => dy.conv_transpose3d(&w, None::<Tensor>, stride, padding, &cut[..], s.groups, dilation),
                });
            };
            Way { name, run: Box::new(run), rest: nothing }
        }
        Direction::GradFilter => grad_filter(name, x, w, dy, &s),
    }
}

/// The C interface has no gradient of a filter by itself: it is taken from the gradient of the product of the output and `dy`,
/// less the time of that product's own gradient.
fn grad_filter(name: &'static str, x: Tensor, w: Tensor, dy: Tensor, s: &Sizes) -> Way {
    let product = |y: &Tensor| (y * &dy).sum(y.kind());
    let w = w.detach().set_requires_grad(true);
    let loss = product(&convolve(&x, &w, s));
    let y = convolve(&x, &w, s).detach().set_requires_grad(true);
    let loss_of_y = product(&y);
    Way {
        name,
        run: Box::new(move || drop(Tensor::run_backward(&[&loss], &[&w], true, false))),
        rest: Box::new(move || drop(Tensor::run_backward(&[&loss_of_y], &[&y], true, false))),
    }
}

/// A filter of one tap: a matrix product of `[positions][c]`.
fn product(x: Tensor, w: Tensor, dy: Tensor, direction: Direction) -> Way {
    let run: Box<dyn Fn()> = match direction {
        Direction::Forward => Box::new(move || drop(x.matmul(&w.tr()))),
        Direction::GradInput => Box::new(move || drop(dy.matmul(&w))),
        Direction::GradFilter => Box::new(move || drop(dy.tr().matmul(&x))),
    };
    Way { name: "matmul", run, rest: Box::new(|| ()) }
}
