//! Every instruction set of the machine gives exact results on small integers; tests/suite/conv3d.rs tests the chosen one
//! in depth.

use serde::Deserialize;

use super::super::{Conv3d, Direction, reference};
use crate::device::cpu::Isa;
use crate::device::{ActMut, ActRef};
use crate::shape::ActivationShape;

#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    input: [usize; 5],
    c_out: usize,
    filter: [usize; 3],
    #[serde(default = "one")]
    stride: [usize; 3],
    #[serde(default)]
    padding: [usize; 3],
    #[serde(default = "one")]
    dilation: [usize; 3],
    groups: Option<usize>,
}

fn one() -> [usize; 3] {
    [1; 3]
}

/// Integers in -4..=4: all sums are exact.
fn integers(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| (((i + seed).wrapping_mul(2_654_435_761) >> 8) % 9) as f32 - 4.0).collect()
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// y, dx and dw, with scratch memory of exactly the length asked for, full of garbage.
fn run(isa: Isa, op: &Conv3d, x: &[f32], w: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
    let scratch = |direction| vec![f32::NAN; super::workspace_len(isa, op, direction)];
    let [mut y, mut dx, mut dw] = [dy.len(), x.len(), w.len()].map(|n| vec![f32::NAN; n]);
    let (x, dy) = (ActRef::dense(x, op.input), ActRef::dense(dy, op.output()));
    super::forward(isa, op, x, w, None, ActMut::dense(&mut y, dy.shape), &mut scratch(Direction::Forward));
    let to = ActMut::dense(&mut dx, op.input);
    super::grad_input(isa, op, dy, w, to, false, &mut scratch(Direction::GradInput));
    super::grad_filter(isa, op, x, dy, &mut dw, &mut scratch(Direction::GradFilter));
    [y, dx, dw]
}

#[test]
fn every_instruction_set_is_exact_on_integers() {
    let text = include_str!("../../../../tests/cases/conv3d.toml");
    for case in toml::from_str::<Cases>(text).expect("tests/cases/conv3d.toml").case {
        let [n, t, h, w, c] = case.input;
        let op = Conv3d {
            input: ActivationShape::new(n, t, h, w, c),
            c_out: case.c_out,
            filter: case.filter,
            stride: case.stride,
            padding: case.padding,
            dilation: case.dilation,
            groups: case.groups.unwrap_or(1),
            part: None,
        };
        let [x, w, dy] = [(op.input.num_elements(), 1), (op.filter_len(), 2), (op.output().num_elements(), 3)]
            .map(|(n, seed)| integers(n, seed));
        let (x64, w64, dy64) = (f64s(&x), f64s(&w), f64s(&dy));
        let want = [
            reference::forward(&op, &x64, &w64, None),
            reference::grad_input(&op, &dy64, &w64),
            reference::grad_filter(&op, &x64, &dy64),
        ];
        for isa in Isa::available() {
            for (i, (want, got)) in want.iter().zip(run(isa, &op, &x, &w, &dy)).enumerate() {
                assert!(*want == f64s(&got), "{} on {}: {} is wrong", case.name, isa.name(), ["y", "dx", "dw"][i]);
            }
        }
    }
}
