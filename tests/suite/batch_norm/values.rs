//! Values against the reference, and the reference against difference quotients.

use vcycle::device::Device;
use vcycle::ops::batch_norm::{self, reference};

use super::rig::{Case, Operands, Share, cases, step};
use crate::compare::{
    Place, as_f64, assert_equal, assert_gradient, assert_same_bits, assert_twice_plain, exact, slice, to_f32,
};

#[test]
fn random_values_are_as_good_as_plain_f32() {
    for case in cases() {
        let (op, o) = (case.op(), Operands::random(&case));
        let got = step(&case, &o, Share::Nothing);
        let (x, gamma, beta) = (as_f64(&o.x), as_f64(&o.gamma), as_f64(&o.beta));
        let (residual, dy) = (o.residual.as_deref().map(as_f64), as_f64(&o.dy));
        let forward = |round| reference::forward(&op, round, &x, &gamma, &beta, residual.as_deref());
        let (f64_forward, plain_forward) = (forward(exact), forward(to_f32));
        // Backward starts from what forward wrote: a value next to zero may round to either side of the ReLU.
        let written = reference::Forward { y: as_f64(&got.y), stats: as_f64(&got.stats) };
        let backward = |round| reference::backward(&op, round, &x, &gamma, &written, &dy);
        let (f64_backward, plain_backward) = (backward(exact), backward(to_f32));
        for (part, values) in got.parts() {
            let of = |f: &reference::Forward, b: &reference::Backward| match part {
                "y" => f.y.clone(),
                "stats" => f.stats.clone(),
                "dx" => b.dx.clone(),
                "dr" => b.dr.clone(),
                "dgamma" => b.dgamma.clone(),
                _ => b.dbeta.clone(),
            };
            let what = format!("{}: {part}", case.name);
            let (plain, exact) = (of(&plain_forward, &plain_backward), of(&f64_forward, &f64_backward));
            assert_twice_plain(&what, values, &plain, &exact);
        }
    }
}

#[test]
fn sums_of_integer_gradients_are_exact() {
    for case in cases() {
        let (op, o) = (case.op(), Operands::integers(&case));
        let got = step(&case, &o, Share::AddToResidual);
        let open = |i: usize| !op.relu || got.y[i] > 0.0;
        let masked: Vec<f64> = (0..o.dy.len()).map(|i| if open(i) { f64::from(o.dy[i]) } else { 0.0 }).collect();
        let sum = |ch: usize| masked.iter().skip(ch).step_by(op.shape.c).sum::<f64>();
        assert_equal(&format!("{}: dbeta", case.name), &got.dbeta, &(0..op.shape.c).map(sum).collect::<Vec<_>>());
        if let Some(dr) = &got.dr {
            let want: Vec<f64> = masked.iter().zip(&o.dr_before).map(|(g, b)| g + f64::from(*b)).collect();
            assert_equal(&format!("{}: dr added to", case.name), dr, &want);
        }
    }
}

/// Integers whose mean is an integer and whose variance is a square: statistics and output have no rounding at all.
#[test]
fn exact_statistics_of_integers() {
    // Blocks of an odd number of rows, as the excepted case has them, round their means.
    let is_even = |c: &Case| c.op().shape.num_positions().is_multiple_of(2) && c.name != "two_levels_of_tiles";
    for case in cases().into_iter().filter(is_even) {
        let mut op = case.op();
        (op.eps, op.splits, op.relu) = (0.0, 1, false);
        let c = op.shape.c;
        // Channel ch alternates between ch - 4 and ch + 4: mean ch, variance 16.
        let x: Vec<f32> =
            (0..op.shape.num_elements()).map(|i| (i % c) as f32 + if i / c % 2 == 0 { 4.0 } else { -4.0 }).collect();
        let stream = Device::Cpu.stream().unwrap();
        let tensor = Place::DENSE.tensor(op.shape, &x);
        let (gamma, beta, stats) = (slice(&vec![2f32; c]), slice(&vec![1f32; c]), slice(&vec![0f32; 3 * c]));
        let workspace = slice(&vec![0f32; batch_norm::workspace_bytes(&stream, &op) / 4]);
        batch_norm::forward_train(&stream, &op, &tensor, &gamma, &beta, None, &tensor, &stats, &workspace).unwrap();
        let want: Vec<f64> = (0..x.len()).map(|i| if i / c % 2 == 0 { 3.0 } else { -1.0 }).collect();
        assert_equal(&format!("{}: y", case.name), &tensor.read().unwrap(), &want);
        let stats = stats.read::<f32>().unwrap();
        let means: Vec<f64> = (0..c).map(|ch| ch as f64).collect();
        assert_equal(&format!("{}: mean", case.name), &stats[..c], &means);
        assert_equal(&format!("{}: inverse deviation", case.name), &stats[c..2 * c], &vec![0.25; c]);
    }
}

#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    let case = cases().into_iter().find(|c| c.name == "several_blocks").unwrap();
    let op = case.op();
    let mut o = Operands::random(&case);
    o.x.iter_mut().for_each(|x| *x += 5000.0);
    let got = step(&case, &o, Share::Nothing);
    let reference = reference::forward(&op, exact, &as_f64(&o.x), &as_f64(&o.gamma), &as_f64(&o.beta), None);
    for ch in 0..op.shape.c {
        let (inv_std, want) = (f64::from(got.stats[op.shape.c + ch]), reference.stats[op.shape.c + ch]);
        // The values themselves are rounded to 5000 * 2^-24 before the op sees them; the statistics add nothing to that.
        assert!((inv_std / want - 1.0).abs() < 1e-6, "channel {ch}: {inv_std} is not {want}");
    }
}

#[test]
fn evaluation_is_as_good_as_plain_f32_and_works_in_place() {
    for case in cases() {
        let (op, o) = (case.op(), Operands::random(&case));
        let (mean, var): (Vec<f32>, Vec<f32>) = (0..op.shape.c).map(|ch| (o.beta[ch] * 0.5, o.gamma[ch])).unzip();
        let stream = Device::Cpu.stream().unwrap();
        let (x, y) = (Place::DENSE.tensor(op.shape, &o.x), Place::DENSE.garbage(op.shape));
        let residual = o.residual.as_ref().map(|r| Place::DENSE.tensor(op.shape, r));
        for output in [&y, &x] {
            let (gamma, beta) = (slice(&o.gamma), slice(&o.beta));
            let (mean, var) = (slice(&mean), slice(&var));
            batch_norm::forward_eval(&stream, &op, &x, &gamma, &beta, &mean, &var, residual.as_ref(), output).unwrap();
        }
        let parameters = [&o.gamma, &o.beta, &mean, &var].map(|v| as_f64(v));
        let residual = o.residual.as_deref().map(as_f64);
        let reference = |round| {
            let parameters = parameters.each_ref().map(|p| &p[..]);
            reference::forward_eval(&op, round, &as_f64(&o.x), parameters, residual.as_deref())
        };
        let got = y.read::<f32>().unwrap();
        assert_twice_plain(&format!("{}: eval", case.name), &got, &reference(to_f32), &reference(exact));
        assert_same_bits(&format!("{}: eval in place", case.name), &x.read::<f32>().unwrap(), &got);
    }
}

#[test]
fn running_statistics_move_towards_the_mean_of_the_splits() {
    let case = cases().into_iter().find(|c| c.name == "an_empty_split").unwrap();
    let (op, o) = (case.op(), Operands::random(&case));
    let got = step(&case, &o, Share::Nothing);
    let (mean, var) = (slice(&o.beta), slice(&o.gamma));
    let stream = Device::Cpu.stream().unwrap();
    batch_norm::update_running(&stream, &op, &slice(&got.stats), 0.25, &mean, &var).unwrap();
    let c = op.shape.c;
    assert_eq!(op.splits_used(), 3);
    let average =
        |row: usize, ch: usize| (0..3).map(|s| f64::from(got.stats[(s * 3 + row) * c + ch])).sum::<f64>() / 3.0;
    for (row, old, new) in [(0, &o.beta, mean), (2, &o.gamma, var)] {
        let want: Vec<f64> = (0..c).map(|ch| to_f32(0.75 * f64::from(old[ch]) + 0.25 * average(row, ch))).collect();
        assert_equal("running statistics", &new.read().unwrap(), &want);
    }
}

#[test]
fn the_reference_gradient_is_the_derivative() {
    for case in cases().into_iter().filter(|c| c.op().shape.num_elements() < 3000) {
        let (op, o) = (case.op(), Operands::random(&case));
        let (x, gamma, beta, dy) = (as_f64(&o.x), as_f64(&o.gamma), as_f64(&o.beta), as_f64(&o.dy));
        let residual = o.residual.as_deref().map(as_f64);
        let forward = |x: &[f64], gamma: &[f64], beta: &[f64], r: Option<&[f64]>| {
            reference::forward(&op, exact, x, gamma, beta, r)
        };
        let loss = |f: reference::Forward| f.y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        let at = forward(&x, &gamma, &beta, residual.as_deref());
        let got = reference::backward(&op, exact, &x, &gamma, &at, &dy);
        let (name, r) = (&case.name, residual.as_deref());
        assert_gradient(&format!("{name}: dx"), &x, &got.dx, |x| loss(forward(x, &gamma, &beta, r)));
        assert_gradient(&format!("{name}: dgamma"), &gamma, &got.dgamma, |g| loss(forward(&x, g, &beta, r)));
        assert_gradient(&format!("{name}: dbeta"), &beta, &got.dbeta, |b| loss(forward(&x, &gamma, b, r)));
        if let Some(r) = r {
            assert_gradient(&format!("{name}: dr"), r, &got.dr, |r| loss(forward(&x, &gamma, &beta, Some(r))));
        }
    }
}
