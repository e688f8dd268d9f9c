//! Native CPU form. A head sees a handful of positions, so the weight's memory traffic is the cost: each of its rows is
//! read once, by one thread, for all positions.

use rayon::prelude::*;

use crate::device::{ActMut, ActRef};

/// Independent partial sums of a dot product, so that it can use vector registers.
const LANES: usize = 16;

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

pub(super) fn forward(x: ActRef, w: &[f32], bias: Option<&[f32]>, y: ActMut) {
    let (c_in, c_out) = (x.shape.c, y.shape.c);
    y.data.par_chunks_mut(y.pitch_c).enumerate().for_each(|(p, y_p)| {
        let x_p = position(x, p);
        for (co, (y, w_row)) in y_p[..c_out].iter_mut().zip(w.chunks(c_in)).enumerate() {
            *y = dot(x_p, w_row) + bias.map_or(0.0, |b| b[co]);
        }
    });
}

pub(super) fn grad_input(dy: ActRef, w: &[f32], dx: ActMut) {
    let c_in = dx.shape.c;
    dx.data.par_chunks_mut(dx.pitch_c).enumerate().for_each(|(p, dx_p)| {
        let dx_p = &mut dx_p[..c_in];
        dx_p.fill(0.0);
        position(dy, p).iter().zip(w.chunks(c_in)).for_each(|(&g, w_row)| add_scaled(dx_p, g, w_row));
    });
}

pub(super) fn grad_weight(x: ActRef, dy: ActRef, dw: &mut [f32]) {
    dw.par_chunks_mut(x.shape.c).enumerate().for_each(|(co, dw_row)| {
        dw_row.fill(0.0);
        for p in 0..x.shape.num_positions() {
            add_scaled(dw_row, dy.data[p * dy.pitch_c + co], position(x, p));
        }
    });
}

pub(super) fn grad_bias(dy: ActRef, db: &mut [f32]) {
    db.fill(0.0);
    for p in 0..dy.shape.num_positions() {
        add_scaled(db, 1.0, position(dy, p));
    }
}
