//! Native CPU: blocks of rows in parallel, each with all rows of the other kind, which stream past in blocks that stay in the
//! cache. What a row sums does not depend on the number of threads.

use std::ops::Range;

use super::{Instantiation, Sizes};
use crate::device::cpu::scratch;
use crate::device::{ActMut, ActRef};
use crate::ops::rows::{self, Blocks, StripMut};

/// Rows that a task keeps.
const RESIDENT: usize = 32;
/// Rows that stream past together.
const STREAMED: usize = 64;
/// Partial sums of a product of rows, so that it fills vector registers.
const LANES: usize = 16;
/// Streamed rows that are multiplied or added at once.
const TOGETHER: usize = 4;

/// Rows `first .. first + num` of an array.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    pitch: usize,
    depth: usize,
    num: usize,
}

impl<'a> Rows<'a> {
    fn new(all: ActRef<'a>, rows: Range<usize>) -> Rows<'a> {
        Rows { data: &all.data[rows.start * all.pitch_c..], pitch: all.pitch_c, depth: all.shape.c, num: rows.len() }
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.pitch..][..self.depth]
    }
}

/// Products of `a` with each of `b`.
#[inline(always)]
fn dots<const N: usize>(a: &[f32], b: [&[f32]; N]) -> [f32; N] {
    let whole = a.len() / LANES * LANES;
    let mut sums = [[0.0f32; LANES]; N];
    for at in (0..whole).step_by(LANES) {
        let a: &[f32; LANES] = a[at..at + LANES].try_into().expect("LANES elements");
        for (sums, b) in sums.iter_mut().zip(b) {
            let b: &[f32; LANES] = b[at..at + LANES].try_into().expect("LANES elements");
            for lane in 0..LANES {
                sums[lane] = a[lane].mul_add(b[lane], sums[lane]);
            }
        }
    }
    let mut products = [0.0; N];
    for ((product, sums), b) in products.iter_mut().zip(&sums).zip(b) {
        let tail: f32 = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum();
        *product = sums.iter().sum::<f32>() + tail;
    }
    products
}

/// `scores[i][j]`: product of rows i of `a` and j of `b`, which are at most STREAMED.
#[inline(always)]
fn multiply(a: Rows<'_>, b: Rows<'_>, scores: &mut [[f32; STREAMED]]) {
    for (i, scores) in scores[..a.num].iter_mut().enumerate() {
        let mut j = 0;
        while j + TOGETHER <= b.num {
            let products = dots::<TOGETHER>(a.row(i), std::array::from_fn(|k| b.row(j + k)));
            scores[j..j + TOGETHER].copy_from_slice(&products);
            j += TOGETHER;
        }
        for (j, score) in scores[..b.num].iter_mut().enumerate().skip(j) {
            [*score] = dots::<1>(a.row(i), [b.row(j)]);
        }
    }
}

/// `sums[i] += sum over j of scores[i][j] b[j]`.
#[inline(always)]
fn accumulate(scores: &[[f32; STREAMED]], b: Rows<'_>, sums: &mut [f32]) {
    for (scores, sums) in scores.iter().zip(sums.chunks_mut(b.depth)) {
        let mut j = 0;
        while j + TOGETHER <= b.num {
            let rows: [&[f32]; TOGETHER] = std::array::from_fn(|k| &b.row(j + k)[..sums.len()]);
            for (c, sum) in sums.iter_mut().enumerate() {
                for (k, row) in rows.iter().enumerate() {
                    *sum = scores[j + k].mul_add(row[c], *sum);
                }
            }
            j += TOGETHER;
        }
        for (j, score) in scores[..b.num].iter().enumerate().skip(j) {
            sums.iter_mut().zip(b.row(j)).for_each(|(sum, b)| *sum = score.mul_add(*b, *sum));
        }
    }
}

/// Ranges of at most `step` of `all`.
fn blocks(all: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = all.end;
    all.step_by(step).map(move |start| start..(start + step).min(end))
}

/// The rows of the clip of row `row` of another array.
fn same_clip(row: usize, rows_of_it: usize, rows: usize) -> Range<usize> {
    let clip = row / rows_of_it;
    clip * rows..(clip + 1) * rows
}

/// Writes `sums` times `factor(row)` to a task's rows.
fn write_rows(part: &mut [f32], pitch: usize, depth: usize, sums: &[f32], factor: impl Fn(usize) -> f32) {
    for (i, (to, sums)) in part.chunks_mut(pitch).zip(sums.chunks(depth)).enumerate() {
        let factor = factor(i);
        to[..depth].iter_mut().zip(sums).for_each(|(to, sum)| *to = sum * factor);
    }
}

/// See [`super::forward`].
pub(super) fn forward(
    kind: Instantiation,
    sizes: &Sizes,
    [query, key, value]: [ActRef<'_>; 3],
    output: ActMut<'_>,
    log2_sum: &mut [f32],
) {
    let (depth, pitch, scale) = (sizes.depth, output.pitch_c, kind.scale(sizes.keys, sizes.depth));
    let logs = (kind == Instantiation::Softmax).then_some(StripMut { data: log2_sum, pitch: 1 });
    let tasks = Blocks::of(sizes.clips * sizes.queries, sizes.queries, RESIDENT);
    rows::for_each(tasks, (StripMut::new(output), logs), |block, (part, logs)| {
        let queries = block.rows;
        let keys = same_clip(queries.start, sizes.queries, sizes.keys);
        let q = Rows::new(query, queries);
        let mut sums = scratch::filled(q.num * depth, 0.0);
        let mut row_sums = [(f32::NEG_INFINITY, 0.0f32); RESIDENT];
        rows::vectorized(
            #[inline(always)]
            || {
                let mut scores = [[0.0; STREAMED]; RESIDENT];
                for keys in blocks(keys, STREAMED) {
                    let num = keys.len();
                    multiply(q, Rows::new(key, keys.clone()), &mut scores);
                    for (i, scores) in scores[..q.num].iter_mut().enumerate() {
                        scores[..num].iter_mut().for_each(|s| *s *= scale);
                        if kind == Instantiation::Softmax {
                            let shrink = exponentials(&mut scores[..num], &mut row_sums[i]);
                            sums[i * depth..][..depth].iter_mut().for_each(|sum| *sum *= shrink);
                        }
                    }
                    accumulate(&scores[..q.num], Rows::new(value, keys), &mut sums);
                }
            },
        );
        let is_softmax = kind == Instantiation::Softmax;
        write_rows(part.data, pitch, depth, &sums, |i| if is_softmax { 1.0 / row_sums[i].1 } else { 1.0 });
        for (log, (largest, sum)) in logs.into_iter().flat_map(|logs| logs.data).zip(row_sums) {
            *log = largest.mul_add(std::f32::consts::LOG2_E, sum.log2());
        }
    });
}

/// Scores become exponentials relative to the largest so far, whose sum grows; returns what earlier ones are multiplied with.
#[inline(always)]
fn exponentials(scores: &mut [f32], (largest, sum): &mut (f32, f32)) -> f32 {
    let now = scores.iter().copied().fold(*largest, f32::max);
    let shrink = (*largest - now).exp();
    scores.iter_mut().for_each(|s| *s = (*s - now).exp());
    *sum = *sum * shrink + scores.iter().sum::<f32>();
    *largest = now;
    shrink
}

/// Probability of a scaled score.
#[inline(always)]
fn probability(score: f32, log2_sum: f32) -> f32 {
    score.mul_add(std::f32::consts::LOG2_E, -log2_sum).exp2()
}

/// Gradient of the queries; `delta` receives the products of gradient and output of each query (softmax).
pub(super) fn grad_query(
    kind: Instantiation,
    sizes: &Sizes,
    [query, key, value]: [ActRef<'_>; 3],
    [output, grad_output]: [ActRef<'_>; 2],
    log2_sum: &[f32],
    delta: &mut [f32],
    grad: ActMut<'_>,
) {
    let (depth, pitch, scale) = (sizes.depth, grad.pitch_c, kind.scale(sizes.keys, sizes.depth));
    let tasks = Blocks::of(sizes.clips * sizes.queries, sizes.queries, RESIDENT);
    let deltas = StripMut { data: delta, pitch: 1 };
    rows::for_each(tasks, (StripMut::new(grad), deltas), |block, (part, delta)| {
        let (queries, delta) = (block.rows, delta.data);
        let keys = same_clip(queries.start, sizes.queries, sizes.keys);
        let [q, y, dy] = [query, output, grad_output].map(|all| Rows::new(all, queries.clone()));
        let mut sums = scratch::filled(q.num * depth, 0.0);
        rows::vectorized(
            #[inline(always)]
            || {
                for (i, delta) in delta.iter_mut().enumerate() {
                    [*delta] = dots::<1>(dy.row(i), [y.row(i)]);
                }
                let (mut scores, mut ds) = ([[0.0; STREAMED]; RESIDENT], [[0.0; STREAMED]; RESIDENT]);
                for keys in blocks(keys, STREAMED) {
                    let k = Rows::new(key, keys.clone());
                    multiply(dy, Rows::new(value, keys), &mut ds);
                    if kind == Instantiation::Softmax {
                        multiply(q, k, &mut scores);
                        for (i, (scores, ds)) in scores[..q.num].iter().zip(&mut ds).enumerate() {
                            let log2_sum = log2_sum[queries.start + i];
                            for (ds, s) in ds[..k.num].iter_mut().zip(scores) {
                                *ds = probability(s * scale, log2_sum) * (*ds - delta[i]);
                            }
                        }
                    }
                    accumulate(&ds[..q.num], k, &mut sums);
                }
            },
        );
        write_rows(part.data, pitch, depth, &sums, |_| scale);
    });
}

/// Gradients of keys and values.
pub(super) fn grad_key(
    kind: Instantiation,
    sizes: &Sizes,
    [query, key, value]: [ActRef<'_>; 3],
    grad_output: ActRef<'_>,
    log2_sum: &[f32],
    delta: &[f32],
    grads: [ActMut<'_>; 2],
) {
    let (depth, scale) = (sizes.depth, kind.scale(sizes.keys, sizes.depth));
    let tasks = Blocks::of(sizes.clips * sizes.keys, sizes.keys, RESIDENT);
    let [of_keys, of_values] = grads.map(StripMut::new);
    rows::for_each(tasks, (of_keys, of_values), |block, (of_keys, of_values)| {
        let keys = block.rows;
        let queries = same_clip(keys.start, sizes.keys, sizes.queries);
        let [k, v] = [key, value].map(|all| Rows::new(all, keys.clone()));
        let (mut dk, mut dv) = (scratch::filled(k.num * depth, 0.0), scratch::filled(k.num * depth, 0.0));
        rows::vectorized(
            #[inline(always)]
            || {
                let (mut p, mut ds) = ([[0.0; STREAMED]; RESIDENT], [[0.0; STREAMED]; RESIDENT]);
                for queries in blocks(queries, STREAMED) {
                    let [q, dy] = [query, grad_output].map(|all| Rows::new(all, queries.clone()));
                    multiply(k, q, &mut p);
                    multiply(v, dy, &mut ds);
                    for (p, ds) in p[..k.num].iter_mut().zip(&mut ds) {
                        for (j, (p, ds)) in p[..q.num].iter_mut().zip(ds).enumerate() {
                            *p *= scale;
                            if kind == Instantiation::Softmax {
                                *p = probability(*p, log2_sum[queries.start + j]);
                                *ds = *p * (*ds - delta[queries.start + j]);
                            }
                        }
                    }
                    accumulate(&p[..k.num], dy, &mut dv);
                    accumulate(&ds[..k.num], q, &mut dk);
                }
            },
        );
        write_rows(of_keys.data, of_keys.pitch, depth, &dk, |_| scale);
        write_rows(of_values.data, of_values.pitch, depth, &dv, |_| 1.0);
    });
}
