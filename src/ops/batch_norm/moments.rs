//! Sums of the moments of many batches, of all norms of a network in one launch: what precise statistics (BN.USE_PRECISE_STATS) are made
//! of. They stay on the device from batch to batch.

use super::params::MomentsEntry;
use super::{BatchNorm, launch};
use crate::device::{Buffer, DType, Device, Slice, Stream, with_host};
use crate::error::Result;
use crate::ops::check::slice;

const OP: &str = "batch_norm add_moments";
/// The 32-bit words of a sum, which is f64.
const SUM_WORDS: usize = 2;

/// A norm whose statistics are added up.
#[derive(Clone, Debug)]
pub struct MomentsNorm {
    /// Sizes and splits.
    pub op: BatchNorm,
    /// f32 `[splits][3][c]`, where the forward pass leaves them.
    pub stats: Slice,
    /// f64 `[2][c]`, held as [`MomentsNorm::sums_len`] u32: of clips times mean, of clips times mean square.
    pub sums: Slice,
}

impl MomentsNorm {
    /// Length of `sums` for so many channels.
    pub const fn sums_len(channels: usize) -> usize {
        2 * SUM_WORDS * channels
    }
}

/// Norms, made once and used by every batch of a shape: the kernel reads from the device where they lie.
#[derive(Clone, Debug)]
pub struct MomentsTable {
    norms: Vec<MomentsNorm>,
    entries: Slice,
}

impl MomentsTable {
    /// # Errors
    /// Sizes that do not fit together; no memory.
    pub fn new(device: &Device, norms: Vec<MomentsNorm>) -> Result<MomentsTable> {
        for MomentsNorm { op, stats, sums } in &norms {
            op.check(OP)?;
            op.check_is_whole(OP)?;
            slice(OP, "stats", stats, op.stats_len(), DType::F32)?;
            slice(OP, "sums", sums, MomentsNorm::sums_len(op.shape.c), DType::U32)?;
        }
        let entry = |MomentsNorm { op, stats, sums }: &MomentsNorm| MomentsEntry {
            stats: stats.address(),
            sums: sums.address(),
            channels: op.shape.c as i32,
            splits: op.splits_used() as i32,
            clips: op.shape.n as i32,
            clips_per_split: op.clips_of_split(0).len() as i32,
            positions_per_clip: positions_per_clip(op) as i32,
            reserved: 0,
        };
        let entries: Vec<MomentsEntry> = norms.iter().map(entry).collect();
        let entries = Buffer::from_host::<u32>(device, bytemuck::cast_slice(&entries))?;
        Ok(MomentsTable { norms, entries })
    }

    /// The norms.
    pub fn norms(&self) -> &[MomentsNorm] {
        &self.norms
    }

    pub(super) fn entries(&self) -> &Slice {
        &self.entries
    }
}

/// Adds the statistics of the batch at hand to the sums of every norm of `table`: over the splits, clips of the split times mean, and times
/// population variance plus squared mean. Divided by the clips of all batches they are mean and mean square of a position.
///
/// # Errors
/// Memory of another device.
pub fn add_moments_all(stream: &Stream, table: &MomentsTable) -> Result<()> {
    match stream.device() {
        Device::Cpu => table.norms.iter().try_for_each(add_moments),
        Device::Cuda(_) | Device::Simt => launch::add_moments_all(stream, OP, table),
    }
}

fn add_moments(MomentsNorm { op, stats, sums }: &MomentsNorm) -> Result<()> {
    let c = op.shape.c;
    with_host([stats], [sums], |[stats], [sums]| {
        let (means, squares) = bytemuck::cast_slice_mut::<u32, f64>(sums.into_mut()?).split_at_mut(c);
        for (split, row) in stats.get::<f32>()?.chunks_exact(3 * c).take(op.splits_used()).enumerate() {
            let clips = op.clips_of_split(split).len();
            let count = (clips * positions_per_clip(op)) as f64;
            for ch in 0..c {
                let (mean, unbiased_var) = (f64::from(row[ch]), f64::from(row[2 * c + ch]));
                means[ch] += clips as f64 * mean;
                squares[ch] += clips as f64 * (unbiased_var * (count - 1.0) / count + mean * mean);
            }
        }
        Ok(())
    })
}

fn positions_per_clip(op: &BatchNorm) -> usize {
    op.shape.t * op.shape.h * op.shape.w
}

/// The values of sums, of one norm or of several that lie one behind the other. Waits for the device.
///
/// # Errors
/// Memory of another type.
pub fn read_moments(sums: &Slice) -> Result<Vec<f64>> {
    let words = sums.read::<u32>()?;
    let value = |pair: &[u32]| f64::from_bits(u64::from(pair[0]) | u64::from(pair[1]) << 32);
    Ok(words.chunks_exact(SUM_WORDS).map(value).collect())
}
