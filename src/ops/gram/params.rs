//! What the kernels take, field by field as in `kernels/gram/params.cuh`.

use bytemuck::{Pod, Zeroable};

use crate::ops::batch_norm::params::StatisticsTables;
use crate::ops::row_plan::RowTiles;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct MomentsParams {
    pub x: u64,
    pub scale_shift: u64,
    pub partials: u64,
    pub slabs: RowTiles,
    pub pitch: i32,
    pub channels: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct MergeParams {
    pub partials: u64,
    pub moments: u64,
    pub slabs: RowTiles,
    pub channels: i32,
    pub reserved: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct StatisticsParams {
    pub moments: u64,
    pub filter: u64,
    pub partials: u64,
    pub tickets: u64,
    pub to: StatisticsTables,
    pub rows: i32,
    pub rows_per_split: i32,
    pub channels: i32,
    pub reserved: i32,
}

const _: () = assert!(size_of::<MomentsParams>() == 64 && size_of::<MergeParams>() == 56);
const _: () = assert!(size_of::<StatisticsParams>() == 120);
