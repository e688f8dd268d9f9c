//! The meaning of an SGD step: slow, plain. For tests and benches only. `round` is applied to every intermediate result.

use super::{ParamRange, Sgd};

/// See [`super::step`].
pub fn step(
    op: &Sgd,
    round: fn(f64) -> f64,
    ranges: &[ParamRange],
    params: &mut [f64],
    grads: &[f64],
    momentum: &mut [f64],
) {
    let (mu, dampening, lr) = (f64::from(op.momentum), f64::from(op.dampening), f64::from(op.lr));
    for range in ranges {
        for i in range.start..range.start + range.len {
            let g = round(grads[i] + round(f64::from(range.weight_decay) * params[i]));
            let mut direction = g;
            if mu != 0.0 {
                let kept = round(round(mu * momentum[i]) + round(round(1.0 - dampening) * g));
                momentum[i] = if op.first_step { g } else { kept };
                direction = if op.nesterov { round(g + round(mu * momentum[i])) } else { momentum[i] };
            }
            params[i] = round(params[i] - round(lr * direction));
        }
    }
}

/// l2 norm of the gradients in the ranges, each times `factor`.
pub fn grad_norm(factor: f64, round: fn(f64) -> f64, ranges: &[ParamRange], grads: &[f64]) -> f64 {
    let mut sum = 0.0;
    for range in ranges {
        for g in &grads[range.start..range.start + range.len] {
            let unscaled = round(factor * g);
            sum = round(sum + round(unscaled * unscaled));
        }
    }
    round(sum.sqrt())
}
