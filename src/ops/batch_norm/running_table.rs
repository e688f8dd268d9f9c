//! The running pairs of all norms of a network, moved in one launch: a network has a hundred, of which each alone would take a GPU less
//! time than its launch.

use super::params::RunningEntry;
use super::{BatchNorm, launch, update_running};
use crate::device::{Buffer, DType, Device, Slice, Stream, with_host};
use crate::error::Result;
use crate::ops::check::slice;

/// A norm whose running pair follows the statistics of each step.
#[derive(Clone, Debug)]
pub struct RunningNorm {
    /// Sizes and splits.
    pub op: BatchNorm,
    /// f32 `[splits][3][c]`, where the forward pass leaves them.
    pub stats: Slice,
    /// Running mean and variance, f32 `[c]` each.
    pub running: [Slice; 2],
}

/// Norms, made once and used by every step: the kernel reads from the device where they lie.
#[derive(Clone, Debug)]
pub struct RunningTable {
    norms: Vec<RunningNorm>,
    entries: Slice,
}

const OP: &str = "batch_norm update_running";

impl RunningTable {
    /// # Errors
    /// Sizes that do not fit together; no memory.
    pub fn new(device: &Device, norms: Vec<RunningNorm>) -> Result<RunningTable> {
        for RunningNorm { op, stats, running: [mean, var] } in &norms {
            check(OP, op, stats, [mean, var])?;
        }
        let entry = |norm: &RunningNorm| RunningEntry {
            stats: norm.stats.address(),
            running_mean: norm.running[0].address(),
            running_var: norm.running[1].address(),
            channels: norm.op.shape.c as i32,
            splits: norm.op.splits_used() as i32,
        };
        let entries: Vec<RunningEntry> = norms.iter().map(entry).collect();
        let entries = Buffer::from_host::<u32>(device, bytemuck::cast_slice(&entries))?;
        Ok(RunningTable { norms, entries })
    }

    /// The norms.
    pub fn norms(&self) -> &[RunningNorm] {
        &self.norms
    }

    pub(super) fn entries(&self) -> &Slice {
        &self.entries
    }
}

/// [`update_running`] of all norms of `table`. Without effect where the u32 at `skipped` is not 0: the optimizer's
/// [`State::skipped`](crate::ops::sgd::State::skipped), so that a skipped step leaves the running statistics alone and the host need
/// not ask.
///
/// # Errors
/// Memory of another device.
pub fn update_running_all(stream: &Stream, table: &RunningTable, momentum: f32, skipped: Option<&Slice>) -> Result<()> {
    skipped.map_or(Ok(()), |word| slice(OP, "skipped", word, 1, DType::U32))?;
    if *stream.device() != Device::Cpu {
        return launch::update_running_all(stream, OP, table, momentum, skipped);
    }
    if let Some(skipped) = skipped
        && with_host([skipped], [], |[word], []| Ok(word.get::<u32>()?[0] != 0))?
    {
        return Ok(());
    }
    let update = |norm: &RunningNorm| {
        update_running(stream, &norm.op, &norm.stats, momentum, &norm.running[0], &norm.running[1])
    };
    table.norms.iter().try_for_each(update)
}

pub(super) fn check(name: &'static str, op: &BatchNorm, stats: &Slice, [mean, var]: [&Slice; 2]) -> Result<()> {
    op.check(name)?;
    op.check_is_whole(name)?;
    slice(name, "stats", stats, op.stats_len(), DType::F32)?;
    slice(name, "running_mean", mean, op.shape.c, DType::F32)?;
    slice(name, "running_var", var, op.shape.c, DType::F32)
}
