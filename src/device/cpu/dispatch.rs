//! What the kernels share: how one is entered with its instruction set switched on, and memory that tasks write parts of.

/// Memory that tasks write disjoint parts of. To write through the pointer is unsafe, and says why no two tasks meet.
#[derive(Clone, Copy)]
pub(super) struct SharedMut(*mut f32);
// SAFETY: it is an address; the duties are with whoever uses it.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub fn new(memory: &mut [f32]) -> SharedMut {
        SharedMut(memory.as_mut_ptr())
    }

    pub fn get(self) -> *mut f32 {
        self.0
    }
}

/// Defines `tile_avx512`, `tile_avx2` and `tile_portable`, which enter `tile::<X, R, V>` (of the file where it stands) for the
/// vectors of their instruction set.
macro_rules! tiles_by_instruction_set {
    () => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn tile_avx512<const R: usize, const V: usize>(t: &Tile) {
            unsafe { tile::<std::arch::x86_64::__m512, R, V>(t) }
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn tile_avx2<const R: usize, const V: usize>(t: &Tile) {
            unsafe { tile::<std::arch::x86_64::__m256, R, V>(t) }
        }

        unsafe fn tile_portable<const R: usize, const V: usize>(t: &Tile) {
            unsafe { tile::<super::vector::Portable, R, V>(t) }
        }
    };
}
pub(super) use tiles_by_instruction_set;

/// Calls `kernel::<R, V>(tile)` for `rows`, which must be one of those listed.
macro_rules! by_rows {
    ($kernel:ident, $rows:expr, $v:literal, $tile:expr, [$($r:literal)+]) => {
        match $rows {
            $($r => $kernel::<$r, $v>($tile),)+
            other => unreachable!("a tile of {other} rows"),
        }
    };
}
pub(super) use by_rows;
