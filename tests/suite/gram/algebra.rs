//! The reference against plain convolution and batch norm, all in f64: the same function and the same gradients.

use vcycle::ops::conv3d::reference as conv;
use vcycle::ops::{batch_norm::reference as batch_norm, gram::reference};

use super::rig::Case;
use crate::compare::exact;
use crate::golden::fill;

#[track_caller]
fn assert_agrees(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let largest = want.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-12 * largest, "{what}: element {i}: {got:e} is not {want:e}");
    }
}

fn values(what: &str, n: usize, scale: f64, offset: f64) -> Vec<f64> {
    (0..n).map(|i| offset + scale * fill::unit(what, i)).collect()
}

/// Forward and every gradient of conv, batch norm, shortcut and ReLU. `offset`: mean of x; its deviation is 0.58.
fn check(case: &Case, offset: f64) {
    let (op, name) = (case.op(), &case.name);
    let (norm, conv_op) = (op.norm, op.conv());
    let (c_out, len) = (norm.shape.c, norm.shape.num_elements());
    let x = values(&format!("{name}/x"), op.input().num_elements(), 1.0, offset);
    let w = values(&format!("{name}/w"), conv_op.filter_len(), 1.0, 0.0);
    let (gamma, beta) =
        (values(&format!("{name}/gamma"), c_out, 1.0, 0.5), values(&format!("{name}/beta"), c_out, 1.0, 0.0));
    let (residual, g) = (values(&format!("{name}/r"), len, 1.0, 0.0), values(&format!("{name}/g"), len, 1.0, 0.1));

    let y = conv::forward(&conv_op, &x, &w, None);
    let plain = batch_norm::forward(&norm, exact, &y, &gamma, &beta, Some(&residual));
    let back = batch_norm::backward(&norm, exact, &y, &gamma, &plain, &g);

    let moments = reference::moments(&op, exact, &x);
    let stats = reference::statistics(&op, exact, &moments, &w);
    assert_agrees(&format!("{name}: stats"), &stats, &plain.stats);
    let scale_shift = batch_norm::scale_shift(&norm, exact, &stats, &gamma, &beta);
    let z = batch_norm::apply(&norm, exact, &y, &scale_shift, Some((&residual, None)));
    assert_agrees(&format!("{name}: output"), &z, &plain.y);

    let masked: Vec<f64> = g.iter().zip(&z).map(|(g, z)| if *z > 0.0 { *g } else { 0.0 }).collect();
    let products = reference::products(&op, exact, &x, &masked, &moments);
    let [table, dgamma, dbeta] = reference::grad_tables(&op, exact, &products, &w, &gamma, &stats);
    assert_agrees(&format!("{name}: dgamma"), &dgamma, &back.dgamma);
    assert_agrees(&format!("{name}: dbeta"), &dbeta, &back.dbeta);
    let dw = reference::grad_filter(&op, exact, &products, &moments, &w, &table);
    assert_agrees(&format!("{name}: dW"), &dw, &conv::grad_filter(&conv_op, &x, &back.dx));
    let factors = reference::input_factors(&op, exact, &w, &table);
    let dx = reference::grad_input(&op, exact, &x, &masked, &factors);
    assert_agrees(&format!("{name}: dx"), &dx, &conv::grad_input(&conv_op, &back.dx, &w));
}

#[test]
fn gram_batch_norm_is_batch_norm() {
    for (name, input, c_out, splits) in [
        ("one_split", [2, 2, 3, 5, 8], 32, 1),
        ("last_split_is_smaller", [7, 1, 4, 3, 6], 20, 3),
        ("one_clip_a_split", [3, 2, 4, 4, 5], 12, 3),
        ("fewer_positions_than_channels", [1, 1, 2, 3, 16], 24, 1),
    ] {
        check(&Case::new(name, input, c_out, splits), 0.3);
    }
}

/// A mean of ten deviations costs two digits of each, with or without Gram.
#[test]
fn also_behind_a_mean() {
    check(&Case::new("mean_of_3_deviations", [4, 1, 4, 5, 8], 24, 2), 1.74);
}

#[test]
fn both_forms_of_the_moments_agree() {
    let case = Case::new("forms", [5, 1, 3, 4, 7], 8, 2);
    let op = case.op();
    let x = values("forms/x", op.input().num_elements(), 1.0, 0.5);
    let (two_passes, one_pass) = (reference::moments(&op, exact, &x), reference::moments_in_one_pass(&op, exact, &x));
    assert_agrees("moments", &one_pass, &two_passes);
}
