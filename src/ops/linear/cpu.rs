//! Native CPU form. Many positions: the kernels of a 1x1x1 convolution. A handful, as a head sees them: the weight's memory
//! traffic is the cost, so each of its rows is read once, as it lies.

use rayon::prelude::*;

use crate::device::cpu::Isa;
use crate::device::cpu::scratch::{self, Scratch};
use crate::device::{ActMut, ActRef};
use crate::ops::conv3d::{Conv3d, Direction, cpu as conv};
use crate::shape::{ActivationShape, Part};

/// Positions from which on packing the weight pays.
const MANY_POSITIONS: usize = 8;

/// Independent partial sums of a dot product, so that it can use vector registers.
const LANES: usize = 16;

/// Rows of the weight that one task reads.
const TASK_ROWS: usize = 32;

/// The layer as a convolution.
fn as_conv(part: Option<Part>, input: ActivationShape, c_out: usize) -> Conv3d {
    Conv3d { input, c_out, filter: [1; 3], stride: [1; 3], padding: [0; 3], dilation: [1; 3], groups: 1, part }
}

/// Of the whole batch.
fn is_many(part: Option<Part>, shape: ActivationShape) -> bool {
    let n = part.map_or(shape.n, |part| part.batch_clips);
    ActivationShape { n, ..shape }.num_positions() >= MANY_POSITIONS
}

fn goes_on(part: Option<Part>) -> bool {
    part.is_some_and(|part| part.accumulates())
}

fn scratch(isa: Isa, op: &Conv3d, direction: Direction) -> Scratch<f32> {
    scratch::take(conv::workspace_len(isa, op, direction))
}

fn position<'a>(x: ActRef<'a>, p: usize) -> &'a [f32] {
    &x.data[p * x.pitch_c..][..x.shape.c]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f32>() + tail
}

fn add_scaled(to: &mut [f32], a: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += a * f);
}

pub(super) fn forward(isa: Isa, part: Option<Part>, x: ActRef, w: &[f32], bias: Option<&[f32]>, y: ActMut) {
    let (c_in, c_out) = (x.shape.c, y.shape.c);
    if is_many(part, x.shape) {
        let op = as_conv(part, x.shape, c_out);
        return conv::forward(isa, &op, x, w, bias, y, &mut scratch(isa, &op, Direction::Forward));
    }
    for (p, y_p) in y.data.chunks_mut(y.pitch_c).enumerate() {
        let (x_p, tasks) = (position(x, p), y_p[..c_out].par_chunks_mut(TASK_ROWS).zip(w.par_chunks(TASK_ROWS * c_in)));
        tasks.enumerate().for_each(|(task, (y, w))| {
            for (i, (y, w_row)) in y.iter_mut().zip(w.chunks(c_in)).enumerate() {
                *y = dot(x_p, w_row) + bias.map_or(0.0, |b| b[task * TASK_ROWS + i]);
            }
        });
    }
}

pub(super) fn grad_input(isa: Isa, part: Option<Part>, dy: ActRef, w: &[f32], dx: ActMut) {
    let c_in = dx.shape.c;
    if is_many(part, dy.shape) {
        let op = as_conv(part, dx.shape, dy.shape.c);
        return conv::grad_input(isa, &op, dy, w, dx, false, &mut scratch(isa, &op, Direction::GradInput));
    }
    dx.data.par_chunks_mut(dx.pitch_c).enumerate().for_each(|(p, dx_p)| {
        let dx_p = &mut dx_p[..c_in];
        dx_p.fill(0.0);
        position(dy, p).iter().zip(w.chunks(c_in)).for_each(|(&g, w_row)| add_scaled(dx_p, g, w_row));
    });
}

pub(super) fn grad_weight(isa: Isa, part: Option<Part>, x: ActRef, dy: ActRef, dw: &mut [f32]) {
    if is_many(part, x.shape) {
        let op = as_conv(part, x.shape, dy.shape.c);
        return conv::grad_filter(isa, &op, x, dy, dw, &mut scratch(isa, &op, Direction::GradFilter));
    }
    dw.par_chunks_mut(x.shape.c).enumerate().for_each(|(co, dw_row)| {
        if !goes_on(part) {
            dw_row.fill(0.0);
        }
        for p in 0..x.shape.num_positions() {
            add_scaled(dw_row, dy.data[p * dy.pitch_c + co], position(x, p));
        }
    });
}

pub(super) fn grad_bias(part: Option<Part>, dy: ActRef, db: &mut [f32]) {
    if !goes_on(part) {
        db.fill(0.0);
    }
    for p in 0..dy.shape.num_positions() {
        add_scaled(db, 1.0, position(dy, p));
    }
}
