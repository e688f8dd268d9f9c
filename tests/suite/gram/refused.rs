//! What is refused, and in which words.

use vcycle::device::{DType, Device};
use vcycle::ops::conv3d::Prologue;
use vcycle::ops::gram::{self, Gram, Tables};

use super::rig::{Case, workspace};
use crate::stored;

fn message(result: vcycle::Result<()>) -> String {
    result.expect_err("refused").to_string()
}

/// The message of moments for x of `c_in` channels.
fn moments(case: &Case, change: impl Fn(&mut Gram), c_in: usize, splits: Option<usize>) -> String {
    let (device, mut op) = (Device::Cpu, case.op());
    let stream = device.stream().unwrap();
    let garbage = |len| stored::garbage(&device, DType::F32, len);
    let shape = op.input().with_channels(c_in);
    let x = stored::tensor(&device, DType::F32, shape, &vec![0.5; shape.num_elements()], [0; 2]);
    let out = garbage(op.moments_len());
    change(&mut op);
    let table = garbage(splits.unwrap_or(1) * 2 * op.c_in);
    let prologue = splits.map(|splits| Prologue { scale_shift: &table, splits, join: None });
    let scratch = workspace(&device, gram::workspace_bytes(&stream, &op));
    message(gram::moments(&stream, &op, &x, prologue.as_ref(), &out, &scratch))
}

#[test]
fn moments_say_what_does_not_fit() {
    let case = Case::new("refused", [2, 1, 2, 2, 8], 16, 2);
    let told = moments(&case, |_| (), 16, None);
    assert!(told.contains("gram moments: x must be [2,1,2,2,8], got [2,1,2,2,16]"), "{told}");
    let told = moments(&case, |op| op.norm.splits = 3, 8, None);
    assert!(told.contains("moments must have 216 elements, got 144"), "{told}");
    let told = moments(&case, |op| op.c_in = 0, 8, None);
    assert!(told.contains("sizes must not be zero"), "{told}");
    let told = moments(&case, |_| (), 8, Some(2));
    assert!(told.contains("with a prologue") && told.contains("call batch_norm first"), "{told}");
    let told = moments(&Case::new("refused", [2, 1, 1, 1, 8], 16, 2), |_| (), 8, None);
    assert!(told.contains("at least 2 values a channel"), "{told}");
}

#[test]
fn statistics_say_what_does_not_fit() {
    let (device, op) = (Device::Cpu, Case::new("refused", [2, 1, 2, 2, 8], 16, 2).op());
    let stream = device.stream().unwrap();
    let slice = |dtype, len| stored::slice(&device, dtype, &vec![0.0; len]);
    let [gamma, beta, stats] = [16, 16, 2 * 3 * 16].map(|len| slice(DType::F32, len));
    let scratch = workspace(&device, gram::workspace_bytes(&stream, &op));
    let told = |moments: usize, filter, len| {
        let tables = Tables { gamma: &gamma, beta: &beta, stats: &stats, scale_shift: None, skip: None };
        let (moments, filter) = (slice(DType::F32, moments), slice(filter, len));
        message(gram::statistics(&stream, &op, &moments, &filter, &tables, &scratch))
    };
    assert!(told(144, DType::Bf16, 128).contains("filter must hold F32, got Bf16"));
    assert!(told(144, DType::F32, 64).contains("filter must have 128 elements, got 64"));
    assert!(told(72, DType::F32, 128).contains("moments must have 144 elements, got 72"));
}
