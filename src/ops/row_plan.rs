//! How kernels of memory-bound ops cut activations: rows (positions) into tiles that restart at each split, channels into
//! columns of a few vectors. Pure, without a device: the same sizes give the same cut, hence the same bits, on every GPU.
//!
//! Mirrors kernels/common/row_tiles.cuh and kernels/common/block_map.cuh.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use crate::device::{DType, LaunchConfig, Tensor, launch};
use crate::error::{Error, Result};
use crate::ops::TICKET_BYTES;

/// Threads of a block, in all of these kernels.
pub(crate) const THREADS: usize = 256;
/// Bytes of a vector.
const VECTOR_BYTES: usize = 16;
/// Widest column: half of a warp's widest read, so that a block walks several rows at once.
const MAX_COLUMN_BYTES: usize = 512;
/// Narrowest column, but for tensors that have no more channels: two sectors of memory.
const MIN_COLUMN_BYTES: usize = 64;
/// Blocks that a large tensor is cut into for sums: five waves of three blocks on each of 132 SMs.
const BLOCKS_OF_SUMS: usize = 2048;
/// Fewest blocks for which an element-wise kernel gives its threads more rows: eight on each of 132 SMs.
const BLOCKS_OF_EACH: usize = 1056;
/// Most rows of a thread of an element-wise kernel, in batches: enough to forget what its coefficients cost.
const MAX_BATCHES: usize = 8;
/// Tiles up to which one block joins all.
const ONE_LEVEL: usize = 32;
/// Shared memory of a thread while partial sums are joined (`FINISH_BYTES_PER_THREAD`).
const FINISH_BYTES: usize = 32;

/// The struct of the same name in kernels/common/row_tiles.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct RowTiles {
    pub rows: i32,
    pub rows_per_split: i32,
    pub splits: i32,
    pub tile_rows: i32,
    pub tiles_per_split: i32,
    pub group_tiles: i32,
    pub groups_per_split: i32,
    reserved: i32,
}

const _: () = assert!(size_of::<RowTiles>() == 32);

impl RowTiles {
    /// Tiles of `tile_rows` rows, in groups of `group_tiles`.
    pub(crate) fn new(rows: usize, rows_per_split: usize, tile_rows: usize, group_tiles: usize) -> RowTiles {
        let tiles_per_split = rows_per_split.div_ceil(tile_rows);
        RowTiles {
            rows: rows as i32,
            rows_per_split: rows_per_split as i32,
            splits: rows.div_ceil(rows_per_split) as i32,
            tile_rows: tile_rows as i32,
            tiles_per_split: tiles_per_split as i32,
            group_tiles: group_tiles as i32,
            groups_per_split: tiles_per_split.div_ceil(group_tiles) as i32,
            reserved: 0,
        }
    }

    fn num_sets(&self, of_full_split: i32, rows_of_set: i32) -> usize {
        let rows_of_last = self.rows - (self.splits - 1) * self.rows_per_split;
        ((self.splits - 1) * of_full_split) as usize + (rows_of_last as usize).div_ceil(rows_of_set as usize)
    }

    /// Tiles of all splits.
    pub(crate) fn num_tiles(&self) -> usize {
        self.num_sets(self.tiles_per_split, self.tile_rows)
    }

    fn num_groups(&self) -> usize {
        self.num_sets(self.groups_per_split, self.tile_rows * self.group_tiles)
    }
}

/// A kernel's variants: one a type, with and without vectors of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variants {
    pub bf16: [&'static str; 2],
    pub f16: [&'static str; 2],
    pub f32: [&'static str; 2],
}

/// The [`Variants`] of a name.
macro_rules! variants {
    ($name:literal) => {
        $crate::ops::row_plan::Variants {
            bf16: [concat!($name, "_scalar_bf16"), concat!($name, "_vector8_bf16")],
            f16: [concat!($name, "_scalar_f16"), concat!($name, "_vector8_f16")],
            f32: [concat!($name, "_scalar_f32"), concat!($name, "_vector4_f32")],
        }
    };
}
pub(crate) use variants;

/// What is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowWork {
    pub rows: usize,
    /// Of the whole batch, where these are part of one: the cut is that of the batch.
    pub rows_of_batch: usize,
    pub rows_per_split: usize,
    pub channels: usize,
    pub dtype: DType,
    /// Whether all channels, pitches and addresses are multiples of a vector.
    pub is_wide: bool,
    /// Rows that a thread loads at once.
    pub batch: usize,
    /// Whether sums over the rows are formed; else each element is for itself.
    pub is_sum: bool,
}

impl RowWork {
    fn check(&self, op: &'static str) -> Result<()> {
        let limit = 1 << 30;
        if self.rows < limit && self.channels < limit {
            return Ok(());
        }
        let message = format!("positions and channels must be below {limit}, got {} and {}", self.rows, self.channels);
        Err(Error::unsupported(op, message))
    }

    /// Channels of a thread.
    fn vector(&self) -> usize {
        if self.is_wide { VECTOR_BYTES / self.dtype.size_bytes() } else { 1 }
    }

    fn lanes(&self, max_bytes: usize) -> usize {
        let vector = self.vector();
        lanes(self.channels / vector, vector * self.dtype.size_bytes(), max_bytes)
    }

    fn kernel(&self, variants: Variants) -> &'static str {
        let names = match self.dtype {
            DType::Bf16 => variants.bf16,
            DType::F16 => variants.f16,
            _ => variants.f32,
        };
        names[usize::from(self.is_wide)]
    }
}

/// How it is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPlan {
    pub kernel: &'static str,
    pub channels: usize,
    /// Channels of a block.
    pub column: usize,
    pub columns: usize,
    pub tiles: RowTiles,
}

impl RowPlan {
    /// Plans a kernel.
    ///
    /// # Errors
    /// 2^30 rows or more; more channels than there are tickets for.
    pub(crate) fn new(op: &'static str, variants: Variants, work: &RowWork) -> Result<RowPlan> {
        let RowWork { rows_of_batch, channels, .. } = *work;
        work.check(op)?;
        let (lanes, vector) = (work.lanes(MAX_COLUMN_BYTES), work.vector());
        let (column, columns) = (lanes * vector, channels.div_ceil(lanes * vector));
        let pass = THREADS / lanes * work.batch;
        let passes = rows_of_batch.div_ceil(pass) * columns;
        let batches = match work.is_sum {
            true => passes.div_ceil(BLOCKS_OF_SUMS),
            false => (passes / BLOCKS_OF_EACH).clamp(1, MAX_BATCHES),
        };
        let tile_rows = (pass * batches).min(work.rows_per_split.next_multiple_of(pass));
        let tiles = tiles(op, work, columns, tile_rows)?;
        Ok(RowPlan { kernel: work.kernel(variants), channels, column, columns, tiles })
    }

    /// A kernel that forms one sum over each split, in one block a column: narrow columns, since clips are few.
    pub(crate) fn whole_splits(op: &'static str, variants: Variants, work: &RowWork) -> Result<RowPlan> {
        work.check(op)?;
        let column = work.lanes(2 * MIN_COLUMN_BYTES) * work.vector();
        let tiles = RowTiles::new(work.rows, work.rows_per_split, work.rows_per_split, 1);
        let (channels, columns) = (work.channels, work.channels.div_ceil(column));
        Ok(RowPlan { kernel: work.kernel(variants), channels, column, columns, tiles })
    }

    /// Channels of a thread.
    pub(crate) fn vector(&self) -> usize {
        match self.kernel {
            kernel if kernel.contains("vector8") => 8,
            kernel if kernel.contains("vector4") => 4,
            _ => 1,
        }
    }

    /// Bytes of scratch memory of a kernel that forms sums: tickets, partial sums of tiles, of groups.
    pub(crate) fn workspace_bytes(&self) -> usize {
        TICKET_BYTES + 4 * 2 * self.channels * (self.tiles.num_tiles() + self.tiles.num_groups())
    }

    /// Addresses of tickets, partial sums of tiles and of groups in a workspace that begins at `start`.
    pub(crate) fn partials(&self, start: u64) -> [u64; 3] {
        let tiles = start + TICKET_BYTES as u64;
        let groups = match self.tiles.group_tiles {
            1 => tiles,
            _ => tiles + (4 * 2 * self.channels * self.tiles.num_tiles()) as u64,
        };
        [start, tiles, groups]
    }

    /// The launch of an element-wise kernel.
    pub(crate) fn launch_each(&self) -> LaunchConfig {
        let grid = [self.tiles.num_tiles() as u32, self.columns as u32, 1];
        LaunchConfig { grid, block: [THREADS as u32, 1, 1], shared_bytes: 0 }
    }

    /// The launch of a kernel that forms sums and needs `bytes_per_thread` of shared memory while threads are joined.
    pub(crate) fn launch_sums(&self, bytes_per_thread: usize) -> LaunchConfig {
        let shared_bytes = (16 + THREADS * bytes_per_thread.max(FINISH_BYTES)) as u32;
        LaunchConfig { shared_bytes, ..self.launch_each() }
    }

    /// Prints it where `VCYCLE_PRINT_PLANS=1`.
    pub(crate) fn print(&self, op: &str) {
        launch::print_plan(|| format!("{op}: {self}"));
    }
}

impl fmt::Display for RowPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RowTiles { rows, splits, tile_rows, group_tiles, .. } = self.tiles;
        write!(
            f,
            "{}: {} tiles of {tile_rows} of {rows} rows in {splits} splits, groups of {group_tiles}, {} columns of {} of {} \
             channels",
            self.kernel,
            self.tiles.num_tiles(),
            self.columns,
            self.column,
            self.channels
        )
    }
}

/// Threads along the channels, of `vectors` vectors of `bytes`: those that leave the fewest threads and lanes idle, and of
/// these the widest, in steps of 3 %.
fn lanes(vectors: usize, bytes: usize, max_bytes: usize) -> usize {
    let is_allowed = |lanes: usize| {
        lanes == 1 || (lanes * bytes <= max_bytes && (lanes == vectors || lanes * bytes >= MIN_COLUMN_BYTES))
    };
    // Share of a block's work that is of use.
    let used = |lanes: usize| {
        let of_columns = vectors as f64 / (vectors.div_ceil(lanes) * lanes) as f64;
        of_columns * (THREADS / lanes * lanes) as f64 / THREADS as f64
    };
    let candidates = (1..=vectors.min(THREADS)).filter(|lanes| is_allowed(*lanes));
    // A single lane is the last resort.
    candidates.fold(1, |best, lanes| {
        let is_better = best == 1 || used(lanes) >= used(best) * 0.97;
        if is_better { lanes } else { best }
    })
}

/// Tiles, in groups of about the square root of their number; fewer groups where tickets are short.
fn tiles(op: &'static str, work: &RowWork, columns: usize, tile_rows: usize) -> Result<RowTiles> {
    let new = |rows, group| RowTiles::new(rows, work.rows_per_split, tile_rows, group);
    let total = new(work.rows_of_batch, 1).num_tiles();
    if !work.is_sum || total <= ONE_LEVEL {
        return Ok(new(work.rows, 1));
    }
    let mut group = total.isqrt() + 1;
    loop {
        let tiles = new(work.rows_of_batch, group);
        let tickets = columns * (1 + (tiles.splits * tiles.groups_per_split) as usize);
        if 4 * tickets <= TICKET_BYTES {
            return Ok(new(work.rows, group));
        }
        if group > total {
            let message = format!("{} splits of {} channels need {tickets} tickets", tiles.splits, work.channels);
            return Err(Error::unsupported(op, message));
        }
        group *= 2;
    }
}

/// Whether these tensors can be walked by vectors of 16 bytes.
pub(crate) fn is_wide(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| {
        let vector = VECTOR_BYTES / t.dtype().size_bytes();
        t.shape().c.is_multiple_of(vector)
            && t.pitch_c().is_multiple_of(vector)
            && t.memory().address().is_multiple_of(VECTOR_BYTES as u64)
    })
}

/// A channel pitch as kernels take it.
pub(crate) fn pitch(op: &'static str, tensor: &Tensor) -> Result<i32> {
    i32::try_from(tensor.pitch_c())
        .map_err(|_| Error::unsupported(op, format!("a channel pitch of {} must be below 2^31", tensor.pitch_c())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Variants = variants!("op");

    fn plan(rows: usize, splits: usize, channels: usize, dtype: DType, is_wide: bool, is_sum: bool) -> RowPlan {
        let rows_per_split = rows.div_ceil(splits);
        let work = RowWork { rows, rows_of_batch: rows, rows_per_split, channels, dtype, is_wide, batch: 4, is_sum };
        RowPlan::new("op", NAMES, &work).unwrap()
    }

    #[test]
    fn columns_of_channels() {
        // channels, type, wide -> kernel, channels of a block, columns
        let bf16 = DType::Bf16;
        for (c, dtype, wide, want) in [
            (8, bf16, true, ("op_vector8_bf16", 8, 1)),
            (24, bf16, true, ("op_vector8_bf16", 24, 1)),
            (64, bf16, true, ("op_vector8_bf16", 64, 1)),
            (80, bf16, true, ("op_vector8_bf16", 80, 1)),
            (256, bf16, true, ("op_vector8_bf16", 256, 1)),
            (320, bf16, true, ("op_vector8_bf16", 80, 4)),
            (2048, bf16, true, ("op_vector8_bf16", 256, 8)),
            (2304, DType::F16, true, ("op_vector8_f16", 256, 9)),
            (64, DType::F32, true, ("op_vector4_f32", 64, 1)),
            (3, bf16, false, ("op_scalar_bf16", 3, 1)),
            (20, bf16, false, ("op_scalar_bf16", 20, 1)),
            (257, DType::F32, false, ("op_scalar_f32", 51, 6)),
            (1, DType::F32, false, ("op_scalar_f32", 1, 1)),
        ] {
            let plan = plan(1000, 1, c, dtype, wide, true);
            assert_eq!((plan.kernel, plan.column, plan.columns), want, "{c} channels of {dtype:?}, wide {wide}");
        }
    }

    #[test]
    fn tiles_of_rows() {
        // rows, splits, channels, sums -> rows of a tile, tiles, tiles of a group
        for (rows, splits, c, is_sum, want) in [
            (10, 1, 64, true, (128, 1, 1)),
            (802_816, 1, 64, true, (512, 1568, 40)),   // slow stem of 8 clips
            (3_211_264, 1, 8, true, (2048, 1568, 40)), // fast stem
            (25_088, 8, 256, true, (32, 784, 29)),     // 8 splits of 8 x 14 x 28 positions
            (1568, 1, 2048, true, (32, 49, 8)),
            (802_816, 1, 64, false, (640, 1255, 1)),
            (1568, 1, 2048, false, (32, 49, 1)),
        ] {
            let plan = plan(rows, splits, c, DType::Bf16, true, is_sum);
            let RowTiles { tile_rows, group_tiles, .. } = plan.tiles;
            let got = (tile_rows as usize, plan.tiles.num_tiles(), group_tiles as usize);
            assert_eq!(got, want, "{rows} rows in {splits} splits, {c} channels: {plan}");
        }
    }

    #[test]
    fn the_last_split_is_smaller() {
        let tiles = RowTiles::new(1000, 300, 128, 2);
        // 128 + 128 + 44 three times, then 100
        assert_eq!((tiles.splits, tiles.tiles_per_split, tiles.num_tiles()), (4, 3, 10));
        assert_eq!((tiles.groups_per_split, tiles.num_groups()), (2, 7));
    }

    #[test]
    fn tickets_suffice() {
        for (rows, splits, c) in [(1 << 28, 1, 2048), (1 << 20, 512, 64), (1 << 26, 64, 8192)] {
            let plan = plan(rows, splits, c, DType::Bf16, true, true);
            let tiles = plan.tiles;
            assert!(
                4 * plan.columns * (1 + (tiles.splits * tiles.groups_per_split) as usize) <= TICKET_BYTES,
                "{plan}"
            );
        }
        let work = RowWork {
            rows: 1 << 20,
            rows_of_batch: 1 << 20,
            rows_per_split: 1,
            channels: 64,
            dtype: DType::Bf16,
            is_wide: true,
            batch: 4,
            is_sum: true,
        };
        assert!(RowPlan::new("op", NAMES, &work).unwrap_err().to_string().contains("tickets"));
        let work = RowWork { rows: 1 << 30, ..work };
        assert!(RowPlan::new("op", NAMES, &work).unwrap_err().to_string().contains("below 1073741824"));
    }
}
