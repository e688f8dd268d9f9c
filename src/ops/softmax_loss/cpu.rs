//! Native CPU: a row at a time. The tensors are small (clips x classes), so one thread does it.

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

/// Softmax of every row; `logits` is `None` where they lie in `probabilities`.
pub(super) fn softmax(logits: Option<ActRef<'_>>, mut probabilities: ActMut<'_>) {
    for row in 0..probabilities.shape.num_positions() {
        let row = bring(logits, &mut probabilities, row);
        exponentials(row);
        let factor = (1.0 / sum(row)) as f32;
        row.iter_mut().for_each(|e| *e *= factor);
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
