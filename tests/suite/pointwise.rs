//! copy, add, fill.

use proptest::prelude::*;
use vcycle::device::Device;
use vcycle::ops::pointwise;
use vcycle::shape::ActivationShape;

use crate::compare::{Place, assert_same_bits, integers, read, with_threads};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_gaps(n in 1usize..4, t in 1usize..3, w in 1usize..20, c in 1usize..70, gaps in prop::array::uniform4(0usize..4)) {
        let shape = ActivationShape::new(n, t, 3, w, c);
        let stream = Device::Cpu.stream().unwrap();
        let [from, to] = [0, 2].map(|i| Place { before: gaps[i], after: gaps[i + 1] });
        let (x, y) = (integers("x", shape.num_elements(), 100), integers("y", shape.num_elements(), 100));
        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        let (input, output) = (from.tensor(shape, &x), to.tensor(shape, &y));
        pointwise::add(&stream, &input, &output).unwrap();
        assert_same_bits("add", &read(&output, to), &sum);
        pointwise::copy(&stream, &input, &output).unwrap();
        assert_same_bits("copy", &read(&output, to), &x);
        pointwise::fill(&stream, &output, 2.5).unwrap();
        assert_same_bits("fill", &read(&output, to), &vec![2.5; x.len()]);
        assert_same_bits("input", &read(&input, from), &x);
    }
}

#[test]
fn several_blocks_and_any_number_of_threads() {
    let shape = ActivationShape::new(2, 4, 31, 29, 48);
    let stream = Device::Cpu.stream().unwrap();
    let x = integers("x", shape.num_elements(), 100);
    let sum: Vec<f32> = x.iter().map(|x| 3.0 + x).collect();
    for threads in [1, 2, 5] {
        let (input, output) = (Place::DENSE.tensor(shape, &x), Place { before: 0, after: 16 }.garbage(shape));
        with_threads(threads, || {
            pointwise::fill(&stream, &output, 3.0).unwrap();
            pointwise::add(&stream, &input, &output).unwrap();
        });
        assert_same_bits("add", &output.read::<f32>().unwrap(), &sum);
    }
}

#[test]
fn the_same_memory_twice() {
    let shape = ActivationShape::new(1, 1, 2, 2, 3);
    let stream = Device::Cpu.stream().unwrap();
    let x = integers("x", 12, 100);
    let tensor = Place::DENSE.tensor(shape, &x);
    pointwise::copy(&stream, &tensor, &tensor).unwrap();
    assert_same_bits("copy", &tensor.read::<f32>().unwrap(), &x);
    pointwise::add(&stream, &tensor, &tensor).unwrap();
    assert_same_bits("add", &tensor.read::<f32>().unwrap(), &x.iter().map(|x| x + x).collect::<Vec<_>>());
}

#[test]
fn what_does_not_fit_is_refused() {
    let stream = Device::Cpu.stream().unwrap();
    let (a, b) = (ActivationShape::new(1, 1, 2, 2, 3), ActivationShape::new(1, 1, 2, 2, 4));
    let (x, y) = (Place::DENSE.garbage(a), Place::DENSE.garbage(b));
    let want = "copy: input must be [1,1,2,2,4], got [1,1,2,2,3]";
    assert_eq!(pointwise::copy(&stream, &x, &y).unwrap_err().to_string(), want);
    let empty = Place::DENSE.garbage(ActivationShape::new(0, 1, 2, 2, 3));
    assert_eq!(pointwise::fill(&stream, &empty, 0.0).unwrap_err().to_string(), "fill: output is empty: [0,1,2,2,3]");
}
