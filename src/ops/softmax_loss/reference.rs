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

/// Loss of each row against the probabilities `targets`, and the gradient of their sum times `scale`.
pub fn soft_cross_entropy(
    round: fn(f64) -> f64,
    classes: usize,
    logits: &[f64],
    targets: &[f64],
    scale: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut grad = softmax(round, classes, logits);
    let mut losses = vec![];
    for ((row, targets), grad) in logits.chunks(classes).zip(targets.chunks(classes)).zip(grad.chunks_mut(classes)) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = row.iter().fold(0.0, |sum, x| round(sum + round(round(x - max).exp())));
        let term = |(x, t): (&f64, &f64)| round(t * round(round(sum.ln()) - round(x - max)));
        losses.push(row.iter().zip(targets).map(term).fold(0.0, |sum, term| round(sum + term)));
        let total = targets.iter().fold(0.0, |sum, t| round(sum + t));
        grad.iter_mut().zip(targets).for_each(|(g, t)| *g = round(round(round(*g * total) - t) * scale));
    }
    (losses, grad)
}

/// The targets of labels with smoothing.
pub fn smooth(round: fn(f64) -> f64, classes: usize, labels: &[u32], smoothing: f64) -> Vec<f64> {
    let (spread, on_label) = (round(smoothing / classes as f64), round(1.0 - smoothing));
    let of_class = |label: u32, c: usize| if label as usize == c { round(spread + on_label) } else { spread };
    labels.iter().flat_map(|&label| (0..classes).map(move |c| of_class(label, c))).collect()
}

/// 1 / (1 + e^-x) of each element.
pub fn sigmoid(round: fn(f64) -> f64, logits: &[f64]) -> Vec<f64> {
    logits.iter().map(|x| round(1.0 / round(1.0 + round((-x).exp())))).collect()
}

/// Mean binary cross-entropy of each row, and the gradient of their sum times `scale`.
pub fn binary_cross_entropy(
    round: fn(f64) -> f64,
    classes: usize,
    logits: &[f64],
    targets: &[f64],
    scale: f64,
) -> (Vec<f64>, Vec<f64>) {
    let term = |(x, t): (&f64, &f64)| round(round(x.max(0.0) - round(x * t)) + round(round((-x.abs()).exp()).ln_1p()));
    let rows = logits.chunks(classes).zip(targets.chunks(classes));
    let sums = rows.map(|(x, t)| x.iter().zip(t).map(term).fold(0.0, |sum, term| round(sum + term)));
    let losses = sums.map(|sum| round(sum / classes as f64)).collect();
    let factor = round(scale / classes as f64);
    let grad = sigmoid(round, logits).iter().zip(targets).map(|(p, t)| round(factor * round(p - t))).collect();
    (losses, grad)
}
