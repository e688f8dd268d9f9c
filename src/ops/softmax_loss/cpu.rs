//! Native CPU: a row at a time. The tensors are small (clips x classes), so one thread does it.

use crate::device::cpu::scratch::{self, Scratch};
use crate::device::{ActMut, ActRef};

/// Loss of each row against its label, and `scale * (softmax - one_hot)`; `logits` is `None` where they lie in `grad`.
pub(super) fn cross_entropy(
    logits: Option<ActRef<'_>>,
    labels: &[u32],
    scale: f32,
    loss: &mut [f32],
    mut grad: ActMut<'_>,
) {
    for (row, (&label, loss)) in labels.iter().zip(loss).enumerate() {
        let grad = bring(logits, &mut grad, row);
        let label = label as usize;
        let label_logit = grad[label];
        let below_max = label_logit - exponentials(grad);
        // The other classes apart: loss and gradient keep their digits where the label's probability is close to 1.
        let others = sum(&grad[..label]) + sum(&grad[label + 1..]);
        let all = f64::from(grad[label]) + others;
        *loss = if below_max == 0.0 { others.ln_1p() } else { all.ln() - f64::from(below_max) } as f32;
        let factor = (f64::from(scale) / all) as f32;
        grad.iter_mut().for_each(|e| *e *= factor);
        grad[label] = (-f64::from(scale) * others / all) as f32;
    }
}

/// Loss of each row against the probabilities `target(row, class)`, and its gradient.
pub(super) fn soft_cross_entropy(
    logits: Option<ActRef<'_>>,
    target: impl Fn(usize, usize) -> f32,
    scale: f32,
    loss: &mut [f32],
    mut grad: ActMut<'_>,
) {
    for (row, loss) in loss.iter_mut().enumerate() {
        let grad = bring(logits, &mut grad, row);
        let max = grad.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut weighted, mut total) = (0.0, 0.0);
        for (c, x) in grad.iter_mut().enumerate() {
            let (t, below) = (target(row, c), *x - max);
            // A class that nobody expects costs nothing, however unlikely it is.
            weighted += if t == 0.0 { 0.0 } else { f64::from(t) * f64::from(below) };
            total += f64::from(t);
            *x = below.exp();
        }
        let all = sum(grad);
        *loss = (total * all.ln() - weighted) as f32;
        let factor = total / all;
        for (c, e) in grad.iter_mut().enumerate() {
            *e = (f64::from(scale) * (factor * f64::from(*e) - f64::from(target(row, c)))) as f32;
        }
    }
}

/// Mean over the classes of each row's binary cross-entropies, and the gradient.
pub(super) fn binary_cross_entropy(
    logits: Option<ActRef<'_>>,
    targets: ActRef<'_>,
    scale: f32,
    loss: &mut [f32],
    mut grad: ActMut<'_>,
) {
    let classes = targets.shape.c;
    let scale = f64::from(scale) / classes as f64;
    for (row, loss) in loss.iter_mut().enumerate() {
        let grad = bring(logits, &mut grad, row);
        let mut sum = 0.0;
        for (x, &t) in grad.iter_mut().zip(&targets.data[row * targets.pitch_c..][..classes]) {
            let (of_x, t) = (f64::from(*x), f64::from(t));
            // Both probabilities, so that neither loses its digits next to 1.
            let e = (-of_x.abs()).exp();
            let (larger, smaller) = (1.0 / (1.0 + e), e / (1.0 + e));
            let (p, opposite) = if of_x >= 0.0 { (larger, smaller) } else { (smaller, larger) };
            sum += (if of_x <= 0.0 { 0.0 } else { of_x }) - of_x * t + e.ln_1p();
            *x = (scale * ((1.0 - t) * p - t * opposite)) as f32;
        }
        *loss = (sum / classes as f64) as f32;
    }
}

/// The first of the classes with the largest target, of each row.
pub(super) fn largest(targets: ActRef<'_>) -> Scratch<u32> {
    let of_row = |row: usize| {
        let row = &targets.data[row * targets.pitch_c..][..targets.shape.c];
        (0..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best }) as u32
    };
    let mut largest = scratch::take(targets.shape.n);
    largest.iter_mut().enumerate().for_each(|(row, to)| *to = of_row(row));
    largest
}

/// Adds to top 1, top 5 and the number of clips.
pub(super) fn count(logits: ActRef<'_>, labels: &[u32], counters: &mut [u32]) {
    for (row, &label) in labels.iter().enumerate() {
        let row = &logits.data[row * logits.pitch_c..][..logits.shape.c];
        let rank = super::rank(row, label as usize);
        counters[0] += u32::from(rank.is_some_and(|rank| rank < 1));
        counters[1] += u32::from(rank.is_some_and(|rank| rank < 5));
        counters[2] += 1;
    }
}

/// Softmax of every row; `logits` is `None` where they lie in `probabilities`.
pub(super) fn softmax(logits: Option<ActRef<'_>>, mut probabilities: ActMut<'_>) {
    for row in 0..probabilities.shape.num_positions() {
        let row = bring(logits, &mut probabilities, row);
        exponentials(row);
        let factor = (1.0 / sum(row)) as f32;
        row.iter_mut().for_each(|e| *e *= factor);
    }
}

/// Sigmoid of every element; `logits` is `None` where they lie in `probabilities`.
pub(super) fn sigmoid(logits: Option<ActRef<'_>>, mut probabilities: ActMut<'_>) {
    for row in 0..probabilities.shape.num_positions() {
        let row = bring(logits, &mut probabilities, row);
        row.iter_mut().for_each(|x| *x = (1.0 / (1.0 + (-f64::from(*x)).exp())) as f32);
    }
}

/// Row `row` of `output`, after it received the logits.
fn bring<'a>(logits: Option<ActRef<'_>>, output: &'a mut ActMut<'_>, row: usize) -> &'a mut [f32] {
    let c = output.shape.c;
    let to = &mut output.data[row * output.pitch_c..][..c];
    if let Some(x) = logits {
        to.copy_from_slice(&x.data[row * x.pitch_c..][..c]);
    }
    to
}

/// Replaces logits by `exp(logit - max)`, so that the largest becomes 1, and returns max.
fn exponentials(row: &mut [f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|e| *e = (*e - max).exp());
    max
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum()
}
