//! What the kernels take, field by field as in `kernels/batch_norm/params.cuh` and `tables.cuh`.

use bytemuck::{Pod, Zeroable};

use crate::ops::row_plan::RowTiles;

/// `NormStatistics`. Kernels of other ops that form statistics hold one too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct StatisticsTables {
    pub gamma: u64,
    pub beta: u64,
    pub stats: u64,
    pub scale_shift: u64,
    pub running_mean: u64,
    pub running_var: u64,
    pub skip: u64,
    pub eps: f32,
    pub momentum: f32,
    pub channels: i32,
    pub splits: i32,
}

/// `NormGradient`. Kernels of other ops that form such sums hold one too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct GradientTables {
    pub stats: u64,
    pub gamma: u64,
    pub grad_table: u64,
    pub grad_gamma: u64,
    pub grad_beta: u64,
    pub channels: i32,
    pub is_centred: i32,
    pub accumulates: i32,
    pub reserved: i32,
}

/// `NormPartials`: tickets, partial sums of tiles, of groups.
pub(crate) type Partials = [u64; 3];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct StatisticsParams {
    pub input: u64,
    pub at: Partials,
    pub to: StatisticsTables,
    pub tiles: RowTiles,
    pub input_pitch: i32,
    pub column: i32,
}

/// `NormTableKind`.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableKind {
    ScaleShift = 0,
    Stats = 1,
    Running = 2,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct ApplyParams {
    pub input: u64,
    pub output: u64,
    pub second: u64,
    pub second_table: u64,
    pub table: u64,
    pub var: u64,
    pub gamma: u64,
    pub beta: u64,
    pub tiles: RowTiles,
    pub input_pitch: i32,
    pub output_pitch: i32,
    pub second_pitch: i32,
    pub channels: i32,
    pub column: i32,
    pub table_kind: i32,
    pub has_relu: i32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct GradientSumsParams {
    pub input: u64,
    pub grad_output: u64,
    pub mask: u64,
    pub mask_table: u64,
    pub at: Partials,
    pub to: GradientTables,
    pub tiles: RowTiles,
    pub input_pitch: i32,
    pub grad_output_pitch: i32,
    pub mask_pitch: i32,
    pub column: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct GradientParams {
    pub input: u64,
    pub grad_output: u64,
    pub mask: u64,
    pub mask_table: u64,
    pub table: u64,
    pub stats: u64,
    pub grad_input: u64,
    pub grad_residual: u64,
    pub tiles: RowTiles,
    pub input_pitch: i32,
    pub grad_output_pitch: i32,
    pub mask_pitch: i32,
    pub grad_input_pitch: i32,
    pub grad_residual_pitch: i32,
    pub channels: i32,
    pub column: i32,
    pub accumulates: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct FinaliseParams {
    pub partials: u64,
    pub statistics: StatisticsTables,
    pub gradient: GradientTables,
    pub tiles: RowTiles,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RunningParams {
    pub stats: u64,
    pub running_mean: u64,
    pub running_var: u64,
    pub gamma: u64,
    pub beta: u64,
    pub scale_shift: u64,
    pub channels: i32,
    pub splits: i32,
    pub momentum: f32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RunningEntry {
    pub stats: u64,
    pub running_mean: u64,
    pub running_var: u64,
    pub channels: i32,
    pub splits: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RunningAllParams {
    pub entries: u64,
    pub skipped: u64,
    pub momentum: f32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct MomentsEntry {
    pub stats: u64,
    pub sums: u64,
    pub channels: i32,
    pub splits: i32,
    pub clips: i32,
    pub clips_per_split: i32,
    pub positions_per_clip: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct MomentsParams {
    pub entries: u64,
}

const _: () = assert!(size_of::<StatisticsTables>() == 72 && size_of::<GradientTables>() == 56);
const _: () = assert!(size_of::<StatisticsParams>() == 144 && size_of::<ApplyParams>() == 128);
const _: () = assert!(size_of::<GradientSumsParams>() == 160 && size_of::<GradientParams>() == 128);
const _: () = assert!(size_of::<FinaliseParams>() == 168 && size_of::<RunningParams>() == 64);
const _: () = assert!(size_of::<RunningEntry>() == 32 && size_of::<RunningAllParams>() == 24);
const _: () = assert!(size_of::<MomentsEntry>() == 40 && size_of::<MomentsParams>() == 8);
