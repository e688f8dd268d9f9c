//! The meaning of dropout: slow, plain, a dense array of clips. For tests and benches only.

use super::Dropout;

/// `x` scaled where it is kept, zero elsewhere; `features` elements a clip.
pub fn apply(op: &Dropout, features: usize, x: &[f64]) -> Vec<f64> {
    let keeps = |i: usize| op.keeps(op.first_clip + i / features, i % features);
    x.iter().enumerate().map(|(i, x)| if keeps(i) { x * f64::from(op.scale()) } else { 0.0 }).collect()
}
