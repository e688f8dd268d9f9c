//! wgmma in every size, type, major and swizzle, A from shared memory and from registers; setmaxnreg.

use vcycle::device::Swizzle;

use super::unit::{UnitCase, bytes};
use super::unit_matrix::half_bits;
use super::unit_tma::swizzled;

pub fn cases() -> Vec<UnitCase> {
    let mut all = vec![setmaxnreg(), chain()];
    let plain = Wgmma {
        n: 64,
        is_bf16: true,
        a_in_registers: false,
        a_is_m_major: false,
        b_is_n_major: false,
        swizzle: Swizzle::Bytes128,
        k_step: 0,
        atoms_follow_k: false,
        accumulate: false,
        kernel: "unit_wgmma_major",
    };
    for n in (8..=256).step_by(8) {
        for (is_bf16, a_in_registers, kernel) in [
            (true, false, "unit_wgmma_ss_bf16"),
            (false, false, "unit_wgmma_ss_f16"),
            (true, true, "unit_wgmma_rs_bf16"),
            (false, true, "unit_wgmma_rs_f16"),
        ] {
            all.push(Wgmma { n, is_bf16, a_in_registers, kernel, accumulate: n % 16 == 0, ..plain }.case());
        }
    }
    for swizzle in [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
        for is_bf16 in [true, false] {
            for (a_is_m_major, b_is_n_major) in [(false, false), (false, true), (true, false), (true, true)] {
                all.push(Wgmma { swizzle, is_bf16, a_is_m_major, b_is_n_major, ..plain }.case());
            }
            all.push(Wgmma { swizzle, is_bf16, a_in_registers: true, b_is_n_major: true, ..plain }.case());
        }
    }
    // The second, third and fourth 16 columns of k inside rows of 128 bytes: the address moves by 32 bytes.
    all.extend((1..4).map(|k_step| Wgmma { k_step, ..plain }.case()));
    for (n, is_bf16) in [(64, true), (128, false), (256, true)] {
        let kernel = if is_bf16 { "unit_wgmma_rs_bf16" } else { "unit_wgmma_rs_f16" };
        let in_registers = Wgmma { n, is_bf16, a_in_registers: true, kernel, ..plain };
        all.extend((1..4).map(|k_step| Wgmma { k_step, ..in_registers }.case()));
    }
    // N-major and wider than a row of 128 bytes, the atoms side by side or one after another: the leading offset counts. The
    // next 16 k are two rows of atoms on.
    for n in [128, 256] {
        for (is_bf16, atoms_follow_k, k_step) in
            [(true, false, 0), (false, false, 1), (true, true, 0), (false, true, 3)]
        {
            let n_major = Wgmma { n, is_bf16, a_in_registers: true, b_is_n_major: true, ..plain };
            all.push(Wgmma { atoms_follow_k, k_step, kernel: "unit_wgmma_rs_n_major", ..n_major }.case());
        }
    }
    all
}

#[derive(Clone, Copy)]
struct Wgmma {
    n: usize,
    is_bf16: bool,
    a_in_registers: bool,
    a_is_m_major: bool,
    b_is_n_major: bool,
    swizzle: Swizzle,
    k_step: usize,
    atoms_follow_k: bool,
    accumulate: bool,
    kernel: &'static str,
}

/// An operand in shared memory: bytes, and its descriptor for address 0.
pub struct Operand {
    pub image: Vec<u8>,
    pub descriptor: u64,
}

fn row_bytes(swizzle: Swizzle) -> usize {
    match swizzle {
        Swizzle::None => 16,
        Swizzle::Bytes32 => 32,
        Swizzle::Bytes64 => 64,
        Swizzle::Bytes128 => 128,
    }
}

/// Places `value(mn, k)` for `count` rows or columns and `depth` k, which begin at column 16 * `k_step` of the stored matrix.
///
/// The unit is the atom: 8 rows of `row_bytes`. K-major: the rows are mn, an atom holds `row_bytes / 2` k. MN-major: the
/// rows are k. Atoms follow each other, first along mn, then along k.
pub fn place(
    count: usize,
    depth: usize,
    mn_major: bool,
    swizzle: Swizzle,
    k_step: usize,
    value: impl Fn(usize, usize) -> u16,
) -> Operand {
    place_atoms(count, depth, mn_major, swizzle, k_step, false, value)
}

/// [`place`], or with `atoms_follow_k` first along k, then along mn.
fn place_atoms(
    count: usize,
    depth: usize,
    mn_major: bool,
    swizzle: Swizzle,
    k_step: usize,
    atoms_follow_k: bool,
    value: impl Fn(usize, usize) -> u16,
) -> Operand {
    let row = row_bytes(swizzle);
    let per_row = row / 2;
    let atom_bytes = 8 * row;
    let stored_depth = 16 * k_step + depth;
    let (rows_total, columns_total) = if mn_major { (stored_depth, count) } else { (count, stored_depth) };
    let atoms_in_columns = columns_total.div_ceil(per_row);
    let atoms_in_rows = rows_total / 8;
    // Distance of atoms that are neighbours along the rows and along the columns.
    let (row_pitch, column_pitch) = if mn_major != atoms_follow_k {
        (atoms_in_columns * atom_bytes, atom_bytes)
    } else {
        (atom_bytes, atoms_in_rows * atom_bytes)
    };
    let mut image = vec![0; atoms_in_columns * atoms_in_rows * atom_bytes];
    for mn in 0..count {
        for k in 0..depth {
            let stored_k = k + 16 * k_step;
            let (r, c) = if mn_major { (stored_k, mn) } else { (mn, stored_k) };
            let inside = r % 8 * row + c % per_row * 2;
            let at = r / 8 * row_pitch + c / per_row * column_pitch + swizzled(inside, swizzle);
            image[at..at + 2].copy_from_slice(&value(mn, k).to_le_bytes());
        }
    }
    // With a swizzle the stride offset goes from 8 rows to the next 8, the leading offset from one atom to the next along
    // the rows (M/N-major only). Without, the leading offset goes along k, the stride offset along m or n.
    let is_swizzled = swizzle != Swizzle::None;
    let (stride, leading) = match (is_swizzled, mn_major) {
        (true, _) => (row_pitch, column_pitch),
        (false, false) => (row_pitch, column_pitch),
        (false, true) => (column_pitch, row_pitch),
    };
    let mode: u64 = match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes128 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes32 => 3,
    };
    // K-major: inside the row. M/N-major: two rows of atoms.
    let start = if mn_major { 2 * k_step * row_pitch } else { 32 * k_step } as u64;
    let descriptor = start >> 4 | (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62;
    Operand { image, descriptor }
}

impl Wgmma {
    fn case(self) -> UnitCase {
        let a = |m: usize, k: usize| (m * 3 + k * 5) as i32 % 15 - 7;
        let b = |k: usize, n: usize| (k * 7 + n * 2 + n / 8) as i32 % 13 - 6;
        let half = |v: i32| half_bits(v, self.is_bf16);
        let operand_a = place(64, 16, self.a_is_m_major, self.swizzle, self.k_step, |m, k| half(a(m, k)));
        let b_of = |n: usize, k: usize| half(b(k, n));
        let operand_b =
            place_atoms(self.n, 16, self.b_is_n_major, self.swizzle, self.k_step, self.atoms_follow_k, b_of);
        let mut image = operand_a.image;
        image.resize(image.len().next_multiple_of(1024), 0);
        let b_start = image.len() as u64;
        image.extend(operand_b.image);
        let registers = fragments(|m, k| half(a(m, k)));
        let factor = if self.accumulate { 2 } else { 1 };
        let expected: Vec<f32> = (0..64 * self.n)
            .map(|i| (factor * (0..16).map(|k| a(i / self.n, k) * b(k, i % self.n)).sum::<i32>()) as f32)
            .collect();
        let flag = i32::from;
        UnitCase {
            name: format!(
                "wgmma n{}, bf16 {}, A in registers {}, M-major {}, N-major {}, swizzle {:?}, k step {}{}",
                self.n,
                self.is_bf16,
                self.a_in_registers,
                self.a_is_m_major,
                self.b_is_n_major,
                self.swizzle,
                self.k_step,
                if self.atoms_follow_k { ", atoms along k first" } else { "" }
            ),
            kernel: self.kernel,
            grid: 1,
            block: 128,
            shared_bytes: image.len() as u32,
            bits: [operand_a.descriptor, operand_b.descriptor + (b_start >> 4)],
            flags: [
                self.n as i32,
                flag(self.accumulate),
                image.len() as i32,
                flag(self.a_is_m_major),
                flag(self.b_is_n_major),
                flag(self.is_bf16) | flag(self.a_in_registers) << 1,
            ],
            a: image,
            c: bytes(&registers),
            expected: bytes(&expected),
            ..Default::default()
        }
    }
}

/// A's registers, `[thread][4]`, of 64 x 16 values.
fn fragments(value: impl Fn(usize, usize) -> u16) -> Vec<u32> {
    let mut registers = Vec::new();
    for thread in 0..128 {
        let (row, column) = (thread / 32 * 16 + thread % 32 / 4, thread % 4 * 2);
        for (dr, dc) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
            let [low, high] = [0, 1].map(|i| u32::from(value(row + dr, column + dc + i)));
            registers.push(low | high << 16);
        }
    }
    registers
}

/// 64 k in a chain of products, B as a stage of a convolution's filter: rows of 64 k, swizzled.
fn chain() -> UnitCase {
    const N: usize = 256;
    let a = |m: usize, k: usize| (m * 3 + k * 5) as i32 % 15 - 7;
    let b = |k: usize, n: usize| (k * 7 + n * 2 + n / 8) as i32 % 13 - 6;
    let half = |v: i32| half_bits(v, true);
    let operand = place(N, 64, false, Swizzle::Bytes128, 0, |n, k| half(b(k, n)));
    let registers: Vec<u32> = (0..4).flat_map(|step| fragments(|m, k| half(a(m, 16 * step + k)))).collect();
    let sum = |i: usize| (0..64).map(|k| a(i / N, k) * b(k, i % N)).sum::<i32>() as f32;
    UnitCase {
        name: "wgmma n256 in a chain over 64 k, one group in flight".into(),
        kernel: "unit_wgmma_chain",
        grid: 1,
        block: 128,
        shared_bytes: operand.image.len() as u32,
        bits: [32 >> 4, operand.descriptor],
        flags: [N as i32, 4, operand.image.len() as i32, 0, 0, 1],
        a: operand.image,
        c: bytes(&registers),
        expected: bytes(&(0..64 * N).map(sum).collect::<Vec<f32>>()),
        ..Default::default()
    }
}

fn setmaxnreg() -> UnitCase {
    UnitCase {
        name: "setmaxnreg".into(),
        kernel: "unit_setmaxnreg",
        grid: 1,
        block: 384,
        expected: bytes(&(0..384).collect::<Vec<u32>>()),
        ..Default::default()
    }
}
