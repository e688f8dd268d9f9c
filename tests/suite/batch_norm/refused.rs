//! Arguments that do not fit are refused with a message that says which.

use vcycle::device::{Buffer, DType, Device, Slice, Tensor};
use vcycle::ops::batch_norm::{self, BatchNorm, fold_split_statistics};
use vcycle::shape::ActivationShape;

use crate::compare::{Place, slice};

const SHAPE: ActivationShape = ActivationShape::new(2, 1, 2, 2, 4);

fn op() -> BatchNorm {
    BatchNorm { shape: SHAPE, splits: 1, eps: 1e-5, relu: true, part: None }
}

struct Arguments {
    op: BatchNorm,
    x: Tensor,
    gamma: Slice,
    y: Tensor,
    stats: Slice,
    workspace: Slice,
}

fn good() -> Arguments {
    let stream = Device::Cpu.stream().unwrap();
    Arguments {
        op: op(),
        x: Place::DENSE.tensor(SHAPE, &[1.0; 32]),
        gamma: slice(&[1f32; 4]),
        y: Place::DENSE.garbage(SHAPE),
        stats: slice(&vec![0f32; op().stats_len()]),
        workspace: slice(&vec![0f32; batch_norm::workspace_bytes(&stream, &op()) / 4]),
    }
}

fn forward(change: impl FnOnce(&mut Arguments)) -> String {
    let mut a = good();
    change(&mut a);
    let (stream, beta) = (Device::Cpu.stream().unwrap(), slice(&[0f32; 4]));
    match batch_norm::forward_train(&stream, &a.op, &a.x, &a.gamma, &beta, None, &a.y, &a.stats, &a.workspace) {
        Ok(()) => "accepted".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn each_argument_is_checked() {
    const OP: &str = "batch_norm forward_train";
    assert_eq!(forward(|_| ()), "accepted");
    assert_eq!(forward(|a| a.op.splits = 0), format!("{OP}: splits must be at least 1, got 0"));
    assert_eq!(forward(|a| a.op.eps = -1.0), format!("{OP}: eps must not be negative, got -1"));
    let wide = ActivationShape { w: 3, ..SHAPE };
    assert_eq!(
        forward(|a| a.x = Place::DENSE.garbage(wide)),
        format!("{OP}: input must be [2,1,2,2,4], got [2,1,2,3,4]")
    );
    assert_eq!(forward(|a| a.gamma = slice(&[1f32; 3])), format!("{OP}: gamma must have 4 elements, got 3"));
    assert_eq!(forward(|a| a.gamma = slice(&[1u32; 4])), format!("{OP}: gamma must hold F32, got U32"));
    assert_eq!(forward(|a| a.stats = slice(&[1f32; 8])), format!("{OP}: stats must have 12 elements, got 8"));
    let one = slice(&[0f32; 1]);
    assert_eq!(forward(|a| a.workspace = one), format!("{OP}: workspace must have at least 32 bytes, got 4"));
    assert_eq!(
        forward(|a| a.y = Tensor::zeroed(&Device::Cpu, DType::Bf16, SHAPE).unwrap()),
        format!("{OP}: output must hold F32, got Bf16")
    );
    assert_eq!(
        forward(|a| {
            a.op.shape = ActivationShape::new(2, 1, 1, 1, 16);
            a.op.splits = 2;
            a.x = Place::DENSE.garbage(a.op.shape);
            a.y = a.x.clone();
            a.gamma = slice(&[1f32; 16]);
        }),
        format!("{OP}: beta must have 16 elements, got 4")
    );
}

#[test]
fn a_split_of_one_value_has_no_variance() {
    let shape = ActivationShape::new(3, 1, 1, 1, 4);
    let op = BatchNorm { shape, splits: 2, eps: 1e-5, relu: false, part: None };
    let stream = Device::Cpu.stream().unwrap();
    let (x, gamma) = (Place::DENSE.tensor(shape, &[1.0; 12]), slice(&[1f32; 4]));
    let (stats, workspace) = (slice(&vec![0f32; op.stats_len()]), slice(&[0f32; 64]));
    let error = batch_norm::forward_train(&stream, &op, &x, &gamma, &gamma, None, &x, &stats, &workspace).unwrap_err();
    assert_eq!(
        error.to_string(),
        "batch_norm forward_train: each split needs at least 2 values a channel, got 1 ([3,1,1,1,4] in 2 splits)"
    );
}

#[test]
fn overlap_that_is_not_in_place_is_refused() {
    let buffer = Buffer::zeroed(&Device::Cpu, 4 * 64).unwrap();
    let at = |first: usize| Tensor::new(buffer.slice::<f32>(4 * first, 32).unwrap(), SHAPE, 4).unwrap();
    let message = forward(|a| (a.x, a.y) = (at(0), at(8)));
    assert!(message.contains("overlap"), "{message}");
    assert_eq!(forward(|a| (a.x, a.y) = (at(0), at(32))), "accepted");
}

#[test]
fn folding_checks_its_lengths() {
    assert!(fold_split_statistics(0, &[], &[]).is_err());
    assert!(fold_split_statistics(2, &[0.0; 4], &[0.0; 6]).is_err());
    assert!(fold_split_statistics(3, &[0.0; 4], &[0.0; 4]).is_err());
    let (mean, var) = fold_split_statistics(2, &[1.0, 5.0, 3.0, 5.0], &[0.5, 1.0, 1.5, 3.0]).unwrap();
    assert_eq!((mean, var), (vec![2.0, 5.0], vec![1.0 + 1.0, 2.0]));
}
