//! Native CPU form: plain loops over positions and taps, the innermost over contiguous channels.

use rayon::prelude::*;

use super::{Conv3d, Direction};
use crate::device::{ActMut, ActRef};

/// f32 elements of scratch memory.
pub(super) fn workspace_len(op: &Conv3d, direction: Direction) -> usize {
    match direction {
        Direction::Forward => op.filter_len(),
        Direction::GradInput | Direction::GradFilter => 0,
    }
}

/// Input coordinate of `tap` at output coordinate `out`, if it is inside the input.
fn input_at(op: &Conv3d, axis: usize, out: usize, tap: usize) -> Option<usize> {
    let size = [op.input.t, op.input.h, op.input.w][axis];
    (out * op.stride[axis] + tap * op.dilation[axis]).checked_sub(op.padding[axis]).filter(|&at| at < size)
}

/// Output coordinate whose `tap` reads input coordinate `at`, if there is one.
fn output_at(op: &Conv3d, axis: usize, at: usize, tap: usize) -> Option<usize> {
    let o = op.output();
    let first = (at + op.padding[axis]).checked_sub(tap * op.dilation[axis])?;
    let out = first / op.stride[axis];
    (first % op.stride[axis] == 0 && out < [o.t, o.h, o.w][axis]).then_some(out)
}

fn taps(op: &Conv3d) -> impl Iterator<Item = (usize, [usize; 3])> {
    let [ft, fh, fw] = op.filter;
    (0..ft * fh * fw).map(move |tap| (tap, [tap / (fh * fw), tap / fw % fh, tap % fw]))
}

pub(super) fn forward(op: &Conv3d, x: ActRef, w: &[f32], bias: Option<&[f32]>, y: ActMut, scratch: &mut [f32]) {
    let (g_in, g_out, num_taps) = (op.input.c / op.groups, op.c_out / op.groups, op.filter.iter().product::<usize>());
    // [group][tap][c_in][c_out]: the output channels of one input channel are contiguous.
    let packed = &mut scratch[..op.filter_len()];
    packed.par_chunks_mut(g_out).enumerate().for_each(|(row, to)| {
        let (group, tap_ci) = (row / (num_taps * g_in), row % (num_taps * g_in));
        to.iter_mut().enumerate().for_each(|(co, v)| *v = w[(group * g_out + co) * num_taps * g_in + tap_ci]);
    });
    let (i, o, packed) = (op.input, y.shape, &*packed);
    y.data.par_chunks_mut(y.pitch_c * o.w).enumerate().for_each(|(row, y_row)| {
        let (n, to, ho) = (row / (o.t * o.h), row / o.h % o.t, row % o.h);
        for (wo, y_all) in y_row.chunks_mut(y.pitch_c).enumerate() {
            let y_all = &mut y_all[..o.c];
            match bias {
                Some(bias) => y_all.copy_from_slice(bias),
                None => y_all.fill(0.0),
            }
            for (tap, [kt, kh, kw]) in taps(op) {
                let at = (input_at(op, 0, to, kt), input_at(op, 1, ho, kh), input_at(op, 2, wo, kw));
                let (Some(ti), Some(hi), Some(wi)) = at else { continue };
                let x_all = &x.data[(((n * i.t + ti) * i.h + hi) * i.w + wi) * x.pitch_c..][..i.c];
                for (group, (x_g, y_g)) in x_all.chunks(g_in).zip(y_all.chunks_mut(g_out)).enumerate() {
                    let rows = packed[(group * num_taps + tap) * g_in * g_out..][..g_in * g_out].chunks(g_out);
                    x_g.iter().zip(rows).for_each(|(&a, row)| add_scaled(y_g, a, row));
                }
            }
        }
    });
}

pub(super) fn grad_input(op: &Conv3d, dy: ActRef, w: &[f32], dx: ActMut, accumulate: bool, _scratch: &mut [f32]) {
    let (g_in, g_out, num_taps) = (op.input.c / op.groups, op.c_out / op.groups, op.filter.iter().product::<usize>());
    let (i, o) = (op.input, dy.shape);
    dx.data.par_chunks_mut(dx.pitch_c * i.w).enumerate().for_each(|(row, dx_row)| {
        let (n, ti, hi) = (row / (i.t * i.h), row / i.h % i.t, row % i.h);
        for (wi, dx_all) in dx_row.chunks_mut(dx.pitch_c).enumerate() {
            let dx_all = &mut dx_all[..i.c];
            if !accumulate {
                dx_all.fill(0.0);
            }
            for (tap, [kt, kh, kw]) in taps(op) {
                let at = (output_at(op, 0, ti, kt), output_at(op, 1, hi, kh), output_at(op, 2, wi, kw));
                let (Some(to), Some(ho), Some(wo)) = at else { continue };
                let dy_all = &dy.data[(((n * o.t + to) * o.h + ho) * o.w + wo) * dy.pitch_c..][..o.c];
                for (co, &a) in dy_all.iter().enumerate() {
                    let dx_g = &mut dx_all[co / g_out * g_in..][..g_in];
                    add_scaled(dx_g, a, &w[(co * num_taps + tap) * g_in..][..g_in]);
                }
            }
        }
    });
}

pub(super) fn grad_filter(op: &Conv3d, x: ActRef, dy: ActRef, dw: &mut [f32], _scratch: &mut [f32]) {
    let (g_in, g_out, num_taps) = (op.input.c / op.groups, op.c_out / op.groups, op.filter.iter().product::<usize>());
    let (i, o) = (op.input, dy.shape);
    dw.par_chunks_mut(num_taps * g_in).enumerate().for_each(|(co, dw_co)| {
        dw_co.fill(0.0);
        let c_first = co / g_out * g_in;
        for p in 0..o.num_positions() {
            let (n, to, ho, wo) = (p / (o.t * o.h * o.w), p / (o.h * o.w) % o.t, p / o.w % o.h, p % o.w);
            let a = dy.data[p * dy.pitch_c + co];
            for (tap, [kt, kh, kw]) in taps(op) {
                let at = (input_at(op, 0, to, kt), input_at(op, 1, ho, kh), input_at(op, 2, wo, kw));
                let (Some(ti), Some(hi), Some(wi)) = at else { continue };
                let first = (((n * i.t + ti) * i.h + hi) * i.w + wi) * x.pitch_c + c_first;
                add_scaled(&mut dw_co[tap * g_in..][..g_in], a, &x.data[first..][..g_in]);
            }
        }
    });
}

/// Sum over all positions.
pub(super) fn grad_bias(dy: ActRef, db: &mut [f32]) {
    db.fill(0.0);
    for position in dy.data.chunks(dy.pitch_c) {
        db.iter_mut().zip(position).for_each(|(b, v)| *b += v);
    }
}

fn add_scaled(to: &mut [f32], a: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += a * f);
}
