//! `step_all` on every executor: values, the 16-bit copy, the guard, same bits.

use half::{bf16, f16};
use vcycle::device::{Buffer, DType, Device, Slice};
use vcycle::ops::sgd::{self, Arrays, Guard, LossScaling, ParamRange, RangeTable, Sgd, State, reference};

use super::{NESTEROV, PLAIN, operands, range};
use crate::compare::{as_f64, assert_same_bits, assert_twice_plain, exact, to_f32};
use crate::executors;
use crate::stored;

/// Ranges that begin and end within vectors and tiles, share vectors, leave gaps, and one that holds several tiles.
fn ranges() -> Vec<ParamRange> {
    vec![
        range(1, 2, 0.0),
        range(3, 4090, 1e-2),
        range(4093, 6, 0.5),
        range(4100, 0, 0.1),
        range(4101, 9000, 1e-4),
        range(13_102, 1, 0.0),
    ]
}
const LEN: usize = 13_105;

/// Arrays on a device, all of them filled.
struct Rig {
    device: Device,
    table: RangeTable,
    params: Slice,
    grads: Slice,
    momentum: Slice,
    copy: Option<Slice>,
    state: Slice,
    workspace: Slice,
    flag: Slice,
}

impl Rig {
    fn new(device: &Device, ranges: &[ParamRange], values: &[Vec<f32>; 3], copy: Option<DType>, scale: f32) -> Rig {
        let len = values[0].len();
        let table = RangeTable::new(device, ranges, len).unwrap();
        let [params, grads, momentum] = [0, 1, 2].map(|i| stored::slice(device, DType::F32, &values[i]));
        let workspace = Buffer::zeroed(device, table.workspace_bytes()).unwrap();
        Rig {
            params,
            grads,
            momentum,
            copy: copy.map(|dtype| stored::slice(device, dtype, &vec![7.0; len])),
            state: State::new(scale).to_device(device).unwrap(),
            workspace: workspace.slice::<f32>(0, workspace.len_bytes() / 4).unwrap(),
            flag: Buffer::from_host(device, &[0u32]).unwrap(),
            table,
            device: device.clone(),
        }
    }

    fn step(&self, op: &Sgd, scaling: LossScaling, max_grad_norm: f32) -> State {
        self.clipped_step(op, scaling, max_grad_norm, f32::INFINITY)
    }

    fn clipped_step(&self, op: &Sgd, scaling: LossScaling, max_grad_norm: f32, max_grad_value: f32) -> State {
        let guard = Guard {
            state: &self.state,
            workspace: &self.workspace,
            skip_flag: Some(&self.flag),
            scaling,
            max_grad_norm,
            max_grad_value,
        };
        self.run(op, Some(&guard));
        State::read(&self.state).unwrap()
    }

    fn run(&self, op: &Sgd, guard: Option<&Guard>) {
        let arrays = Arrays { copy: self.copy.as_ref(), ..Arrays::new(&self.params, &self.grads, &self.momentum) };
        sgd::step_all(&self.device.stream().unwrap(), op, &self.table, &arrays, guard).unwrap();
    }

    fn values(&self) -> [Vec<f32>; 2] {
        [&self.params, &self.momentum].map(stored::read)
    }
}

/// Parameters and momentum after one step of `step_all` from (parameters, gradients, momentum).
pub fn step_on(device: &Device, op: &Sgd, ranges: &[ParamRange], values: &[Vec<f32>; 3]) -> [Vec<f32>; 2] {
    let rig = Rig::new(device, ranges, values, None, 1.0);
    rig.run(op, None);
    rig.values()
}

fn rules() -> [Sgd; 5] {
    [
        PLAIN,
        Sgd { first_step: true, ..NESTEROV },
        Sgd { dampening: 0.3, ..PLAIN },
        NESTEROV,
        Sgd { momentum: 0.0, ..PLAIN },
    ]
}

#[test]
fn cases_agree_with_the_reference_on_every_executor() {
    let values = operands(LEN);
    for device in executors::all() {
        for (i, op) in rules().into_iter().enumerate() {
            let copy = [None, Some(DType::Bf16), Some(DType::F16)][i % 3];
            let rig = || {
                let rig = Rig::new(&device, &ranges(), &values, copy, 1.0);
                rig.run(&op, None);
                rig
            };
            let of = |round| {
                let (mut p, mut m) = (as_f64(&values[0]), as_f64(&values[2]));
                reference::step(&op, round, &ranges(), &mut p, &as_f64(&values[1]), &mut m);
                [p, m]
            };
            let (plain, want) = (of(to_f32), of(exact));
            executors::in_all_modes(&device, |mode| {
                let first = rig();
                let [p, m] = first.values();
                assert_twice_plain(&format!("{mode} {op:?}: params"), &p, &plain[0], &want[0]);
                assert_twice_plain(&format!("{mode} {op:?}: momentum"), &m, &plain[1], &want[1]);
                let [again_p, again_m] = rig().values();
                assert_same_bits("params again", &again_p, &p);
                assert_same_bits("momentum again", &again_m, &m);
                check_copy(&first, &p);
                for outside in [0..1, 4099..4101, 13_101..13_102, 13_103..LEN] {
                    assert_same_bits("params in no range", &p[outside.clone()], &values[0][outside.clone()]);
                    assert_same_bits("momentum in no range", &m[outside.clone()], &values[2][outside]);
                }
            });
        }
    }
}

/// The copy is the parameters rounded, within the ranges alone.
fn check_copy(rig: &Rig, params: &[f32]) {
    let Some(copy) = &rig.copy else { return };
    let mut want = vec![7.0; params.len()];
    for range in ranges() {
        for i in range.start..range.start + range.len {
            want[i] = match copy.dtype() {
                DType::Bf16 => bf16::from_f32(params[i]).to_f32(),
                _ => f16::from_f32(params[i]).to_f32(),
            };
        }
    }
    assert_same_bits("copy", &stored::read(copy), &want);
}

#[test]
fn powers_of_two_are_exact() {
    let op = Sgd { lr: 0.5, momentum: 0.5, ..NESTEROV };
    let values = [vec![8.0, -4.0, 0.0], vec![4.0, 8.0, 16.0], vec![2.0, 4.0, -8.0]];
    for device in executors::all() {
        let rig = Rig::new(&device, &[range(0, 3, 0.25)], &values, Some(DType::F16), 4.0);
        let state = rig.step(&op, LossScaling::FIXED, f32::INFINITY);
        // The gradients are 1, 2, 4 times the loss scale; g + 0.25 p: 3, 1, 4.
        assert_eq!(rig.values(), [vec![5.5, -5.25, -2.0], vec![4.0, 3.0, 0.0]], "{device}");
        assert_eq!(stored::read(rig.copy.as_ref().unwrap()), [5.5, -5.25, -2.0], "{device}");
        assert_eq!((state.factor, state.skipped, state.num_taken), (0.25, 0, 1), "{device}");
        assert_eq!(state.grad_norm, 21f32.sqrt(), "{device}");
    }
}

#[test]
fn the_norm_is_as_good_as_plain_f32_and_clips() {
    let values = operands(LEN);
    let of = |round| vec![reference::grad_norm(1.0 / 8.0, round, &ranges(), &as_f64(&values[1]))];
    let (plain, want) = (of(to_f32), of(exact));
    for device in executors::all() {
        executors::in_all_modes(&device, |mode| {
            let rig = Rig::new(&device, &ranges(), &values, None, 8.0);
            let state = rig.step(&PLAIN, LossScaling::FIXED, 0.5);
            assert_twice_plain(&format!("{mode}: norm"), &[state.grad_norm], &plain, &want);
            let factor = 0.5 / (f64::from(state.grad_norm) + 1e-6) / 8.0;
            assert!((f64::from(state.factor) / factor - 1.0).abs() < 1e-6, "{mode}: {state:?}");
            let again = Rig::new(&device, &ranges(), &values, None, 8.0);
            assert_eq!(again.step(&PLAIN, LossScaling::FIXED, 0.5), state, "{mode}");
            assert_same_bits("params again", &again.values()[0], &rig.values()[0]);
            // A larger limit changes nothing but the loss scale.
            let rig = Rig::new(&device, &ranges(), &values, None, 8.0);
            assert_eq!(rig.step(&PLAIN, LossScaling::FIXED, 1e9).factor, 0.125, "{mode}");
        });
    }
}

/// Values first divided by the loss scale, then by what the norm asks for, then cut off; the norm is that before both.
#[test]
fn values_are_clipped_after_the_norm() {
    let values = [vec![0.0; 4], vec![24.0, -32.0, 0.5, 0.0], vec![0.0; 4]];
    let op = Sgd { lr: 1.0, first_step: true, ..PLAIN };
    for device in executors::all() {
        let step = |max_grad_norm, max_grad_value| {
            let rig = Rig::new(&device, &[range(0, 4, 0.0)], &values, Some(DType::Bf16), 8.0);
            (
                rig.clipped_step(&op, LossScaling::FIXED, max_grad_norm, max_grad_value).grad_norm,
                rig.values()[0].clone(),
            )
        };
        let norm = (25f32 + 1.0 / 256.0).sqrt();
        assert_eq!(step(f32::INFINITY, 3.5), (norm, vec![-3.0, 3.5, -0.0625, 0.0]), "{device}");
        assert_eq!(step(f32::INFINITY, f32::INFINITY), (norm, vec![-3.0, 4.0, -0.0625, 0.0]), "{device}");
        let (_, both) = step(2.5, 1.75);
        assert!((both[0] + 1.5).abs() < 1e-3 && both[1] == 1.75, "{device}: {both:?}");
    }
}

#[test]
fn a_bad_step_is_skipped_and_counted() {
    const SCALING: LossScaling = LossScaling { growth: 2.0, backoff: 0.25, growth_interval: 2, max: 100.0 };
    let good = [vec![1.0; 5000], vec![2.0; 5000], vec![f32::NAN; 5000]];
    for device in executors::all() {
        let all = [range(0, 4999, 0.0)];
        let rig = Rig::new(&device, &all, &good, Some(DType::Bf16), 64.0);
        let op = Sgd { lr: 1.0, first_step: true, ..PLAIN };
        let untouched = |when: &str| {
            assert_same_bits(when, &rig.values()[0], &good[0]);
            assert!(rig.values()[1].iter().all(|m| m.is_nan()), "{device}: {when}");
            assert!(stored::read(rig.copy.as_ref().unwrap()).iter().all(|&v| v == 7.0), "{device}: {when}");
        };
        let step = |op: &Sgd, bad: Option<f32>| {
            let mut grads = good[1].clone();
            grads[4321] = bad.unwrap_or(grads[4321]);
            rig.grads.write(&grads).unwrap();
            rig.step(op, SCALING, f32::INFINITY)
        };
        // Its first step has gradients that are not finite: the scale shrinks.
        let state = step(&op, Some(f32::NEG_INFINITY));
        untouched("infinite");
        assert_eq!((state.skipped, state.num_skipped, state.num_taken, state.loss_scale), (1, 1, 0, 16.0), "{device}");
        assert!(state.grad_norm.is_nan());
        // Then batch norm saw something: skipped, but the scale stays; the flag is taken.
        rig.flag.write(&[1u32]).unwrap();
        let state = step(&PLAIN, None);
        untouched("flag");
        assert_eq!((state.skipped, state.num_skipped, state.loss_scale), (1, 2, 16.0), "{device}");
        assert_eq!(rig.flag.read::<u32>().unwrap(), [0]);
        // The third is the first that is taken: the momentum, garbage so far, starts. What is in no range may be anything.
        let op = Sgd { lr: 1.0, ..PLAIN };
        let mut grads = good[1].clone();
        grads[4999] = f32::NAN;
        rig.grads.write(&grads).unwrap();
        let state = rig.step(&op, SCALING, f32::INFINITY);
        assert_eq!((state.skipped, state.first_step, state.num_taken, state.good_steps), (0, 1, 1, 1), "{device}");
        assert!(rig.values()[1][..4999].iter().all(|&m| m == 0.125), "{device}");
        assert!(rig.values()[0][..4999].iter().all(|&p| p == 0.875), "{device}");
        // The second good step in a row doubles the scale for the next.
        let state = step(&op, None);
        assert_eq!((state.loss_scale, state.factor, state.good_steps, state.first_step), (32.0, 1.0 / 16.0, 0, 0));
        let state = step(&op, Some(f32::NAN));
        assert_eq!((state.loss_scale, state.num_skipped, state.num_taken), (8.0, 3, 2), "{device}");
    }
}

#[test]
fn the_rate_may_lie_on_the_device() {
    let values = [vec![1.0; 8], vec![1.0; 8], vec![0.0; 8]];
    for device in executors::all() {
        let rig = Rig::new(&device, &[range(0, 8, 0.0)], &values, None, 1.0);
        let lr = stored::slice(&device, DType::F32, &[0.25]);
        let arrays = Arrays { lr: Some(&lr), ..Arrays::new(&rig.params, &rig.grads, &rig.momentum) };
        sgd::step_all(&device.stream().unwrap(), &PLAIN, &rig.table, &arrays, None).unwrap();
        assert_eq!(rig.values()[0], [0.75; 8], "{device}");
    }
}

#[test]
fn what_does_not_fit_is_refused_everywhere() {
    for device in executors::all() {
        let values = operands(40);
        let rig = Rig::new(&device, &[range(0, 30, 0.0)], &values, None, 1.0);
        let stream = device.stream().unwrap();
        let refused = |arrays: Arrays, guard: Option<&Guard>, words: &str| {
            let error = sgd::step_all(&stream, &PLAIN, &rig.table, &arrays, guard).unwrap_err().to_string();
            assert!(error.contains(words), "{device}: {error}");
        };
        let good = Arrays::new(&rig.params, &rig.grads, &rig.momentum);
        let short = rig.params.part(0, 39).unwrap();
        refused(Arrays { params: &short, ..good }, None, "sgd: params must have 40 elements, got 39");
        refused(Arrays { copy: Some(&short), ..good }, None, "copy must have 40 elements");
        refused(Arrays { lr: Some(&short), ..good }, None, "lr must have 1 elements");
        let guard = Guard {
            state: &rig.state,
            workspace: &rig.workspace,
            skip_flag: None,
            scaling: LossScaling::FIXED,
            max_grad_norm: f32::INFINITY,
            max_grad_value: f32::INFINITY,
        };
        refused(good, Some(&Guard { state: &rig.flag, ..guard }), "state must have 9 elements");
        let small = rig.workspace.part(0, 1).unwrap();
        refused(good, Some(&Guard { workspace: &small, ..guard }), "workspace must have at least");
        refused(good, Some(&Guard { max_grad_norm: 0.0, ..guard }), "max_grad_norm must be positive");
        refused(good, Some(&Guard { max_grad_value: f32::NAN, ..guard }), "max_grad_value must be positive");
        if device != Device::Cpu {
            let wide = stored::slice(&device, DType::F32, &[0.0; 41]);
            refused(Arrays { grads: &wide.part(1, 40).unwrap(), ..good }, None, "grads must be aligned to 16 bytes");
        }
    }
}
