//! The form on wgmma: which convolutions it takes, for which it is chosen, and how its shared memory is cut up.

use super::{AxisClass, OnLoad, Request, THREADS, TILE_K, TILE_M, reads_each_position_once, tile_n};
use crate::ops::conv3d::method::Method;

/// Shared memory that a GPU of compute capability 9.0 gives a block.
const MAX_SHARED_BYTES: usize = 227 << 10;
/// A row of a halo or of the filter in shared memory (`ROW_BYTES` in the kernels).
const ROW_BYTES: usize = TILE_K * 2;
/// Taps that a row keeps a bit for.
const MAX_TAPS: usize = 32;
/// Rows of a box that TMA moves.
const MAX_BOX: usize = 256;
/// More stages keep more bytes under way than a multiprocessor's share of the memory's bandwidth needs.
const MAX_STAGES: usize = 6;
/// Least gemm_k for which it is chosen. A tile of 128 rows x n channels moves 256 (k + n) bytes for 128 k n multiply-adds; up to
/// k = 256 that is memory's time, for mma.sync as well.
const MIN_GEMM_K: usize = 256;

/// Persistent tiles of TILE_M rows x `width` target channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops::conv3d) struct Wgmma {
    pub width: usize,
    /// Whether rows are gathered under a stride.
    pub is_strided: bool,
    /// Rows that a tile reads with one frame of the filter, in whole boxes.
    pub halo_rows: usize,
    pub source_stages: usize,
    pub filter_stages: usize,
    pub shared_bytes: usize,
}

impl Wgmma {
    /// Channels whose sums leave together (`WideTile::SUMS_N` in the kernels).
    pub fn sums_n(&self) -> usize {
        self.width.min(128)
    }

    /// Boxes that a halo comes in.
    pub fn boxes(&self) -> usize {
        self.halo_rows.div_ceil(MAX_BOX)
    }

    /// Blocks' pieces of work.
    pub fn works(&self, tiles: usize, columns: usize, slices: usize) -> usize {
        tiles * columns.div_ceil(self.width / self.sums_n()) * slices
    }
}

/// The form if it is to be used, else none; an error says why it cannot be, where it is asked for.
pub(super) fn wgmma(r: &Request, classes: &[[AxisClass; 3]]) -> Result<Option<Wgmma>, &'static str> {
    match r.method {
        Method::Mma => Ok(None),
        Method::Auto if !is_worth_it(r) => Ok(None),
        Method::Auto => Ok(best(r, classes).ok()),
        Method::Wgmma { tile_n: None } => best(r, classes).map(Some),
        Method::Wgmma { tile_n: Some(width) } => fitting(r, classes, width).map(Some),
    }
}

/// Whole steps of 64 channels on both sides, and enough of them.
fn is_worth_it(r: &Request) -> bool {
    let (source_c, target_c) = r.channels();
    let gemm_k = source_c * r.op.filter.iter().product::<usize>();
    source_c.is_multiple_of(TILE_K) && target_c.is_multiple_of(TILE_K) && gemm_k >= MIN_GEMM_K
}

/// 256 channels where all columns are full and no multiprocessor has more to do for it than with tiles of 128: the source is read,
/// and changed, once for all of them. A join's halo of two tensors leaves no room for it.
fn best(r: &Request, classes: &[[AxisClass; 3]]) -> Result<Wgmma, &'static str> {
    let target_c = r.channels().1;
    let rows = if r.is_grad() { r.op.input } else { r.output };
    let rounds = |width: usize| (rows.num_positions().div_ceil(TILE_M) * (target_c / width)).div_ceil(r.num_sms);
    let width = tile_n(target_c).max(64);
    let is_wide = target_c.is_multiple_of(256) && r.on_load != OnLoad::Join && 2 * rounds(256) <= rounds(128);
    match is_wide.then(|| fitting(r, classes, 256)) {
        Some(Ok(form)) => Ok(form),
        _ => fitting(r, classes, width),
    }
}

/// False where a row's taps lie at fixed distances from its own position, true where rows of one tap are some of the positions: TMA
/// picks these out. Else neither.
fn is_strided(r: &Request) -> Result<bool, &'static str> {
    let (op, is_grad) = (&r.op, r.is_grad());
    match reads_each_position_once(op) {
        true => Ok(false),
        false if !is_grad && op.filter == [1; 3] && op.padding == [0; 3] && op.stride.iter().all(|s| *s <= 8) => {
            Ok(true)
        }
        false => Err("a stride, or an output unlike the input"),
    }
}

fn fitting(r: &Request, classes: &[[AxisClass; 3]], width: usize) -> Result<Wgmma, &'static str> {
    let (source_c, target_c) = r.channels();
    let [ft, fh, fw] = r.op.filter;
    if r.op.groups != 1 {
        return Err("groups");
    }
    if !source_c.is_multiple_of(8) || !target_c.is_multiple_of(8) || !r.is_aligned {
        return Err("channels, a pitch or an address are no multiples of 8 elements");
    }
    let is_strided = is_strided(r)?;
    if ft * fh * fw > MAX_TAPS {
        return Err("more than 32 taps");
    }
    if !matches!(width, 64 | 128 | 256) || (width == 256 && r.on_load == OnLoad::Join) {
        return Err("no tile of that width");
    }
    let reach = classes[0][1].reach * r.op.input.w + classes[0][2].reach;
    let boxes = (TILE_M + reach).div_ceil(MAX_BOX);
    let halo_rows = (TILE_M + reach).next_multiple_of(8 * boxes);
    let form = Wgmma { width, is_strided, halo_rows, source_stages: 0, filter_stages: 0, shared_bytes: 0 };
    form.with_stages(r.on_load, fh * fw).ok_or("a halo too large for shared memory")
}

impl Wgmma {
    /// As many stages as there is room for: halo and filter alternate with one tap a frame; with more, two halos are enough.
    fn with_stages(self, on_load: OnLoad, taps: usize) -> Option<Wgmma> {
        let tensors = if on_load == OnLoad::Join { 2 } else { 1 };
        let (halo_bytes, filter_bytes) = (tensors * self.halo_rows * ROW_BYTES, self.width * ROW_BYTES);
        let left = MAX_SHARED_BYTES.checked_sub(self.bytes_beside(2 * MAX_STAGES))?;
        let (source_stages, filter_stages) = match taps {
            1 => [left / (halo_bytes + filter_bytes); 2].into(),
            _ => (2, left.checked_sub(2 * halo_bytes)? / filter_bytes),
        };
        if source_stages < 2 || filter_stages < 2 {
            return None;
        }
        let [source_stages, filter_stages] = [source_stages, filter_stages].map(|stages: usize| stages.min(MAX_STAGES));
        let rings = source_stages * halo_bytes + filter_stages * filter_bytes;
        let shared_bytes = rings + self.bytes_beside(source_stages + filter_stages);
        Some(Wgmma { source_stages, filter_stages, shared_bytes, ..self })
    }

    /// The sums and their scratch, what there is to know of taps and rows, the flag, barriers: `WideMemory` in the kernels.
    fn bytes_beside(&self, stages: usize) -> usize {
        let sums = TILE_M * (self.sums_n() + 8) * 4 + THREADS * 32;
        sums + MAX_TAPS * (24 + 4) + TILE_M * 8 + 16 + stages * 16
    }
}
