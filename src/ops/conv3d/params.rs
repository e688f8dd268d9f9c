//! What the kernels take, field by field as in `kernels/conv3d/params.cuh` and `mapping.cuh`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::Conv3d;
use crate::device::{Slice, Tensor};
use crate::ops::batch_norm::params::{GradientTables, StatisticsTables};
use crate::shape::ActivationShape;

/// The address of a slice, 0 for none.
pub(super) fn address(slice: Option<&Slice>) -> u64 {
    slice.map_or(0, Slice::address)
}

/// The address and the channel pitch of a tensor, zeros for none.
pub(super) fn placed(tensor: Option<&Tensor>) -> (u64, i32) {
    tensor.map_or((0, 0), |t| (t.memory().address(), t.pitch_c() as i32))
}

/// Division of numbers below 2^31 by a product and a shift.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct FastDiv {
    divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl FastDiv {
    pub(super) fn by(divisor: u32) -> FastDiv {
        let shift = u64::from(divisor).next_power_of_two().trailing_zeros();
        let excess = (1u64 << shift) - u64::from(divisor);
        FastDiv { divisor, multiplier: ((excess << 32) / u64::from(divisor) + 1) as u32, shift }
    }
}

/// One axis: tap k of output o reads input `o * stride + first + k * dilation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct ConvAxis {
    pub input: i32,
    pub output: i32,
    pub filter: i32,
    pub stride: i32,
    pub first: i32,
    pub dilation: i32,
}

impl ConvAxis {
    /// The axes t, h, w of a convolution whose sizes the plan has checked.
    pub(super) fn of(op: &Conv3d, output: ActivationShape) -> [ConvAxis; 3] {
        let (i, o) = (op.input, output);
        let sizes = [(i.t, o.t), (i.h, o.h), (i.w, o.w)];
        [0, 1, 2].map(|a| ConvAxis {
            input: sizes[a].0 as i32,
            output: sizes[a].1 as i32,
            filter: op.filter[a] as i32,
            stride: op.stride[a] as i32,
            first: -(op.padding[a] as i32),
            dilation: op.dilation[a] as i32,
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct ConvGather {
    pub axes: [ConvAxis; 3],
    pub n: i32,
    pub clips_per_split: i32,
    pub splits: i32,
    pub is_grad: i32,
    /// Rows of a box; zeros for runs.
    pub boxes: [i32; 3],
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct PrologueParams {
    pub table: u64,
    pub second: u64,
    pub second_table: u64,
    pub store: u64,
    pub table_rows: i32,
    pub channels: i32,
    pub second_pitch: i32,
    pub store_pitch: i32,
    pub has_relu: i32,
    pub second_first: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct GradNormParams {
    pub y: u64,
    pub to: GradientTables,
    pub y_pitch: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct EpilogueParams {
    pub bias: u64,
    pub add: u64,
    pub mask: u64,
    pub mask_table: u64,
    pub table: u64,
    pub add_table: u64,
    pub statistics: StatisticsTables,
    pub norms: [GradNormParams; 2],
    pub add_pitch: i32,
    pub mask_pitch: i32,
    pub has_relu: i32,
    pub num_norms: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub source: u64,
    pub filter: u64,
    pub target: u64,
    pub tickets: u64,
    pub partials: u64,
    pub group_partials: u64,
    pub slice_sums: u64,
    pub prologue: PrologueParams,
    pub epilogue: EpilogueParams,
    pub gather: ConvGather,
    pub source_chunks: FastDiv,
    pub source_channels: i32,
    pub target_channels: i32,
    pub source_pitch: i32,
    pub target_pitch: i32,
    pub columns: i32,
    pub tiles_per_split: u32,
    pub group_tiles: u32,
    pub groups_per_split: u32,
    pub slices: i32,
    pub groups: i32,
    pub tiles: i32,
    pub halo_rows: i32,
    pub source_stages: i32,
    pub filter_stages: i32,
    pub reserved: i32,
}

/// For the launch that changes a tensor before a convolution reads it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct PrologueOnlyParams {
    pub source: u64,
    pub prologue: PrologueParams,
    pub positions: u64,
    pub positions_per_split: u64,
    pub source_pitch: i32,
    pub reserved: i32,
}

/// For the launch that packs a stem's filter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct PackPairsParams {
    pub from: u64,
    pub to: u64,
    pub rows: i32,
    pub taps: i32,
    pub pairs: i32,
    pub first: i32,
}

const _: () = assert!(size_of::<PackPairsParams>() == 32);
const _: () = assert!(size_of::<PrologueParams>() == 56 && offset_of!(PrologueParams, has_relu) == 48);
const _: () = assert!(size_of::<GradNormParams>() == 72 && offset_of!(EpilogueParams, norms) == 120);
const _: () = assert!(size_of::<EpilogueParams>() == 280 && size_of::<ConvGather>() == 104);
const _: () = assert!(size_of::<Params>() == 568 && offset_of!(Params, gather) == 392);
const _: () = assert!(offset_of!(Params, source_chunks) == 496 && size_of::<PrologueOnlyParams>() == 88);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_division_is_exact_below_2_to_the_31() {
        for divisor in (1..=300).chain([511, 512, 513, 4097, 65535, 65536, 1 << 30, (1 << 31) - 1]) {
            let f = FastDiv::by(divisor);
            let quotient = |n: u32| (((u64::from(n) * u64::from(f.multiplier)) >> 32) as u32 + n) >> f.shift;
            let near = |n: u32| n.saturating_sub(2)..=(n + 2).min((1 << 31) - 1);
            let multiples = [1, 2, 3, 1000, ((1u32 << 31) - 1) / divisor].map(|k| k.saturating_mul(divisor));
            let of_multiples = multiples.into_iter().filter(|n| *n < 1 << 31).flat_map(near);
            for n in (0..2000).chain(near((1 << 31) - 3)).chain(of_multiples) {
                assert_eq!(quotient(n), n / divisor, "{n} / {divisor}");
            }
        }
    }
}
