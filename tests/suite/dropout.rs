//! Dropout: its definition, replay, the batch cut in pieces, gaps, memory in place. `everywhere`: what every executor does.

mod everywhere;

use proptest::prelude::*;
use vcycle::device::Device;
use vcycle::ops::dropout::{self, Dropout, reference};
use vcycle::shape::ActivationShape;

use crate::compare::{Place, as_f64, assert_equal, assert_same_bits, read, slice, with_threads};
use crate::golden::fill;

const OP: Dropout = Dropout { rate: 0.5, seed: 7, step: 3, first_clip: 0 };

fn run(op: &Dropout, shape: ActivationShape, x: &[f32], places: [Place; 2]) -> Vec<f32> {
    let stream = Device::Cpu.stream().unwrap();
    let (x, y) = (places[0].tensor(shape, x), places[1].garbage(shape));
    dropout::apply(&stream, op, &x, &y).unwrap();
    read(&y, places[1])
}

const DENSE: [Place; 2] = [Place::DENSE; 2];

/// The definition, number by number: other executors must draw the same bits.
#[test]
fn the_definition_is_fixed() {
    let kept: String = (0..32).map(|f| if OP.keeps(2, f) { '1' } else { '0' }).collect();
    assert_eq!(kept, KEPT);
    let mix = |state: u64| {
        let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let key = mix(mix(7 ^ mix(3)) ^ mix(2 ^ 0x6472_6f70_6f75_7421));
    for feature in 0..1000u64 {
        let draw = mix(key.wrapping_add(feature.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 40;
        assert_eq!(OP.keeps(2, feature as usize), draw >= 1 << 23, "feature {feature}");
    }
}

const KEPT: &str = "10001111011010111001111011110011";

#[test]
fn the_op_follows_the_reference() {
    let shape = ActivationShape::new(5, 2, 3, 2, 37);
    let x = fill::f32("dropout/x", shape.num_elements(), 1.0, 0.0);
    for rate in [0.0, 0.25, 0.5, 0.8] {
        let op = Dropout { rate, ..OP };
        // The scale is one f32 and the product is rounded once: the f64 product rounded is the same.
        let want: Vec<f64> = reference::apply(&op, 12 * 37, &as_f64(&x)).iter().map(|v| f64::from(*v as f32)).collect();
        assert_equal(&format!("rate {rate}"), &run(&op, shape, &x, DENSE), &want);
    }
    assert_same_bits("rate 0", &run(&Dropout { rate: 0.0, ..OP }, shape, &x, DENSE), &x);
}

#[test]
fn the_share_of_zeros_is_the_rate() {
    let shape = ActivationShape::new(50, 1, 1, 1, 2304);
    for (rate, step) in [(0.5, 0), (0.5, 1), (0.1, 2), (0.8, 1 << 40)] {
        let op = Dropout { rate, step, ..OP };
        let y = run(&op, shape, &vec![1.0; shape.num_elements()], DENSE);
        let count = |values: &[f32]| values.iter().filter(|v| **v == 0.0).count() as f64;
        let (n, p) = (y.len() as f64, f64::from(rate));
        let deviation = (n * p * (1.0 - p)).sqrt();
        assert!((count(&y) - n * p).abs() < 4.0 * deviation, "rate {rate}: {} of {n}", count(&y));
        // No clip and no feature stands out.
        for clip in y.chunks(2304) {
            assert!((count(clip) - 2304.0 * p).abs() < 5.0 * (2304.0 * p * (1.0 - p)).sqrt());
        }
    }
}

#[test]
fn seed_step_and_clip_change_the_mask() {
    let mask = |op: Dropout, clip: usize| (0..256).map(|f| op.keeps(clip, f)).collect::<Vec<_>>();
    let base = mask(OP, 0);
    for other in [mask(Dropout { seed: 8, ..OP }, 0), mask(Dropout { step: 4, ..OP }, 0), mask(OP, 1)] {
        let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!((80..176).contains(&same), "{same} of 256 are equal");
    }
}

#[test]
fn cut_in_pieces_the_batch_has_the_same_mask() {
    let shape = ActivationShape::new(7, 1, 1, 1, 19);
    let x = fill::f32("dropout/x", shape.num_elements(), 1.0, 0.0);
    let whole = run(&Dropout { first_clip: 100, ..OP }, shape, &x, DENSE);
    for (start, n) in [(0, 3), (3, 4), (6, 1)] {
        let (part, elements) = (ActivationShape { n, ..shape }, start * 19..(start + n) * 19);
        let op = Dropout { first_clip: 100 + start, ..OP };
        assert_same_bits("piece", &run(&op, part, &x[elements.clone()], DENSE), &whole[elements]);
    }
}

#[test]
fn threads_and_memory_in_place_do_not_matter() {
    let shape = ActivationShape::new(4, 2, 9, 9, 65);
    let x = fill::f32("dropout/x", shape.num_elements(), 1.0, 0.0);
    let first = run(&OP, shape, &x, DENSE);
    for threads in [1, 2, 5] {
        assert_same_bits("threads", &with_threads(threads, || run(&OP, shape, &x, DENSE)), &first);
    }
    let place = Place { before: 2, after: 1 };
    let tensor = place.tensor(shape, &x);
    dropout::apply(&Device::Cpu.stream().unwrap(), &OP, &tensor, &tensor).unwrap();
    assert_same_bits("in place", &read(&tensor, place), &first);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gaps_do_not_matter(n in 1usize..5, t in 1usize..3, w in 1usize..4, c in 1usize..40, gaps in prop::array::uniform4(0usize..4)) {
        let shape = ActivationShape::new(n, t, 1, w, c);
        let x = fill::f32("gaps/x", shape.num_elements(), 1.0, 0.0);
        let places = [0, 2].map(|i| Place { before: gaps[i], after: gaps[i + 1] });
        assert_same_bits("y", &run(&OP, shape, &x, places), &run(&OP, shape, &x, DENSE));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let stream = Device::Cpu.stream().unwrap();
    let shape = ActivationShape::new(2, 1, 1, 1, 3);
    let x = Place::DENSE.garbage(shape);
    for rate in [1.0, -0.1, f32::NAN] {
        let error = dropout::apply(&stream, &Dropout { rate, ..OP }, &x, &x).unwrap_err();
        assert_eq!(error.to_string(), format!("dropout: rate must be in [0, 1), got {rate}"));
    }
    let y = Place::DENSE.garbage(ActivationShape::new(3, 1, 1, 1, 3));
    let error = dropout::apply(&stream, &OP, &x, &y).unwrap_err();
    assert_eq!(error.to_string(), "dropout: input must be [3,1,1,1,3], got [2,1,1,1,3]");
    let bytes = vcycle::device::Tensor::new(slice(&[0u8; 6]), shape, 3).unwrap();
    let error = dropout::apply(&stream, &OP, &bytes, &bytes).unwrap_err();
    assert_eq!(error.to_string(), "dropout: input must hold F32, got U8");
}
