//! Tiles of the kernels on mma.sync that no other case meets in both types. `make kernel-report` says whether a kernel is launched by
//! no test; those on wgmma are in wgmma.rs.

use super::fused::{self, JOIN, JOIN_TABLE, Load, Store};
use super::fused_grad::{self, Kind};
use crate::executors;

const ONE: [usize; 3] = [1; 3];
const NONE: [usize; 3] = [0; 3];
const MIDDLE: [usize; 3] = [1, 3, 3];
const PADDED: [usize; 3] = [0, 1, 1];

/// With the tile in the name.
#[rustfmt::skip]
const FORWARD: [fused::Fused; 5] = [
    // two columns, the second of 72 channels
    fused::case("affine_mma128x128", [3, 1, 3, 4, 16], 200, ONE, ONE, NONE, 2, 8, Load::Affine, Store::Statistics),
    fused::case("join_mma128x128", [3, 1, 3, 4, 16], 200, ONE, ONE, NONE, 2, 8, JOIN_TABLE, Store::Statistics),
    // boxes of rows; the last 8 channels do not exist
    fused::case("affine_halo128x32", [3, 2, 5, 6, 8], 24, MIDDLE, ONE, PADDED, 2, 8, Load::Affine, Store::Statistics),
    fused::case("join_halo128x32", [3, 2, 5, 6, 8], 24, MIDDLE, ONE, PADDED, 2, 0, JOIN, Store::Statistics),
    fused::case("affine_halo256x16", [3, 2, 7, 6, 8], 16, MIDDLE, ONE, PADDED, 2, 8, Load::Affine, Store::Evaluation),
];

/// As [`FORWARD`].
#[rustfmt::skip]
const GRAD_INPUT: [fused_grad::Fused; 3] = [
    fused_grad::case("table_mma128x128", [3, 1, 3, 4, 200], 16, ONE, ONE, NONE, 2, 8, Some(true), true, Kind::Output, 2),
    fused_grad::case("halo128x32", [3, 2, 5, 6, 24], 8, MIDDLE, ONE, PADDED, 2, 8, None, true, Kind::Recomputed, 1),
    fused_grad::case("table_halo128x32", [3, 2, 5, 6, 24], 8, MIDDLE, ONE, PADDED, 2, 0, Some(true), false, Kind::Output, 2),
];

#[test]
fn every_tile_agrees_with_the_reference() {
    for device in executors::with_kernels() {
        for case in &FORWARD {
            fused::check::<half::bf16>(&device, case);
            fused::check::<half::f16>(&device, case);
        }
        for case in &GRAD_INPUT {
            fused_grad::check::<half::bf16>(&device, case);
            fused_grad::check::<half::f16>(&device, case);
        }
    }
}

#[test]
fn every_tile_gives_the_same_bits_in_all_modes() {
    for device in executors::with_kernels() {
        for case in &FORWARD {
            fused::same_bits_in_all_modes::<half::bf16>(&device, case);
            fused::same_bits_in_all_modes::<half::f16>(&device, case);
        }
        for case in &GRAD_INPUT {
            fused_grad::same_bits_in_all_modes::<half::bf16>(&device, case);
            fused_grad::same_bits_in_all_modes::<half::f16>(&device, case);
        }
    }
}
