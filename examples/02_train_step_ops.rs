//! A training step from single ops, on buffers of our own: batch norm, pooling, a linear layer, the loss, and SGD.
//!
//! Clips of four channels, one of which flickers more than the others; the label says which. Without a convolution, the ReLU
//! behind batch norm is what tells: its mean grows with the flicker.
//!
//! `cargo run --release --example 02_train_step_ops`

use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::metrics::Accuracy;
use vcycle::ops::batch_norm::{self, BatchNorm};
use vcycle::ops::pool3d::{self, Pool3d};
use vcycle::ops::sgd::{self, ParamRange, Sgd};
use vcycle::ops::{linear, softmax_loss};
use vcycle::shape::ActivationShape;

const CLIPS: usize = 32;
const CLASSES: usize = 4;
const STEPS: usize = 60;

fn main() -> vcycle::Result<()> {
    let device = Device::Cpu;
    let stream = device.stream()?;

    // 1. What is computed: descriptions hold sizes, not memory.
    let shape = ActivationShape::new(CLIPS, 4, 6, 6, CLASSES);
    let norm = BatchNorm { shape, splits: 4, eps: 1e-5, relu: true, part: None };
    let pool = Pool3d::global_average(shape);

    // 2. Parameters, gradients and momentum: three flat arrays with the same parts. Batch norm takes no weight decay.
    let sizes = [CLASSES, CLASSES, CLASSES * CLASSES, CLASSES]; // gamma, beta, weight, bias
    let len: usize = sizes.iter().sum();
    let flat = |values: &[f32]| Buffer::from_host(&device, values);
    let (params, grads, momentum) = (flat(&initial(len))?, flat(&vec![0.0; len])?, flat(&vec![0.0; len])?);
    let [gamma, beta, weight, bias] = parts(&params, sizes)?;
    let [grad_gamma, grad_beta, grad_weight, grad_bias] = parts(&grads, sizes)?;
    let ranges = [
        ParamRange { start: 0, len: 2 * CLASSES, weight_decay: 0.0 },
        ParamRange { start: 2 * CLASSES, len: len - 2 * CLASSES, weight_decay: 1e-4 },
    ];

    // 3. Activations. Gradients lie where the activations were, as far as the ops allow it.
    let zeroed = |shape| Tensor::zeroed(&device, DType::F32, shape);
    let (normalised, grad_normalised) = (zeroed(shape)?, zeroed(shape)?);
    let (pooled, grad_pooled) = (zeroed(pool.output())?, zeroed(pool.output())?);
    let logits = zeroed(pool.output())?; // then their gradient
    let stats = flat(&vec![0.0; norm.stats_len()])?;
    let workspace = flat(&vec![0.0; batch_norm::workspace_bytes(&stream, &norm) / 4])?;
    let losses = flat(&[0.0; CLIPS])?;

    // 4. Steps.
    let mut first_loss = None;
    for step in 0..STEPS {
        let (values, labels) = clips(step as u64, shape);
        let x = Tensor::from_host(&device, shape, &values)?;
        let on_device = Buffer::from_host(&device, &labels)?;

        batch_norm::forward_train(&stream, &norm, &x, &gamma, &beta, None, &normalised, &stats, &workspace)?;
        pool3d::forward(&stream, &pool, &normalised, &pooled, None)?;
        linear::forward(&stream, &pooled, &weight, Some(&bias), &logits)?;
        let mut accuracy = Accuracy::default();
        accuracy.add(&logits.read()?, CLASSES, &labels)?;
        softmax_loss::cross_entropy(&stream, &logits, &on_device, 1.0 / CLIPS as f32, &losses, &logits)?;

        linear::backward(&stream, &pooled, &weight, &logits, &grad_pooled, &grad_weight, Some(&grad_bias))?;
        pool3d::grad_input(&stream, &pool, &grad_pooled, None, &grad_normalised, false)?;
        batch_norm::backward(
            &stream,
            &norm,
            &x,
            &normalised,
            &grad_normalised,
            &gamma,
            &stats,
            &grad_normalised,
            None,
            &grad_gamma,
            &grad_beta,
            &workspace,
        )?;
        let op = Sgd { lr: 0.5, momentum: 0.9, dampening: 0.0, nesterov: true, first_step: step == 0 };
        sgd::step(&stream, &op, &ranges, &params, &grads, &momentum)?;

        let loss = losses.read::<f32>()?.iter().sum::<f32>() / CLIPS as f32;
        first_loss.get_or_insert(loss);
        if step % 10 == 9 {
            println!("step {:2}: loss {loss:.3}, top-1 {:.0} %", step + 1, accuracy.top1_percent());
        }
        if step + 1 == STEPS && Some(loss) >= first_loss.map(|first| first / 2.0) {
            return Err(vcycle::Error::Data(format!("the loss fell from {first_loss:?} to {loss} only")));
        }
    }
    Ok(())
}

/// Consecutive parts of a flat array.
fn parts<const N: usize>(flat: &Slice, sizes: [usize; N]) -> vcycle::Result<[Slice; N]> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(N);
    for size in sizes {
        parts.push(flat.part(start, size)?);
        start += size;
    }
    Ok(parts.try_into().expect("one part a size"))
}

/// gamma 1, beta 0, small weights, bias 0.
fn initial(len: usize) -> Vec<f32> {
    let weights = 2 * CLASSES..2 * CLASSES + CLASSES * CLASSES;
    let at = |i: usize| match i {
        i if i < CLASSES => 1.0,
        i if weights.contains(&i) => 0.1 * noise(u64::MAX, i as u64),
        _ => 0.0,
    };
    (0..len).map(at).collect()
}

/// A batch: noise in all channels, more of it in the channel that the label names.
fn clips(step: u64, shape: ActivationShape) -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..shape.n as u64).map(|i| ((noise(step, i) + 1.0) * 2.0) as u32).collect();
    let per_clip = shape.num_elements() / shape.n;
    let value = |i: usize| {
        let flickers = labels[i / per_clip] as usize == i % shape.c;
        noise(step, 1000 + i as u64) * if flickers { 2.0 } else { 1.0 }
    };
    ((0..shape.num_elements()).map(value).collect(), labels)
}

/// A number in [-1, 1) that depends on nothing but its arguments.
fn noise(stream: u64, i: u64) -> f32 {
    let mut z = stream.wrapping_mul(0xD1B5_4A32_D192_ED03) ^ i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}
