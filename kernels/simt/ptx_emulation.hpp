// The wrappers of kernels/common/ptx.cuh, by the same names, on top of the emulator.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "atomics.hpp"
#include "cp_async.hpp"
#include "grid_control.hpp"
#include "half_functions.hpp"
#include "machine.hpp"
#include "matrix.hpp"
#include "mbarrier.hpp"
#include "oob_fma.hpp"
#include "proxy_fence.hpp"
#include "tma.hpp"
#include "warpgroup_registers.hpp"
#include "wgmma.hpp"

inline uint32_t smem_u32(const void* p) { return simt::shared_address(p); }

// ---- matrices ---------------------------------------------------------------------------------------
template <int NUM, bool TRANSPOSE>
inline void ldmatrix(uint32_t (&r)[NUM], uint32_t address) {
    simt::load_matrix(r, address, NUM, TRANSPOSE);
}
template <int NUM, bool TRANSPOSE>
inline void stmatrix(uint32_t address, const uint32_t (&r)[NUM]) {
    simt::store_matrix(r, address, NUM, TRANSPOSE);
}
template <bool BF16>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    simt::mma_m16n8(d, a, b, 16, BF16);
}
template <bool BF16>
inline void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    simt::mma_m16n8(d, a, b, 8, BF16);
}

// ---- copies -----------------------------------------------------------------------------------------
inline void cp_async16(uint32_t shared, const void* global, int source_bytes) {
    simt::cp_async(shared, global, 16, source_bytes);
}
template <int BYTES>
inline void cp_async_ca(uint32_t shared, const void* global, int source_bytes) {
    simt::cp_async(shared, global, BYTES, source_bytes);
}
inline void cp_async_commit() { simt::cp_async_commit_group(); }
template <int MAY_STAY>
inline void cp_async_wait() {
    simt::cp_async_wait_group(MAY_STAY);
}

// ---- barriers ---------------------------------------------------------------------------------------
template <int ID>
inline void named_bar_sync(int num_threads) {
    simt::barrier_sync(ID, num_threads, true);
}
template <int ID>
inline void named_bar_arrive(int num_threads) {
    simt::barrier_sync(ID, num_threads, false);
}
inline void mbar_init(uint32_t barrier, uint32_t count) { simt::mbarrier_init(barrier, count); }
inline void mbar_arrive(uint32_t barrier) { simt::mbarrier_arrive(barrier); }
inline void mbar_expect_tx(uint32_t barrier, uint32_t bytes) { simt::mbarrier_expect_tx(barrier, bytes); }
inline void mbar_arrive_expect_tx(uint32_t barrier, uint32_t bytes) { simt::mbarrier_arrive_expect_tx(barrier, bytes); }
inline void mbar_wait(uint32_t barrier, uint32_t parity) { simt::mbarrier_wait(barrier, parity); }
inline void fence_mbar_init() {}  // one block runs at a time on its shared memory
inline void fence_proxy_async() { simt::proxy_fence(); }
inline void fence_proxy_async_shared() { simt::proxy_fence(); }

// ---- ordered memory operations ----------------------------------------------------------------------
inline uint32_t ld_acquire_gpu(const uint32_t* p) {
    simt::before_atomic(p, 4, false, simt::Order::Acquire);
    const uint32_t v = uint32_t(simt::load_bits(p, 4));
    simt::after_atomic(p, simt::Order::Acquire);
    return v;
}
inline void st_release_gpu(uint32_t* p, uint32_t v) {
    simt::read_modify_write(p, [v](uint32_t) { return v; }, simt::Order::Release);
}
inline uint32_t atom_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
    return simt::read_modify_write(p, [v](uint32_t old) { return old + v; }, simt::Order::AcquireRelease);
}
inline void red_add_release_gpu(uint32_t* p, uint32_t v) {
    simt::read_modify_write(p, [v](uint32_t old) { return old + v; }, simt::Order::Release);
}

// ---- TMA --------------------------------------------------------------------------------------------
inline void prefetch_tensor_map(const void*) {}
inline void tma_load_1d(uint32_t shared, const void* map, uint32_t barrier, int c0) {
    simt::tma_load(map, shared, barrier, {c0});
}
inline void tma_load_2d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1) {
    simt::tma_load(map, shared, barrier, {c0, c1});
}
inline void tma_load_3d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1, int c2) {
    simt::tma_load(map, shared, barrier, {c0, c1, c2});
}
inline void tma_load_4d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1, int c2, int c3) {
    simt::tma_load(map, shared, barrier, {c0, c1, c2, c3});
}
inline void tma_load_5d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1, int c2, int c3, int c4) {
    simt::tma_load(map, shared, barrier, {c0, c1, c2, c3, c4});
}
inline void tma_load_im2col_3d(uint32_t shared, const void* map, uint32_t barrier, int c, int w, int n,
                               uint16_t w_offset) {
    simt::tma_load_im2col(map, shared, barrier, {c, w, n}, {w_offset});
}
inline void tma_load_im2col_4d(uint32_t shared, const void* map, uint32_t barrier, int c, int w, int h, int n,
                               uint16_t w_offset, uint16_t h_offset) {
    simt::tma_load_im2col(map, shared, barrier, {c, w, h, n}, {w_offset, h_offset});
}
inline void tma_load_im2col_5d(uint32_t shared, const void* map, uint32_t barrier, int c, int w, int h, int d, int n,
                               uint16_t w_offset, uint16_t h_offset, uint16_t d_offset) {
    simt::tma_load_im2col(map, shared, barrier, {c, w, h, d, n}, {w_offset, h_offset, d_offset});
}
inline void tma_store_2d(const void* map, uint32_t shared, int c0, int c1) { simt::tma_store(map, shared, {c0, c1}); }
inline void tma_store_3d(const void* map, uint32_t shared, int c0, int c1, int c2) {
    simt::tma_store(map, shared, {c0, c1, c2});
}
inline void tma_store_4d(const void* map, uint32_t shared, int c0, int c1, int c2, int c3) {
    simt::tma_store(map, shared, {c0, c1, c2, c3});
}
inline void tma_store_5d(const void* map, uint32_t shared, int c0, int c1, int c2, int c3, int c4) {
    simt::tma_store(map, shared, {c0, c1, c2, c3, c4});
}
inline void tma_store_commit() { simt::tma_store_commit_group(); }
template <int MAY_STAY>
inline void tma_store_wait() {
    simt::tma_store_wait_group(MAY_STAY, false);
}
template <int MAY_STAY>
inline void tma_store_wait_read() {
    simt::tma_store_wait_group(MAY_STAY, true);
}

// ---- wgmma ------------------------------------------------------------------------------------------
inline void wgmma_fence() { simt::wgmma_fence(); }
inline void wgmma_commit() { simt::wgmma_commit_group(); }
template <int MAY_STAY>
inline void wgmma_wait() {
    simt::wgmma_wait_group(MAY_STAY);
}
template <int N, bool BF16, int TRANSPOSE_A, int TRANSPOSE_B>
inline void wgmma_m64k16(float (&d)[N / 2], uint64_t descriptor_a, uint64_t descriptor_b, int scale_d) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 from 8 to 256");
    simt::wgmma_mma_async(
        {d, nullptr, descriptor_a, descriptor_b, N, BF16, scale_d != 0, TRANSPOSE_A != 0, TRANSPOSE_B != 0});
}
template <int N, bool BF16, int TRANSPOSE_B>
inline void wgmma_m64k16_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t descriptor_b, int scale_d) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 from 8 to 256");
    simt::wgmma_mma_async({d, a, 0, descriptor_b, N, BF16, scale_d != 0, false, TRANSPOSE_B != 0});
}

// ---- registers, dependent grids, fused multiply-add --------------------------------------------------
template <int COUNT>
inline void setmaxnreg_inc() {
    simt::set_max_registers(COUNT, true);
}
template <int COUNT>
inline void setmaxnreg_dec() {
    simt::set_max_registers(COUNT, false);
}
inline void griddep_launch_dependents() { simt::grid_launch_dependents(); }
inline void griddep_wait() { simt::grid_dependency_wait(); }
inline void begin_grid() {
    griddep_wait();
    griddep_launch_dependents();
}
inline __half2 fma_oob(__half2 a, __half2 b, __half2 c) { return simt::fma_oob(a, b, c); }
inline __nv_bfloat162 fma_oob(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) { return simt::fma_oob(a, b, c); }
