//! ldmatrix, stmatrix, mma.sync, fma.rn.oob and griddepcontrol.

use half::{bf16, f16};

use super::unit::{UnitCase, bytes};

pub fn cases() -> Vec<UnitCase> {
    let mut all = vec![fma_oob(), griddep()];
    for num in [1, 2, 4] {
        for transpose in [false, true] {
            all.push(ldmatrix(num, transpose));
            all.push(stmatrix(num, transpose));
        }
    }
    for is_bf16 in [false, true] {
        all.push(mma(8, is_bf16));
        all.push(mma(16, is_bf16));
    }
    all
}

/// The bits of a small integer as bf16 or f16.
pub fn half_bits(value: i32, is_bf16: bool) -> u16 {
    if is_bf16 { bf16::from_f32(value as f32).to_bits() } else { f16::from_f32(value as f32).to_bits() }
}

/// Row and column of the two elements that a lane holds of an 8 x 8 matrix.
fn elements_of(lane: usize, transpose: bool) -> [(usize, usize); 2] {
    [0, 1].map(|i| {
        let (major, minor) = (lane / 4, lane % 4 * 2 + i);
        if transpose { (minor, major) } else { (major, minor) }
    })
}

/// Four matrices whose elements tell where they are, `[matrix][row][column]`.
fn matrices() -> Vec<u16> {
    (0..256).map(|i| 0x1000 + i as u16).collect()
}

fn fragments(num: usize, transpose: bool) -> Vec<u32> {
    let values = matrices();
    let mut registers = Vec::new();
    for matrix in 0..num {
        for lane in 0..32 {
            let [low, high] = elements_of(lane, transpose).map(|(r, c)| u32::from(values[matrix * 64 + r * 8 + c]));
            registers.push(low | high << 16);
        }
    }
    registers
}

fn ldmatrix(num: usize, transpose: bool) -> UnitCase {
    UnitCase {
        name: format!("ldmatrix x{num}, transpose {transpose}"),
        kernel: "unit_ldmatrix",
        grid: 1,
        block: 32,
        shared_bytes: 512,
        a: bytes(&matrices()),
        flags: [num as i32, i32::from(transpose), 0, 0, 0, 0],
        expected: bytes(&fragments(num, transpose)),
        ..Default::default()
    }
}

fn stmatrix(num: usize, transpose: bool) -> UnitCase {
    let mut expected = matrices();
    expected[num * 64..].fill(0);
    UnitCase {
        name: format!("stmatrix x{num}, transpose {transpose}"),
        kernel: "unit_stmatrix",
        grid: 1,
        block: 32,
        shared_bytes: 512,
        a: bytes(&fragments(num, transpose)),
        flags: [num as i32, i32::from(transpose), 0, 0, 0, 0],
        expected: bytes(&expected),
        ..Default::default()
    }
}

fn mma(k: usize, is_bf16: bool) -> UnitCase {
    let a = |m: usize, k: usize| (m * 5 + k * 3) as i32 % 11 - 5;
    let b = |k: usize, n: usize| (k * 7 + n * 2) as i32 % 13 - 6;
    let c = |m: usize, n: usize| (m * 8 + n) as i32 - 64;
    let pair = |x: i32, y: i32| u32::from(half_bits(x, is_bf16)) | u32::from(half_bits(y, is_bf16)) << 16;
    let (mut a_registers, mut b_registers, mut c_registers, mut expected) = (vec![], vec![], vec![], vec![]);
    for lane in 0..32 {
        let (group, quad) = (lane / 4, lane % 4 * 2);
        for half in 0..k / 8 {
            let column = quad + 8 * half;
            a_registers.push(pair(a(group, column), a(group, column + 1)));
            a_registers.push(pair(a(group + 8, column), a(group + 8, column + 1)));
            b_registers.push(pair(b(column, group), b(column + 1, group)));
        }
        for (row, column) in [(group, quad), (group, quad + 1), (group + 8, quad), (group + 8, quad + 1)] {
            let sum: i32 = (0..k).map(|i| a(row, i) * b(i, column)).sum();
            c_registers.push(c(row, column) as f32);
            expected.push((c(row, column) + sum) as f32);
        }
    }
    UnitCase {
        name: format!("mma.sync m16n8k{k}, bf16 {is_bf16}"),
        kernel: "unit_mma",
        grid: 1,
        block: 32,
        a: bytes(&a_registers),
        b: bytes(&b_registers),
        c: bytes(&c_registers),
        flags: [k as i32, i32::from(is_bf16), 0, 0, 0, 0],
        expected: bytes(&expected),
        ..Default::default()
    }
}

/// Bit patterns that are finite as f16 and as bf16, except that every fourth factor is the NaN of an out-of-bounds element.
fn fma_oob() -> UnitCase {
    const OOB_NAN: u16 = 0x7FFF;
    let a: Vec<u16> = (0..64).map(|i| if i % 4 == 1 { OOB_NAN } else { 0x3C00 + 16 * i }).collect();
    let b: Vec<u16> = (0..64).map(|i| if i % 8 == 2 { OOB_NAN } else { 0x4000 + 32 * i }).collect();
    let c: Vec<u16> = (0..64).map(|i| 0xB800 + 8 * i).collect();
    let is_oob = |i: usize| a[i] == OOB_NAN || b[i] == OOB_NAN;
    // Products of these patterns have few bits: f64 sums are exact, so there is one rounding.
    let as_f16 = (0..64).map(|i| {
        let [x, y, z] = [a[i], b[i], c[i]].map(|bits| f16::from_bits(bits).to_f64());
        if is_oob(i) { 0 } else { f16::from_f64(x * y + z).to_bits() }
    });
    let as_bf16 = (0..64).map(|i| {
        let [x, y, z] = [a[i], b[i], c[i]].map(|bits| bf16::from_bits(bits).to_f64());
        if is_oob(i) { 0 } else { bf16::from_f64(x * y + z).to_bits() }
    });
    let expected: Vec<u16> = as_f16.chain(as_bf16).collect();
    UnitCase {
        name: "fma.rn.oob".into(),
        kernel: "unit_fma_oob",
        grid: 1,
        block: 32,
        a: bytes(&a),
        b: bytes(&b),
        c: bytes(&c),
        expected: bytes(&expected),
        ..Default::default()
    }
}

fn griddep() -> UnitCase {
    UnitCase {
        name: "griddepcontrol".into(),
        kernel: "unit_griddep",
        grid: 1,
        block: 32,
        expected: bytes(&(0..32).collect::<Vec<u32>>()),
        ..Default::default()
    }
}
