//! What the kernels take, field by field as in `kernels/conv3d/grad_filter_params.cuh`.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::GradPool;
use super::operand::Operand;
use super::plan::Plan;
use crate::ops::conv3d::Conv3d;
use crate::ops::conv3d::params::PrologueParams;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct AxisParams {
    pub output: i32,
    pub input: i32,
    pub tile: i32,
    pub num_tiles: i32,
    pub first: i32,
    pub stride: i32,
    pub dilation: i32,
    pub box_step: i32,
    pub row_pixels: i32,
    pub tap_pixels: i32,
    pub taps: i32,
}

/// Rows of 16-byte chunks in shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct RowLayout {
    pub pitch: i32,
    pub shift: i32,
    pub mask: i32,
}

impl RowLayout {
    /// Rows of `chunks` chunks without bank conflicts: swizzled, or with an odd pitch.
    pub fn of(chunks: usize) -> RowLayout {
        let (pitch, shift, mask) = match chunks {
            2 => (2, 2, 1),
            4 => (4, 1, 3),
            8 | 16 => (chunks as i32, 0, 7),
            _ => (chunks as i32 | 1, 0, 0),
        };
        RowLayout { pitch, shift, mask }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct PoolParams {
    pub indices: u64,
    pub scale_shift: u64,
    /// Along h and w, as all pairs here.
    pub size: [i32; 2],
    pub kernel: [i32; 2],
    pub stride: [i32; 2],
    pub padding: [i32; 2],
    pub windows: [i32; 2],
    pub box_rows: i32,
    pub places_offset: i32,
    pub gradient_offset: i32,
    pub indices_offset: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub input: u64,
    pub grad_output: u64,
    pub grad_filter: u64,
    pub grad_bias: u64,
    pub partials: u64,
    pub input_prologue: PrologueParams,
    pub grad_prologue: PrologueParams,
    pub axes: [AxisParams; 3],
    pub last_input_t: i32,
    pub grad_t: i32,
    pub last_grad_t: i32,
    pub grad_first_t: i32,
    pub grad_taps: i32,
    pub grad_tap_rows: i32,
    pub grad_box_rows: i32,
    pub num_outer: i32,
    pub outer_per_split: i32,
    pub input_pitch: i32,
    pub grad_pitch: i32,
    pub c_in: i32,
    pub c_out: i32,
    pub num_tiles: i32,
    pub tiles_per_part: i32,
    pub num_parts: i32,
    pub tiles_per_split: i32,
    pub parts_per_split: i32,
    pub accumulates: i32,
    pub is_of_splits: i32,
    pub reserved: i32,
    pub taps_per_block: i32,
    pub num_tap_blocks: i32,
    pub slab_chunks: i32,
    pub num_slabs: i32,
    pub out_chunks: i32,
    pub num_out_blocks: i32,
    pub warps: [i32; 3],
    pub units: i32,
    pub out_octets: i32,
    pub input_granule: i32,
    pub grad_granule: i32,
    pub has_pixel_pairs: i32,
    pub filter_w: i32,
    pub rows: i32,
    pub input_rows: RowLayout,
    pub grad_rows: RowLayout,
    pub box_offset: i32,
    pub factors_offset: i32,
    pub stages_offset: i32,
    pub second_input_offset: i32,
    pub grad_offset: i32,
    pub second_grad_offset: i32,
    pub stage_bytes: i32,
    pub num_blocks: i32,
    pub warps_per_sum: i32,
    pub warps_per_split: i32,
    pub pool: PoolParams,
}

const _: () = assert!(size_of::<AxisParams>() == 44);
const _: () = assert!(size_of::<PoolParams>() == 72 && size_of::<Params>() == 568 && offset_of!(Params, axes) == 152);
const _: () = assert!(offset_of!(Params, last_input_t) == 284 && offset_of!(Params, stage_bytes) == 480);

impl PoolParams {
    pub fn of(pool: &GradPool<'_>, plan: &Plan) -> PoolParams {
        let (op, out, t) = (&pool.op, pool.op.output(), &plan.tiling);
        let along = |sizes: [usize; 3]| [sizes[1] as i32, sizes[2] as i32];
        PoolParams {
            indices: pool.indices.address(),
            scale_shift: pool.scale_shift.address(),
            size: [out.h as i32, out.w as i32],
            kernel: along(op.kernel),
            stride: along(op.stride),
            padding: along(op.padding),
            windows: t.windows.map(|n| n as i32),
            box_rows: t.pool_rows as i32,
            places_offset: t.pool_places_offset as i32,
            gradient_offset: t.pool_gradient_offset as i32,
            indices_offset: t.pool_indices_offset as i32,
        }
    }
}

impl Params {
    /// Those of a plan; results, workspace and pool are left to fill in.
    pub fn of(op: &Conv3d, plan: &Plan, input: &Operand<'_>, grad: &Operand<'_>) -> Params {
        let (g, b, t) = (&plan.geometry, &plan.blocking, &plan.tiling);
        let spans = g.spans(b.taps);
        let axes = [0, 1, 2].map(|i| {
            let (axis, along) = (&g.axes[i], g.axes[i].box_of(spans[i]));
            AxisParams {
                output: axis.output as i32,
                input: axis.input as i32,
                tile: t.tile[i] as i32,
                num_tiles: axis.output.div_ceil(t.tile[i]) as i32,
                first: axis.first as i32,
                stride: axis.stride as i32,
                dilation: axis.dilation as i32,
                box_step: along.step as i32,
                row_pixels: along.row_pixels as i32,
                tap_pixels: along.tap_pixels as i32,
                taps: axis.taps as i32,
            }
        });
        Params {
            input: input.memory[0].address(),
            grad_output: grad.memory[0].address(),
            grad_filter: 0,
            grad_bias: 0,
            partials: 0,
            input_prologue: input.prologue,
            grad_prologue: grad.prologue,
            axes,
            last_input_t: g.last_input_t as i32,
            grad_t: g.grad_t as i32,
            last_grad_t: g.last_grad_t as i32,
            grad_first_t: g.grad_first as i32,
            grad_taps: g.grad_taps as i32,
            grad_tap_rows: (g.grad_dilation * t.tile[1] * t.tile[2]) as i32,
            grad_box_rows: t.grad_rows as i32,
            num_outer: g.num_outer as i32,
            outer_per_split: g.outer_per_split as i32,
            input_pitch: input.pitch as i32,
            grad_pitch: grad.pitch as i32,
            c_in: (op.input.c / op.groups) as i32,
            c_out: (op.c_out / op.groups) as i32,
            num_tiles: t.num_tiles as i32,
            tiles_per_part: plan.cut.tiles_per_part as i32,
            num_parts: plan.cut.num_parts as i32,
            tiles_per_split: plan.cut.tiles_per_split as i32,
            parts_per_split: plan.cut.parts_per_split as i32,
            accumulates: i32::from(!plan.of_splits && op.part.is_some_and(|part| part.accumulates())),
            is_of_splits: plan.of_splits.into(),
            reserved: 0,
            taps_per_block: b.taps as i32,
            num_tap_blocks: b.num_tap_blocks as i32,
            slab_chunks: b.slab_chunks as i32,
            num_slabs: b.num_slabs as i32,
            out_chunks: b.out_chunks as i32,
            num_out_blocks: b.num_out_blocks as i32,
            warps: b.warps.map(|warps| warps as i32),
            units: b.variant.units() as i32,
            out_octets: b.variant.octets() as i32,
            input_granule: input.granule as i32,
            grad_granule: grad.granule as i32,
            has_pixel_pairs: i32::from(g.pixel_pairs),
            filter_w: op.filter[2] as i32,
            rows: t.rows as i32,
            input_rows: RowLayout::of(b.slab_chunks),
            grad_rows: RowLayout::of(b.out_chunks),
            box_offset: t.box_offset as i32,
            factors_offset: t.factors_offset as i32,
            stages_offset: t.stages_offset as i32,
            second_input_offset: t.second_input_offset as i32,
            grad_offset: t.grad_offset as i32,
            second_grad_offset: t.second_grad_offset as i32,
            stage_bytes: t.stage_bytes as i32,
            num_blocks: plan.num_blocks as i32,
            warps_per_sum: plan.warps_per_sum() as i32,
            warps_per_split: plan.cut.warps_per_split() as i32,
            pool: bytemuck::Zeroable::zeroed(),
        }
    }
}
