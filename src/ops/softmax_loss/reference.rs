//! The meaning of softmax and cross-entropy: slow, plain, dense `[n][classes]` arrays. For tests and benches only.
//! `round` is applied to every intermediate result.

/// Softmax of each row.
pub fn softmax(round: fn(f64) -> f64, classes: usize, logits: &[f64]) -> Vec<f64> {
    let of_row = |row: &[f64]| -> Vec<f64> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = row.iter().map(|x| round(round(x - max).exp())).collect();
        let sum = e.iter().fold(0.0, |sum, e| round(sum + e));
        e.into_iter().map(|e| round(e / sum)).collect()
    };
    logits.chunks(classes).flat_map(of_row).collect()
}

/// Loss of each row and the gradient of their sum times `scale`.
pub fn cross_entropy(
    round: fn(f64) -> f64,
    classes: usize,
    logits: &[f64],
    labels: &[u32],
    scale: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut grad = softmax(round, classes, logits);
    let mut losses = Vec::with_capacity(labels.len());
    for ((row, &label), grad) in logits.chunks(classes).zip(labels).zip(grad.chunks_mut(classes)) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = row.iter().fold(0.0, |sum, x| round(sum + round(round(x - max).exp())));
        losses.push(round(round(sum.ln()) - round(row[label as usize] - max)));
        grad[label as usize] = round(grad[label as usize] - 1.0);
        grad.iter_mut().for_each(|g| *g = round(*g * scale));
    }
    (losses, grad)
}
