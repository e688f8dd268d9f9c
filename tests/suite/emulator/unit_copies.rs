//! cp.async.

use super::unit::{UnitCase, bytes};

pub fn cases() -> Vec<UnitCase> {
    let mut all = vec![ring(1), ring(3), ring(9)];
    for (piece, around_first_level) in [(4, false), (8, false), (16, false), (16, true)] {
        all.push(copy(piece, piece, 1, around_first_level));
        all.push(copy(piece, 0, piece + 1, around_first_level));
    }
    all
}

/// Thread `t` copies the first `first + t % variants` bytes of its piece; the rest becomes 0.
fn copy(piece: usize, first: usize, variants: usize, around_first_level: bool) -> UnitCase {
    let source: Vec<u8> = (0..32 * piece).map(|i| (i * 7 + 1) as u8).collect();
    let expected =
        (0..32 * piece).map(|i| if i % piece < first + i / piece % variants { source[i] } else { 0 }).collect();
    UnitCase {
        name: format!(
            "cp.async.{} of {piece} bytes, {first} to {} of them read",
            if around_first_level { "cg" } else { "ca" },
            first + variants - 1
        ),
        kernel: "unit_cp_async",
        grid: 1,
        block: 32,
        shared_bytes: 512,
        a: source,
        flags: [first as i32, variants as i32, piece as i32, i32::from(around_first_level), 0, 0],
        expected,
        ..Default::default()
    }
}

fn ring(pieces: usize) -> UnitCase {
    let source: Vec<u32> = (0..pieces * 128).map(|i| (i * i % 1009) as u32).collect();
    let expected: Vec<u32> = (0..128).map(|i| (0..pieces).map(|p| source[p * 128 + i]).sum()).collect();
    UnitCase {
        name: format!("cp.async ring, {pieces} pieces"),
        kernel: "unit_cp_async_ring",
        grid: 1,
        block: 32,
        shared_bytes: 2048,
        a: bytes(&source),
        flags: [pieces as i32, 0, 0, 0, 0, 0],
        expected: bytes(&expected),
        ..Default::default()
    }
}
