//! Tickets, reductions and moments: what kernels share beyond single instructions (kernels/common).

use super::unit::{UnitCase, bytes};

pub fn cases() -> Vec<UnitCase> {
    vec![last_block(0), last_block(1), reductions(), moments()]
}

fn last_block(part: i32) -> UnitCase {
    let blocks = 37u32;
    let mut expected = vec![0]; // the counter is zero again
    expected.extend(1..=blocks);
    expected.push(blocks * (blocks + 1) / 2);
    UnitCase {
        name: format!("the last {} sums up", ["block", "part of a block"][part as usize]),
        kernel: "unit_last_block",
        grid: blocks,
        block: 96,
        shared_bytes: 4,
        flags: [part, 0, 0, 0, 0, 0],
        expected: bytes(&expected),
        ..Default::default()
    }
}

/// Values whose sums depend on the order.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 40.0) / 7.0 + 1000.0).collect()
}

/// In each lane the result over lanes whose numbers differ in the bits `step .. width`, the lowest bit first.
fn butterfly<T: Copy>(mut lanes: Vec<T>, step: usize, width: usize, join: impl Fn(T, T) -> T) -> Vec<T> {
    let mut bit = step;
    while bit < width {
        lanes = (0..lanes.len()).map(|l| join(lanes[l & !bit], lanes[l | bit])).collect();
        bit *= 2;
    }
    lanes
}

fn reductions() -> UnitCase {
    let all = values(96);
    let of_warps = |step, width, join: fn(f32, f32) -> f32| -> Vec<f32> {
        all.chunks(32).flat_map(|warp| butterfly(warp.to_vec(), step, width, join)).collect()
    };
    let add = |a: f32, b: f32| a + b;
    let sums = of_warps(1, 32, add);
    let block = sums[0] + sums[32] + sums[64];
    let expected = [sums, of_warps(1, 8, add), of_warps(4, 32, add), of_warps(1, 32, f32::max), vec![block; 96]];
    UnitCase {
        name: "reductions over lanes and threads".into(),
        kernel: "unit_reduce",
        grid: 1,
        block: 96,
        shared_bytes: 12,
        a: bytes(&all),
        expected: bytes(&expected.concat()),
        ..Default::default()
    }
}

/// Count, mean and sum of squared deviations of two sets.
fn merge(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    let count = a[0] + b[0];
    let share = if count > 0.0 { b[0] / count } else { 0.0 };
    let delta = b[1] - a[1];
    [count, delta.mul_add(share, a[1]), (delta * delta).mul_add(a[0] * share, a[2] + b[2])]
}

fn moments() -> UnitCase {
    let a = values(32);
    let members = |lane: usize| (0..lane % 5).map(move |i| (4 * lane + i) % 32);
    let set = |lane: usize| members(lane).fold([0.0; 3], |m, i| merge(m, [1.0, a[i], 0.0]));
    let joined = butterfly((0..32).map(set).collect(), 1, 32, merge)[0];
    let (mut n, mut distance, mut square, mut m2) = (0f64, 0f64, 0f64, 0f64);
    for set in (0..32).map(set) {
        let [count, mean, of_set] = set.map(f64::from);
        let d = mean - f64::from(a[0]);
        n += count;
        distance = count.mul_add(d, distance);
        square = (count * d).mul_add(d, square);
        m2 += of_set;
    }
    let sums = [n, f64::from(a[0]) + distance / n, m2 + (-distance).mul_add(distance / n, square)].map(|v| v as f32);
    // Both ways must be right, not only reproducible: against the plain definition in f64.
    let all: Vec<f64> = (0..32).flat_map(members).map(|i| f64::from(a[i])).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let plain = [all.len() as f64, mean, all.iter().map(|v| (v - mean).powi(2)).sum()];
    // A mean in f32 is off by 2^-24 * 1000, which is 1.5e-5 of the deviation.
    for (got, want) in [joined, sums].iter().flatten().zip(plain.iter().chain(&plain)) {
        assert!((f64::from(*got) - want).abs() <= 1.5e-5 * want, "{got} is not {want}");
    }
    UnitCase {
        name: "moments of sets of values".into(),
        kernel: "unit_moments",
        grid: 1,
        block: 32,
        a: bytes(&a),
        expected: bytes(&[joined, sums].concat().iter().flat_map(|v| [*v; 32]).collect::<Vec<f32>>()),
        ..Default::default()
    }
}
