//! Which kernel a convolution runs on and how it is cut up: pure, without a device. `VCYCLE_PRINT_PLANS=1` prints each choice
//! once.

mod halo;
mod pairs;
mod show;
#[cfg(test)]
mod tests;
mod wgmma;

use super::method::Method;
use super::{Conv3d, Direction};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;
use crate::shape::{ActivationShape, Part};
use halo::Halo;
pub(super) use pairs::{Pairs, pairs};
pub(super) use wgmma::Wgmma;

/// Rows of a tile, and the channels of one step (`TILE_M`, `TILE_K` and `THREADS` in the kernels).
const TILE_M: usize = 128;
pub(super) const TILE_K: usize = 64;
const THREADS: usize = 256;
/// Coordinates and filter extents stay below it (`MAX_COORDINATE` in the kernels).
const MAX_COORDINATE: usize = 1 << 14;
/// Shared memory that every GPU from sm_80 on gives a block.
const MAX_SHARED_BYTES: usize = 163 << 10;
/// Fewest steps of gemm_k that are worth a block.
const MIN_STEPS_OF_SLICE: usize = 4;

/// What a convolution does on load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum OnLoad {
    /// Nothing.
    Plain,
    /// `relu(s x + b)`.
    Affine,
    /// Two tensors: a residual join, or `A g + B y + C`.
    Join,
    /// Two tensors side by side, the channels of one and then those of the other: see [`Beside`](super::Beside).
    Beside,
}

/// What is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    pub op: Conv3d,
    /// That of `op`, but where pixels are read in pairs.
    pub output: ActivationShape,
    pub direction: Direction,
    pub dtype: DType,
    pub on_load: OnLoad,
    /// Blocks of clips; 1 where nothing depends on them.
    pub splits: usize,
    /// Rows of sums that statistics need: 0, 3 for (count, mean, M2), 2 or 3 for gradients.
    pub sums: usize,
    /// Tensors that are read or written at each element of the target beside it: for the count of bytes.
    pub extra_tensors: usize,
    /// Launches that prepare this one.
    pub launches_before: usize,
    /// Whether all addresses are multiples of 16 and all pitches of 8.
    pub is_aligned: bool,
    pub num_sms: usize,
    /// `Auto` is for a device that has wgmma.
    pub method: Method,
}

/// The choice, with where its parts of the workspace begin.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub kernel: String,
    pub why: &'static str,
    pub tile_m: usize,
    pub tile_n: usize,
    /// Rows of a box along (t, h, w); zeros where a tile is a run of rows.
    pub boxes: [usize; 3],
    pub wgmma: Option<Wgmma>,
    /// Tiles of the target's channels, of all groups.
    pub columns: usize,
    pub clips_per_split: usize,
    pub splits_used: usize,
    pub tiles_per_split: usize,
    pub tiles: usize,
    pub group_tiles: usize,
    pub groups_per_split: usize,
    pub slices: usize,
    pub shared_bytes: usize,
    pub group_partials_at: usize,
    pub slice_sums_at: usize,
    pub workspace_bytes: usize,
    /// Bytes that must move at least once.
    pub bytes: u64,
    pub flops: u64,
    pub launches: usize,
    num_sms: usize,
}

/// A class of rows along one axis.
#[derive(Clone, Copy, Debug)]
struct AxisClass {
    rows: usize,
    taps: usize,
    /// Distance in the source from the first tap's place to the last's.
    reach: usize,
}

impl Request {
    /// The request of the whole batch, where this is one of a part of it: what bits depend on follows from that.
    pub(super) fn of_batch(&self) -> Request {
        let Part { batch_clips, batch_splits, .. } = self.batch();
        let mut whole = Request { splits: batch_splits, ..*self };
        (whole.op.part, whole.op.input.n, whole.output.n) = (None, batch_clips, batch_clips);
        whole
    }

    fn batch(&self) -> Part {
        self.op.batch(self.splits)
    }

    fn is_grad(&self) -> bool {
        self.direction == Direction::GradInput
    }

    /// Channels of a group of what is gathered and of what is made.
    pub(super) fn channels(&self) -> (usize, usize) {
        let (c_in, c_out) = (self.op.input.c / self.op.groups, self.op.c_out / self.op.groups);
        if self.is_grad() { (c_out, c_in) } else { (c_in, c_out) }
    }

    /// The classes of rows along an axis: how many rows, how many taps meet them, and how far these reach in the source.
    fn axis_classes(&self, axis: usize) -> Vec<AxisClass> {
        let (op, o) = (&self.op, self.output);
        let (filter, stride, dilation) = (op.filter[axis], op.stride[axis], op.dilation[axis]);
        if !self.is_grad() {
            let rows = [o.t, o.h, o.w][axis];
            return vec![AxisClass { rows, taps: filter, reach: (filter - 1) * dilation }];
        }
        let size = [op.input.t, op.input.h, op.input.w][axis];
        let meets =
            |parity: usize, k: usize| (parity + op.padding[axis] + k * dilation * (stride - 1)).is_multiple_of(stride);
        let class = |parity: usize| {
            let taps: Vec<usize> = (0..filter).filter(|k| meets(parity, *k)).collect();
            let reach = taps.last().map_or(0, |last| (last - taps[0]) * dilation / stride);
            AxisClass { rows: size.saturating_sub(parity).div_ceil(stride), taps: taps.len(), reach }
        };
        (0..stride).map(class).collect()
    }

    /// All classes: one of each axis.
    fn classes(&self) -> Vec<[AxisClass; 3]> {
        let [t, h, w] = [0, 1, 2].map(|axis| self.axis_classes(axis));
        let all = t.iter().flat_map(|t| h.iter().flat_map(|h| w.iter().map(|w| [*t, *h, *w])));
        all.collect()
    }

    /// Bytes that must move at least once.
    fn bytes(&self) -> u64 {
        let (i, o) = (self.op.input.num_elements() as u64, self.output.num_elements() as u64);
        let (source, target) = if self.is_grad() { (o, i) } else { (i, o) };
        let gathered = source * if self.on_load == OnLoad::Join { 2 } else { 1 };
        2 * (gathered + target * (1 + self.extra_tensors as u64) + self.op.filter_len() as u64)
    }

    fn check(&self, name: &'static str) -> Result<()> {
        let (i, o) = (self.op.input, self.output);
        let extent = |a: usize| self.op.dilation[a] * (self.op.filter[a] - 1) + self.op.padding[a];
        let largest = [i.t, i.h, i.w, o.t, o.h, o.w, extent(0), extent(1), extent(2)].into_iter().max().unwrap_or(0);
        if largest + self.op.stride.iter().max().unwrap_or(&1) >= MAX_COORDINATE {
            let message =
                format!("sizes, padding and filter extents must be below {MAX_COORDINATE}, got {largest} ({i})");
            return Err(Error::unsupported(name, message));
        }
        if i.num_positions().max(o.num_positions()) >= 1 << 31 {
            let message = format!("a tensor must have less than 2^31 positions, got {i} and {o}; cut the batch");
            return Err(Error::unsupported(name, message));
        }
        Ok(())
    }
}

/// Whether the tap at distance 0 reads each position of what is gathered exactly once, as the row of that very position.
pub(super) fn reads_each_position_once(op: &Conv3d) -> bool {
    let (i, o) = (op.input, op.output());
    let has_center = |a: usize| (0..op.filter[a]).any(|k| k * op.dilation[a] == op.padding[a]);
    op.stride == [1; 3] && (i.t, i.h, i.w) == (o.t, o.h, o.w) && (0..3).all(has_center)
}

/// Columns of a tile: 32, 64 or 128, the widest that wastes no more than a fourth over the next narrower.
fn tile_n(channels: usize) -> usize {
    match channels {
        0..=32 => 32,
        33..=64 => 64,
        _ if channels.next_multiple_of(128) * 4 > channels.next_multiple_of(64) * 5 => 64,
        _ => 128,
    }
}

/// How tiles are made.
struct Form {
    is_vector: bool,
    halo: Option<Halo>,
    wgmma: Option<Wgmma>,
    why: &'static str,
    tile_m: usize,
    tile_n: usize,
    boxes: [usize; 3],
}

impl Form {
    fn of(r: &Request, classes: &[[AxisClass; 3]], wgmma: Option<Wgmma>) -> Form {
        let (source_c, target_c) = r.channels();
        let is_even = source_c.is_multiple_of(8) && target_c.is_multiple_of(8);
        let checked =
            |why| Form { is_vector: false, halo: None, wgmma, why, tile_m: TILE_M, tile_n: 64, boxes: [0; 3] };
        match (r.op.groups, is_even, r.is_aligned) {
            (1, true, true) => {}
            (1, true, false) => return checked("an address or a pitch is no multiple of 8 elements"),
            (1, false, _) => return checked("channels are no multiple of 8"),
            _ => return checked("groups"),
        }
        let runs = |wgmma, why, tile_n| Form {
            is_vector: true,
            halo: None,
            wgmma,
            why,
            tile_m: TILE_M,
            tile_n,
            boxes: [0; 3],
        };
        if let Some(form) = wgmma {
            return runs(wgmma, "unit stride, channels in chunks of 64", form.sums_n());
        }
        match halo::halo(r, classes) {
            Some(halo) => Form {
                is_vector: true,
                halo: Some(halo),
                wgmma,
                why: "few channels and several taps",
                tile_m: 4096 / halo.tile_n,
                tile_n: halo.tile_n,
                boxes: halo.boxes,
            },
            None => runs(None, "channels in chunks of 8", tile_n(target_c)),
        }
    }

    /// Tiles of rows of so many clips.
    fn tiles(&self, classes: &[[AxisClass; 3]], clips: usize) -> usize {
        let of_class = |c: &[AxisClass; 3]| match self.halo {
            None => (clips * c[0].rows * c[1].rows * c[2].rows).div_ceil(self.tile_m),
            Some(_) => clips * (0..3).map(|a| c[a].rows.div_ceil(self.boxes[a])).product::<usize>(),
        };
        classes.iter().map(of_class).sum()
    }

    fn shared_bytes(&self, r: &Request, steps: usize) -> usize {
        if let Some(bytes) = self.halo.map(|halo| halo.shared_bytes).or(self.wgmma.map(|form| form.shared_bytes)) {
            return bytes;
        }
        let taps: usize = r.op.filter.iter().product();
        let block_memory = (TILE_M * 20 + 16 + taps * 20).next_multiple_of(128);
        let (stages, tensors) = match (self.is_vector, r.on_load) {
            (false, _) => (1, 1),
            (_, OnLoad::Join) => (2, 2),
            _ => (3, 1),
        };
        let stage_bytes = (TILE_M * tensors + self.tile_n) * TILE_K * 2;
        block_memory + (stages.min(steps) * stage_bytes).max(sums_bytes(self.tile_n))
    }

    fn kernel(&self, r: &Request) -> String {
        let direction = if r.is_grad() { "grad_input" } else { "forward" };
        let dtype = if r.dtype == DType::Bf16 { "bf16" } else { "f16" };
        let load = match (r.on_load, r.is_grad()) {
            (OnLoad::Plain, _) => "",
            (OnLoad::Affine, _) => "affine_",
            (OnLoad::Join, false) => "join_",
            (OnLoad::Join, true) => "table_",
            (OnLoad::Beside, _) => "beside_",
        };
        let (m, n) = (self.tile_m, self.tile_n);
        if let Some(form) = self.wgmma {
            return format!("conv3d_{direction}_{load}wgmma{m}x{}_{dtype}", form.width);
        }
        match (self.is_vector, self.halo) {
            (false, _) => format!("conv3d_gather_checked128x64_{dtype}"),
            (_, Some(_)) => format!("conv3d_{direction}_{load}halo{m}x{n}_{dtype}"),
            (_, None) => format!("conv3d_{direction}_{load}mma{m}x{n}_{dtype}"),
        }
    }
}

/// Tiles whose statistics are joined first: about the square root of all, more where tickets are short.
fn group_tiles(columns: usize, splits: usize, tiles_per_split: usize) -> usize {
    let mut group = ((tiles_per_split as f64).sqrt().ceil() as usize).max(8);
    while 4 * columns * (splits * tiles_per_split.div_ceil(group) + 1) > TICKET_BYTES && group < tiles_per_split {
        group *= 2;
    }
    group
}

/// Chooses for a convolution whose sizes fit together.
pub(super) fn plan(name: &'static str, r: &Request) -> Result<Plan> {
    r.check(name)?;
    let (source_c, target_c) = r.channels();
    let classes = r.classes();
    let cannot = |why| Error::unsupported(name, format!("wgmma does not take {}: {why}", r.op.input));
    let (batch, whole) = (r.batch(), r.of_batch());
    let form = Form::of(&whole, &classes, wgmma::wgmma(&whole, &classes).map_err(cannot)?);
    let columns = r.op.groups * target_c.div_ceil(form.tile_n);

    let clips_per_split = batch.clips_per_split();
    let tiles_per_split = form.tiles(&classes, clips_per_split);
    let tiles_of = |clips: usize| {
        let full = batch.splits_of(clips) - 1;
        full * tiles_per_split + form.tiles(&classes, clips - full * clips_per_split)
    };
    let (splits_used, tiles) = (batch.splits_of(r.op.input.n), tiles_of(r.op.input.n));
    let tiles_of_batch = tiles_of(batch.batch_clips);
    let group_tiles = group_tiles(columns, batch.splits_of(batch.batch_clips), tiles_per_split);
    let groups_per_split = tiles_per_split.div_ceil(group_tiles);

    let most_taps = classes.iter().map(|c| c[0].taps * c[1].taps * c[2].taps).max().unwrap_or(0);
    let steps = (most_taps * source_c.div_ceil(8)).div_ceil(TILE_K / 8);
    let can_slice = form.is_vector && form.halo.is_none();
    let slices = match form.wgmma {
        // A slice is whole frames of the filter.
        Some(wide) => slices(wide.works(tiles_of_batch, columns, 1), steps, r.num_sms)
            .min(r.op.filter[0] * source_c.div_ceil(TILE_K)),
        None if can_slice => slices(tiles_of_batch * columns, steps, r.num_sms),
        None => 1,
    };
    let shared_bytes = form.shared_bytes(r, steps);
    if shared_bytes > MAX_SHARED_BYTES && form.wgmma.is_none() {
        let taps = r.op.filter;
        let message = format!("a filter of {taps:?} needs {shared_bytes} bytes of shared memory of {MAX_SHARED_BYTES}");
        return Err(Error::unsupported(name, message));
    }
    if tiles * columns > i32::MAX as usize {
        return Err(Error::unsupported(name, format!("{tiles} x {columns} tiles; cut the batch")));
    }

    let channels = r.op.groups * target_c;
    let slice_tickets = if slices > 1 { columns * tiles } else { 0 };
    let tickets = columns * (splits_used * groups_per_split + 1) + slice_tickets;
    if (r.sums > 0 || slices > 1) && 4 * tickets > TICKET_BYTES {
        let message = format!("{splits_used} splits of {channels} channels need {tickets} tickets");
        return Err(Error::unsupported(name, message));
    }
    let sums_of = |sets: usize| (sets * r.sums * channels * 4).next_multiple_of(256);
    let group_partials_at = TICKET_BYTES + sums_of(tiles);
    let slice_sums_at = group_partials_at + sums_of(splits_used * groups_per_split);
    let all_slices = if slices > 1 { columns * tiles * slices * form.tile_m * form.tile_n * 4 } else { 0 };
    let workspace_bytes = if r.sums == 0 && slices == 1 { 0 } else { slice_sums_at + all_slices };
    Ok(Plan {
        kernel: form.kernel(r),
        why: form.why,
        tile_m: form.tile_m,
        tile_n: form.tile_n,
        boxes: form.boxes,
        wgmma: form.wgmma,
        columns,
        clips_per_split,
        splits_used,
        tiles_per_split,
        tiles,
        group_tiles,
        groups_per_split,
        slices,
        shared_bytes,
        group_partials_at,
        slice_sums_at,
        workspace_bytes,
        bytes: r.bytes(),
        flops: 2 * r.op.macs(),
        launches: 1 + r.launches_before,
        num_sms: r.num_sms,
    })
}

/// The f32 sums of a tile and what its threads bring together.
fn sums_bytes(tile_n: usize) -> usize {
    let tile_m = if tile_n >= 32 { TILE_M } else { 4096 / tile_n };
    tile_m * (tile_n + 8) * 4 + THREADS * 32
}

/// Parts of gemm_k: where there are fewer tiles than half the multiprocessors, so many that these are busy, and each part
/// long enough.
fn slices(blocks: usize, steps: usize, num_sms: usize) -> usize {
    (num_sms / blocks).min(steps / MIN_STEPS_OF_SLICE).max(1)
}
