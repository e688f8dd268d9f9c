//! The vector operations that kernels are written with, once per instruction set.
//!
//! # Safety
//! All functions: the processor must have the instruction set of the type (its kernels are only entered through functions
//! with that `target_feature`). `broadcast` reads one float, `load` and `store` touch `LANES` floats from the pointer on,
//! the masked forms the first `n` of the mask; they need no alignment.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(super) trait Vector: Copy {
    const LANES: usize;
    type Mask: Copy;
    unsafe fn splat(value: f32) -> Self;
    /// One float in all lanes. (Not a plain `*from`: builds with assertions would check it in the innermost loops.)
    #[inline(always)]
    unsafe fn broadcast(from: *const f32) -> Self {
        unsafe { Self::splat(from.read_unaligned()) }
    }
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The first `n` lanes.
    unsafe fn mask(n: usize) -> Self::Mask;
    /// Lanes outside the mask are 0.
    unsafe fn load_masked(from: *const f32, mask: Self::Mask) -> Self;
    unsafe fn store_masked(self, to: *mut f32, mask: Self::Mask);
    /// `self * factor + sum`.
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;
    type Mask = __mmask16;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn mask(n: usize) -> Self::Mask {
        if n >= 16 { u16::MAX } else { (1u16 << n) - 1 }
    }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: Self::Mask) -> Self {
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: Self::Mask) {
        unsafe { _mm512_mask_storeu_ps(to, mask, self) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        unsafe { _mm512_fmadd_ps(self, factor, sum) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const LANES: usize = 8;
    type Mask = __m256i;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn mask(n: usize) -> Self::Mask {
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: Self::Mask) -> Self {
        unsafe { _mm256_maskload_ps(from, mask) }
    }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: Self::Mask) {
        unsafe { _mm256_maskstore_ps(to, mask, self) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        unsafe { _mm256_fmadd_ps(self, factor, sum) }
    }
}

/// Eight lanes in plain Rust, which the compiler turns into what the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Vector for Portable {
    const LANES: usize = 8;
    type Mask = usize;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Portable(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn mask(n: usize) -> usize {
        n.min(8)
    }
    #[inline(always)]
    unsafe fn load_masked(from: *const f32, mask: usize) -> Self {
        let mut lanes = [0.0; 8];
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), mask) };
        Portable(lanes)
    }
    #[inline(always)]
    unsafe fn store_masked(self, to: *mut f32, mask: usize) {
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, mask) };
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        // Not fused: without the instruction a fused multiply-add is a slow function call.
        Portable(std::array::from_fn(|i| self.0[i] * factor.0[i] + sum.0[i]))
    }
}
