//! Softmax cross-entropy with its gradient, and softmax alone for evaluation.

mod cpu;
pub mod reference;

use crate::device::{DType, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;
use crate::shape::ActivationShape;

/// Cross-entropy of `logits` `[n][1][1][1][classes]` against `labels` (u32). `loss` (f32, one a clip) is the loss of each
/// clip; `grad_logits` is the gradient of (sum of the losses) * `scale` (1 / batch for the mean), and may be the memory
/// of `logits`. Logits of any finite size are safe; a logit that is not finite makes its clip's loss NaN or infinite.
///
/// # Errors
/// Shapes that do not fit; a label that is no class, by its index.
pub fn cross_entropy(
    stream: &Stream,
    logits: &Tensor,
    labels: &Slice,
    scale: f32,
    loss: &Slice,
    grad_logits: &Tensor,
) -> Result<()> {
    const OP: &str = "softmax_loss";
    let shape = logits.shape();
    if shape != ActivationShape::new(shape.n, 1, 1, 1, shape.c) {
        return Err(Error::shape(OP, format!("logits must be [n,1,1,1,classes], got {shape}")));
    }
    check::tensor(OP, "logits", logits, shape)?;
    check::slice(OP, "labels", labels, shape.n, DType::U32)?;
    check::slice(OP, "loss", loss, shape.n, DType::F32)?;
    check::tensor(OP, "grad_logits", grad_logits, shape)?;
    check::on_cpu(OP, stream)?;
    if check::same_memory(logits, grad_logits) {
        return with_host([labels], [loss, grad_logits.memory()], |[labels], [loss, grad]| {
            let labels = check_labels(OP, labels.get()?, shape.c)?;
            cpu::cross_entropy(None, labels, scale, loss.into_mut()?, grad_logits.view_mut(grad.into_mut()?));
            Ok(())
        });
    }
    with_host([logits.memory(), labels], [loss, grad_logits.memory()], |[x, labels], [loss, grad]| {
        let labels = check_labels(OP, labels.get()?, shape.c)?;
        let x = Some(logits.view(x.get()?));
        cpu::cross_entropy(x, labels, scale, loss.into_mut()?, grad_logits.view_mut(grad.into_mut()?));
        Ok(())
    })
}

fn check_labels<'a>(op: &'static str, labels: &'a [u32], classes: usize) -> Result<&'a [u32]> {
    match labels.iter().position(|&label| label as usize >= classes) {
        None => Ok(labels),
        Some(i) => {
            Err(Error::shape(op, format!("labels[{i}] is {}, must be less than {classes} (classes)", labels[i])))
        }
    }
}

/// Softmax over channels at every position. In place allowed.
pub fn softmax(stream: &Stream, logits: &Tensor, probabilities: &Tensor) -> Result<()> {
    const OP: &str = "softmax";
    check::tensor(OP, "logits", logits, probabilities.shape())?;
    check::tensor(OP, "probabilities", probabilities, logits.shape())?;
    check::on_cpu(OP, stream)?;
    if check::same_memory(logits, probabilities) {
        return with_host([], [probabilities.memory()], |[], [y]| {
            cpu::softmax(None, probabilities.view_mut(y.into_mut()?));
            Ok(())
        });
    }
    with_host([logits.memory()], [probabilities.memory()], |[x], [y]| {
        cpu::softmax(Some(logits.view(x.get()?)), probabilities.view_mut(y.into_mut()?));
        Ok(())
    })
}
