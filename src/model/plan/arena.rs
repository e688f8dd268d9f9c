//! Places storages in one arena so that those alive at the same time never overlap.

/// Storages begin at multiples of this, as device buffers do.
pub const ALIGNMENT_BYTES: usize = 256;

/// A piece of the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Size.
    pub len_bytes: usize,
    /// Index of the first op that touches it.
    pub first_op: usize,
    /// Index of the last op that touches it.
    pub last_op: usize,
    /// Where it begins in the arena; a multiple of [`ALIGNMENT_BYTES`].
    pub offset_bytes: usize,
}

impl Storage {
    /// A storage that no op uses yet.
    pub fn new(len_bytes: usize) -> Storage {
        Storage { len_bytes, first_op: usize::MAX, last_op: 0, offset_bytes: 0 }
    }

    /// Whether both are needed during some op.
    pub fn lives_with(&self, other: &Storage) -> bool {
        self.first_op <= other.last_op && other.first_op <= self.last_op
    }
}

/// Gives every storage its offset and returns the size of the arena. Largest first, each into the smallest gap between
/// the storages alive at the same time that holds it, or behind them.
pub fn assign_offsets(storages: &mut [Storage]) -> usize {
    let mut order: Vec<usize> = (0..storages.len()).filter(|&i| storages[i].first_op <= storages[i].last_op).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(storages[i].len_bytes), storages[i].first_op, i));
    let mut placed: Vec<usize> = vec![];
    let mut arena_bytes = 0;
    for i in order {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .map(|&j| &storages[j])
            .filter(|other| other.lives_with(&storages[i]))
            .map(|other| (other.offset_bytes, other.offset_bytes + other.len_bytes.next_multiple_of(ALIGNMENT_BYTES)))
            .collect();
        taken.sort_unstable();
        let offset_bytes = smallest_gap(&taken, storages[i].len_bytes.next_multiple_of(ALIGNMENT_BYTES));
        storages[i].offset_bytes = offset_bytes;
        arena_bytes = arena_bytes.max(offset_bytes + storages[i].len_bytes.next_multiple_of(ALIGNMENT_BYTES));
        placed.push(i);
    }
    arena_bytes
}

/// Start of the smallest gap between the sorted ranges `taken` that holds `len`, or the end of the last range.
fn smallest_gap(taken: &[(usize, usize)], len: usize) -> usize {
    let mut end = 0;
    let mut best: Option<(usize, usize)> = None;
    for &(start, stop) in taken {
        let gap = start.saturating_sub(end);
        if gap >= len && best.is_none_or(|(size, _)| gap < size) {
            best = Some((gap, end));
        }
        end = end.max(stop);
    }
    best.map_or(end, |(_, start)| start)
}
