//! The kernels of conv3d on wgmma, by the same checks as the others: on the emulator, and on a GPU of compute capability 9.0.

use vcycle::device::Device;
use vcycle::ops::conv3d::{self, Conv3d, Direction, Method, reference, with_method};
use vcycle::shape::ActivationShape;

use super::fused::{self, JOIN, JOIN_TABLE, Load, Store};
use super::fused_grad::{self, Kind};
use super::typed::{Half, assert_exact, garbage, held, slice, workspace};
use crate::executors;
use crate::golden::fill;

const ONE: [usize; 3] = [1; 3];
const NONE: [usize; 3] = [0; 3];

/// Target channels of a tile, and what it is used on. A tile has 128 rows, a step 64 channels.
#[rustfmt::skip]
const FORWARD: [(usize, fused::Fused); 13] = [
    // a ragged last split, the last tile of each with few rows; gaps; a last step of 8 channels
    (64, fused::case("affine_splits", [3, 2, 9, 8, 72], 64, ONE, ONE, NONE, 2, 8, Load::Affine, Store::Statistics)),
    // a last column of 8 channels; the first column stores
    (128, fused::case("join_columns", [2, 2, 5, 5, 64], 136, ONE, ONE, NONE, 2, 8, JOIN, Store::Statistics)),
    // two columns a tile, the last tile with one; more tiles than blocks: the rings go on
    (256, fused::case("plain_wide", [1, 1, 55, 20, 16], 384, ONE, ONE, NONE, 1, 0, Load::Plain, Store::Statistics)),
    (64, fused::case("evaluation", [1, 1, 5, 27, 192], 40, ONE, ONE, NONE, 1, 8, JOIN_TABLE, Store::Evaluation)),
    // gemm_k in slices
    (128, fused::case("slices", [1, 2, 5, 5, 520], 64, ONE, ONE, NONE, 1, 0, Load::Affine, Store::Statistics)),
    // strides: tiles that begin in the middle of a frame; a launch before it stores, or each reads both tensors
    (64, fused::case("strided", [3, 2, 19, 9, 72], 64, ONE, [1, 2, 2], NONE, 2, 8, Load::Affine, Store::Statistics)),
    (64, fused::case("strided_join", [2, 5, 7, 8, 64], 64, ONE, [2, 3, 1], NONE, 2, 8, Load::Join { table: true, stored: false },
         Store::Statistics)),
    // several taps of a frame: padding is zero, whatever the shift; tiles that begin in the middle of a frame
    (64, fused::case("affine_1x3x3", [3, 2, 7, 9, 64], 24, [1, 3, 3], ONE, [0, 1, 1], 2, 0, Load::Affine, Store::Statistics)),
    // several frames: the middle one stores
    (64, fused::case("join_3x1x1", [2, 3, 5, 5, 72], 64, [3, 1, 1], ONE, [1, 0, 0], 2, 8, JOIN, Store::Statistics)),
    // the other widths: the second column of a tile with few channels; a mean of 100 deviations
    (256, fused::case("affine_256", [3, 1, 5, 5, 16], 136, ONE, ONE, NONE, 2, 8, Load::Affine, Store::Statistics)),
    (128, fused::case("plain_128", [3, 1, 5, 5, 16], 136, ONE, ONE, NONE, 2, 0, Load::Plain, Store::Statistics)),
    (64, fused::case("plain_64", [3, 1, 5, 5, 16], 72, ONE, ONE, NONE, 2, 8, Load::Plain, Store::Statistics)),
    // both, in slices; halos of three boxes
    (64, fused::case("affine_3x3x3", [1, 2, 3, 192, 64], 16, [3, 3, 3], ONE, ONE, 1, 0, Load::Affine, Store::Evaluation)),
];

/// As [`FORWARD`].
#[rustfmt::skip]
const GRAD_INPUT: [(usize, fused_grad::Fused); 10] = [
    // a ragged last split, the last tile of each with few rows; gaps; a last step of 8 channels; dy stored
    (64, fused_grad::case("pointwise", [3, 2, 9, 8, 64], 72, ONE, ONE, NONE, 2, 8, Some(true), false, Kind::Recomputed, 1)),
    // a last column of 8 channels; the first column stores; the end of a block
    (128, fused_grad::case("join", [2, 2, 5, 5, 136], 64, ONE, ONE, NONE, 2, 0, Some(true), true, Kind::Output, 2)),
    // two columns a tile, the last tile with one; more tiles than blocks
    (256, fused_grad::case("plain_wide", [1, 1, 55, 20, 384], 16, ONE, ONE, NONE, 1, 0, None, true, Kind::None, 2)),
    // gemm_k in slices
    (128, fused_grad::case("slices", [1, 2, 5, 5, 64], 520, ONE, ONE, NONE, 1, 0, Some(false), true, Kind::Output, 1)),
    // several taps of a frame: padding is zero, whatever C
    (64, fused_grad::case("1x3x3", [3, 2, 7, 9, 24], 64, [1, 3, 3], ONE, [0, 1, 1], 2, 0, Some(true), false, Kind::Recomputed, 1)),
    // several frames: the middle one stores
    (64, fused_grad::case("3x1x1", [2, 3, 5, 5, 64], 72, [3, 1, 1], ONE, [1, 0, 0], 2, 8, Some(true), true, Kind::Output, 2)),
    // the other widths without a table
    (128, fused_grad::case("plain_128", [3, 1, 5, 5, 136], 16, ONE, ONE, NONE, 2, 8, None, false, Kind::Recomputed, 2)),
    (64, fused_grad::case("plain_64", [3, 1, 5, 5, 72], 16, ONE, ONE, NONE, 2, 0, None, false, Kind::Recomputed, 2)),
    (64, fused_grad::case("3x3x3_250", [1, 2, 3, 250, 16], 64, [3, 3, 3], ONE, ONE, 1, 0, None, true, Kind::Recomputed, 1)),
    // distances from the mean lost digits here before they were taken from an origin that the type holds
    (64, fused_grad::case("3x3x3", [1, 2, 3, 192, 16], 64, [3, 3, 3], ONE, ONE, 1, 0, None, true, Kind::Recomputed, 1)),
];
/// Too slow for all modes.
const LARGE: [&str; 4] = ["plain_wide", "affine_3x3x3", "3x3x3_250", "3x3x3"];

/// Devices that run wgmma.
fn devices() -> impl Iterator<Item = Device> {
    executors::with_kernels().into_iter().filter(|device| match device {
        Device::Cuda(device) => device.gpu().compute_capability == (9, 0),
        _ => true,
    })
}

fn on_wgmma(tile_n: usize, work: impl FnOnce()) {
    with_method(Method::Wgmma { tile_n: Some(tile_n) }, work);
}

#[test]
fn wgmma_forward_agrees_with_the_reference() {
    for device in devices() {
        for (tile_n, case) in &FORWARD {
            on_wgmma(*tile_n, || {
                fused::check::<half::bf16>(&device, case);
                fused::check::<half::f16>(&device, case);
            });
        }
    }
}

#[test]
fn wgmma_grad_input_agrees_with_the_reference() {
    for device in devices() {
        for (tile_n, case) in &GRAD_INPUT {
            on_wgmma(*tile_n, || {
                fused_grad::check::<half::bf16>(&device, case);
                fused_grad::check::<half::f16>(&device, case);
            });
        }
    }
}

#[test]
fn wgmma_gives_the_same_bits_in_all_modes() {
    for device in devices() {
        for (tile_n, case) in FORWARD.iter().filter(|(_, case)| !LARGE.contains(&case.name)) {
            on_wgmma(*tile_n, || fused::same_bits_in_all_modes::<half::bf16>(&device, case));
        }
        for (tile_n, case) in GRAD_INPUT.iter().filter(|(_, case)| !LARGE.contains(&case.name)) {
            on_wgmma(*tile_n, || fused_grad::same_bits_in_all_modes::<half::bf16>(&device, case));
        }
    }
}

/// Channels out of the middle of wider tensors, on either side.
#[test]
fn wgmma_takes_views_of_wider_tensors() {
    let op = Conv3d {
        input: ActivationShape::new(1, 2, 3, 5, 64),
        c_out: 32,
        filter: [3, 1, 1],
        stride: ONE,
        padding: [1, 0, 0],
        dilation: ONE,
        groups: 1,
        part: None,
    };
    let values =
        |name: &str, n: usize| -> Vec<f64> { fill::int(name, n, 7).into_iter().map(|v| v as f64 - 3.0).collect() };
    let (x, w) = (values("x", op.input.num_elements()), values("w", op.filter_len()));
    for device in devices() {
        let stream = device.stream().expect("stream");
        let wide: Vec<f64> = x.chunks(64).flat_map(|x| [&[9.0; 8][..], x, &[9.0; 16]].concat()).collect();
        let wide = held::<half::bf16>(&device, op.input.with_channels(88), &wide, 0);
        let to = garbage::<half::bf16>(&device, op.output().with_channels(72), 0);
        let (from, into) = (wide.tensor.channels(8, 64).expect("view"), to.tensor.channels(24, 32).expect("view"));
        let filter = slice::<half::bf16>(&device, &w);
        let scratch = workspace(&device, conv3d::workspace_bytes(&stream, &op, Direction::Forward));
        on_wgmma(64, || conv3d::forward(&stream, &op, &from, &filter, None, &into, &scratch).expect("forward"));
        let want: Vec<f64> = reference::forward(&op, &x, &w, None).into_iter().map(half::bf16::store).collect();
        for (got, want) in to.read::<half::bf16>().chunks(72).zip(want.chunks(32)) {
            assert_exact(&format!("on {device}"), &got[24..56], want);
            assert!(got[..24].iter().chain(&got[56..]).all(|v| v.is_nan()), "channels beside the view were written");
        }
    }
}

#[test]
fn what_wgmma_does_not_take_is_refused_by_name() {
    let case = fused::case(
        "strided",
        [1, 1, 5, 5, 64],
        64,
        [1, 3, 3],
        [1, 2, 2],
        [0, 1, 1],
        1,
        0,
        Load::Plain,
        Store::Statistics,
    );
    for device in devices() {
        let refused = std::panic::catch_unwind(|| on_wgmma(64, || fused::check::<half::bf16>(&device, &case)));
        let message = refused.expect_err("a stride").downcast::<String>().expect("a message");
        assert!(message.contains("wgmma does not take [1,1,5,5,64]: a stride"), "{message}");
    }
}
