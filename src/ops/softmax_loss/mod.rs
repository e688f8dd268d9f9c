//! Softmax cross-entropy and binary cross-entropy, each with its gradient in one launch; softmax and sigmoid alone for
//! evaluation.

mod cpu;
mod launch;
mod params;
pub mod reference;

use crate::device::{ActRef, DType, Device, Slice, Stream, Tensor, with_host};
use crate::error::{Error, Result};
use crate::ops::check;
use crate::shape::ActivationShape;

/// What the classes of a clip are compared with.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// One class a clip.
    Labels {
        /// u32, one a clip.
        labels: &'a Slice,
        /// Share of the probability that is spread over all classes: label smoothing. 0 for none.
        smoothing: f32,
    },
    /// f32 `[n][1][1][1][classes]`, a probability for every class (mixup), or for [`binary_cross_entropy`] independent ones.
    Soft(&'a Tensor),
}

/// What a loss can do besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// Four u32 that are added to: clips whose label has the largest logit, whose label is among the five largest, all
    /// clips, clips whose label is no class; by [`rank`]. With [`Targets::Soft`] the label is the class with the largest
    /// target.
    pub counters: Option<&'a Slice>,
    /// One f32 that multiplies the gradient besides `scale`: a loss scale that lies on the device.
    pub loss_scale: Option<&'a Slice>,
    /// One u32 in which [`SKIP_BIT`] is set where a clip's loss is not finite, so that the optimizer skips the step.
    pub skip: Option<&'a Slice>,
}

/// The bit of [`Extras::skip`]; the lowest belongs to batch norm.
pub const SKIP_BIT: u32 = 2;

const OP: &str = "softmax_loss";
const BINARY: &str = "binary cross-entropy";

/// Cross-entropy of `logits` `[n][1][1][1][classes]` against `labels` (u32). `loss` (f32, one a clip) is the loss of each
/// clip; `grad_logits` is the gradient of (sum of the losses) * `scale` (1 / batch for the mean), and may be the memory
/// of `logits`. Logits of any finite size are safe; a logit that is not finite makes its clip's loss NaN or infinite.
///
/// # Errors
/// Shapes that do not fit; on the CPU a label that is no class, by its index. Kernels make loss and gradient of such a clip NaN.
pub fn cross_entropy(
    stream: &Stream,
    logits: &Tensor,
    labels: &Slice,
    scale: f32,
    loss: &Slice,
    grad_logits: &Tensor,
) -> Result<()> {
    let targets = Targets::Labels { labels, smoothing: 0.0 };
    cross_entropy_with(stream, logits, &targets, scale, loss, grad_logits, &Extras::default())
}

/// [`cross_entropy`] with any targets. Logits and losses are f32; the gradient is f32, with kernels also bf16 or f16.
/// The loss of targets t is the sum of `-t ln softmax(logits)`.
///
/// # Errors
/// As [`cross_entropy`]; smoothing outside of [0, 1].
pub fn cross_entropy_with(
    stream: &Stream,
    logits: &Tensor,
    targets: &Targets<'_>,
    scale: f32,
    loss: &Slice,
    grad_logits: &Tensor,
    extras: &Extras<'_>,
) -> Result<()> {
    check_loss(OP, stream, logits, targets, loss, grad_logits, extras)?;
    let tensors = [logits, grad_logits];
    if *stream.device() != Device::Cpu {
        return launch::loss(stream, (OP, false), tensors, targets, scale, loss, extras);
    }
    let classes = logits.shape().c;
    on_host(tensors, targets, loss, extras, |logits, targets, out| {
        let scale = scale * out.loss_scale;
        match targets {
            HostTargets::Labels(labels, smoothing) => {
                let labels = check_labels(OP, labels, classes)?;
                if let Some(counters) = out.counters {
                    cpu::count(logits.unwrap_or(out.grad.as_ref()), labels, counters);
                }
                if smoothing == 0.0 {
                    cpu::cross_entropy(logits, labels, scale, out.loss, out.grad);
                } else {
                    let spread = smoothing / classes as f32;
                    let target =
                        |row: usize, c: usize| spread + if labels[row] as usize == c { 1.0 - smoothing } else { 0.0 };
                    cpu::soft_cross_entropy(logits, target, scale, out.loss, out.grad);
                }
            }
            HostTargets::Soft(targets) => {
                if let Some(counters) = out.counters {
                    cpu::count(logits.unwrap_or(out.grad.as_ref()), &cpu::largest(targets), counters);
                }
                let target = |row: usize, c: usize| targets.data[row * targets.pitch_c + c];
                cpu::soft_cross_entropy(logits, target, scale, out.loss, out.grad);
            }
        }
        Ok(())
    })
}

/// Cross-entropy of every class by itself, for clips with several labels: with p = sigmoid(logit) the loss of a clip is the mean
/// over its classes of `-t ln p - (1 - t) ln(1 - p)`. The rest is as in [`cross_entropy_with`]; there are no counters.
///
/// # Errors
/// Shapes that do not fit.
pub fn binary_cross_entropy(
    stream: &Stream,
    logits: &Tensor,
    targets: &Tensor,
    scale: f32,
    loss: &Slice,
    grad_logits: &Tensor,
    extras: &Extras<'_>,
) -> Result<()> {
    let targets = Targets::Soft(targets);
    check_loss(BINARY, stream, logits, &targets, loss, grad_logits, extras)?;
    if extras.counters.is_some() {
        return Err(Error::unsupported(BINARY, "clips with several labels have no top-k counters: pass none"));
    }
    let tensors = [logits, grad_logits];
    if *stream.device() != Device::Cpu {
        return launch::loss(stream, (BINARY, true), tensors, &targets, scale, loss, extras);
    }
    on_host(tensors, &targets, loss, extras, |logits, targets, out| {
        if let HostTargets::Soft(targets) = targets {
            cpu::binary_cross_entropy(logits, targets, scale * out.loss_scale, out.loss, out.grad);
        }
        Ok(())
    })
}

/// Softmax over channels at every position, f32. In place allowed.
pub fn softmax(stream: &Stream, logits: &Tensor, probabilities: &Tensor) -> Result<()> {
    of_each(stream, "softmax", cpu::softmax, logits, probabilities)
}

/// 1 / (1 + e^-x) of every element, f32: the probabilities of [`binary_cross_entropy`]. In place allowed.
pub fn sigmoid(stream: &Stream, logits: &Tensor, probabilities: &Tensor) -> Result<()> {
    of_each(stream, "sigmoid", cpu::sigmoid, logits, probabilities)
}

/// How many of a clip's logits are larger than that of class `label`. Of equal logits the lower class counts as the larger, a NaN
/// as larger than any number; `None` where the label's own logit is a NaN.
pub fn rank(logits: &[f32], label: usize) -> Option<usize> {
    let own = logits[label];
    let is_larger = |class: usize, logit: f32| logit > own || logit.is_nan() || (logit == own && class < label);
    let larger = || logits.iter().enumerate().filter(|&(class, &logit)| class != label && is_larger(class, logit));
    (!own.is_nan()).then(|| larger().count())
}

fn of_each(
    stream: &Stream,
    op: &'static str,
    on_cpu: fn(Option<ActRef<'_>>, crate::device::ActMut<'_>),
    logits: &Tensor,
    probabilities: &Tensor,
) -> Result<()> {
    check::tensor(op, "logits", logits, probabilities.shape())?;
    check::tensor(op, "probabilities", probabilities, logits.shape())?;
    if *stream.device() != Device::Cpu {
        return launch::probabilities(stream, op, logits, probabilities);
    }
    if check::same_memory(logits, probabilities) {
        return with_host([], [probabilities.memory()], |[], [y]| {
            on_cpu(None, probabilities.view_mut(y.into_mut()?));
            Ok(())
        });
    }
    with_host([logits.memory()], [probabilities.memory()], |[x], [y]| {
        on_cpu(Some(logits.view(x.get()?)), probabilities.view_mut(y.into_mut()?));
        Ok(())
    })
}

fn check_loss(
    op: &'static str,
    stream: &Stream,
    logits: &Tensor,
    targets: &Targets<'_>,
    loss: &Slice,
    grad: &Tensor,
    extras: &Extras<'_>,
) -> Result<()> {
    let shape = logits.shape();
    if shape != ActivationShape::new(shape.n, 1, 1, 1, shape.c) {
        return Err(Error::shape(op, format!("logits must be [n,1,1,1,classes], got {shape}")));
    }
    check::tensor(op, "logits", logits, shape)?;
    match *targets {
        Targets::Labels { labels, smoothing } => {
            check::slice(op, "labels", labels, shape.n, DType::U32)?;
            if !(0.0..=1.0).contains(&smoothing) {
                return Err(Error::shape(op, format!("smoothing must be in [0, 1], got {smoothing}")));
            }
        }
        Targets::Soft(targets) => check::tensor(op, "targets", targets, shape)?,
    }
    check::slice(op, "loss", loss, shape.n, DType::F32)?;
    check::tensor_of(op, "grad_logits", grad, shape, check::activation_dtype(op, stream, "grad_logits", grad)?)?;
    if let Some(counters) = extras.counters {
        check::slice(op, "counters", counters, 4, DType::U32)?;
    }
    if let Some(skip) = extras.skip {
        check::slice(op, "skip", skip, 1, DType::U32)?;
    }
    extras.loss_scale.map_or(Ok(()), |scale| check::slice(op, "loss_scale", scale, 1, DType::F32))
}

fn check_labels<'a>(op: &'static str, labels: &'a [u32], classes: usize) -> Result<&'a [u32]> {
    match labels.iter().position(|&label| label as usize >= classes) {
        None => Ok(labels),
        Some(i) => {
            Err(Error::shape(op, format!("labels[{i}] is {}, must be less than {classes} (classes)", labels[i])))
        }
    }
}

/// [`Targets`] on the host.
enum HostTargets<'a> {
    Labels(&'a [u32], f32),
    Soft(ActRef<'a>),
}

/// What a loss writes, on the host.
struct HostOutput<'a> {
    loss: &'a mut [f32],
    grad: crate::device::ActMut<'a>,
    counters: Option<&'a mut [u32]>,
    loss_scale: f32,
}

/// Runs `work` with everything on the host; the logits are `None` where they lie in the gradient's memory.
fn on_host(
    [logits, grad]: [&Tensor; 2],
    targets: &Targets<'_>,
    loss: &Slice,
    extras: &Extras<'_>,
    work: impl FnOnce(Option<ActRef<'_>>, HostTargets<'_>, HostOutput<'_>) -> Result<()>,
) -> Result<()> {
    let is_in_place = check::same_memory(logits, grad);
    let of_targets = match targets {
        Targets::Labels { labels, .. } => *labels,
        Targets::Soft(targets) => targets.memory(),
    };
    let no_read = loss.part(0, 0)?;
    let of_logits = if is_in_place { &no_read } else { logits.memory() };
    let reads = [of_targets, of_logits, extras.loss_scale.unwrap_or(&no_read)];
    let writes = [loss, grad.memory(), extras.counters.unwrap_or(&no_read), extras.skip.unwrap_or(&no_read)];
    with_host(reads, writes, |[of_targets, x, loss_scale], [loss, of_grad, counters, skip]| {
        let targets = match *targets {
            Targets::Labels { smoothing, .. } => HostTargets::Labels(of_targets.get()?, smoothing),
            Targets::Soft(targets) => HostTargets::Soft(targets.view(of_targets.get()?)),
        };
        let x = if is_in_place { None } else { Some(logits.view(x.get()?)) };
        let loss_scale = if extras.loss_scale.is_some() { loss_scale.get::<f32>()?[0] } else { 1.0 };
        let counters = if extras.counters.is_some() { Some(counters.into_mut()?) } else { None };
        let grad = grad.view_mut(of_grad.into_mut()?);
        let loss = loss.into_mut::<f32>()?;
        work(x, targets, HostOutput { loss: &mut *loss, grad, counters, loss_scale })?;
        if extras.skip.is_some() && loss.iter().any(|loss| !loss.is_finite()) {
            skip.into_mut::<u32>()?[0] |= SKIP_BIT;
        }
        Ok(())
    })
}
