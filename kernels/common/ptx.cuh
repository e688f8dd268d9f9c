// Every PTX instruction that the kernels use: one instruction a wrapper, in this file and the two it includes, and
// `asm` nowhere else. With SIMT_EMU the same names come from the emulator (kernels/simt/ptx_emulation.hpp).
//
// Shared memory is addressed by 32 bits (smem_u32). Wrappers whose instruction says `.aligned` are called by whole
// warps, those of wgmma and setmaxnreg by whole warpgroups (128 threads). Files that use what is below "sm_90a" guard
// their kernels by `#if defined(SIMT_EMU) || __CUDA_ARCH_FEAT_SM90_ALL`.
#pragma once

#ifdef SIMT_EMU
#include "../simt/simt.hpp"
#else
#include <cstdint>
#include <cstring>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define PTX_FUNCTION __device__ __forceinline__

// Makes a kernel known to the emulator; nothing on the device.
#define SIMT_EXPORT(kernel)
// All dynamic shared memory of the block as an array of T, aligned as 128-byte swizzles ask for.
#define DYN_SMEM(T, name)                                             \
    extern __shared__ __align__(1024) unsigned char dynamic_shared[]; \
    T* const name = reinterpret_cast<T*>(dynamic_shared)

// The 32-bit shared address of a pointer into shared memory.
PTX_FUNCTION uint32_t smem_u32(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// ---- matrices ---------------------------------------------------------------------------------------
// NUM (1, 2, 4) matrices of 8 x 8 16-bit elements. Row r of matrix i lies at the address that lane 8 i + r gives,
// 16-byte aligned. Lane l gets of each elements 2 (l % 4), 2 (l % 4) + 1 of row l / 4 (TRANSPOSE: of column l / 4).
template <int NUM, bool TRANSPOSE>
PTX_FUNCTION void ldmatrix(uint32_t (&r)[NUM], uint32_t address) {
    static_assert(NUM == 1 || NUM == 2 || NUM == 4, "1, 2 or 4 matrices");
    if constexpr (NUM == 1 && !TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
    if constexpr (NUM == 1 && TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(r[0])
                     : "r"(address)
                     : "memory");
    if constexpr (NUM == 2 && !TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    if constexpr (NUM == 2 && TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address)
                     : "memory");
    if constexpr (NUM == 4 && !TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    if constexpr (NUM == 4 && TRANSPOSE)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
}

// d[16][8] += a[16][16] b[16][8] (row, column major fragments), 16-bit factors, f32 sums.
template <bool BF16>
PTX_FUNCTION void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (BF16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d[16][8] += a[16][8] b[8][8].
template <bool BF16>
PTX_FUNCTION void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
    if constexpr (BF16)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    else
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

// ---- cp.async ---------------------------------------------------------------------------------------
// 16 bytes from global to shared memory, both 16-byte aligned; the first source_bytes are read, the rest become 0.
PTX_FUNCTION void cp_async16(uint32_t shared, const void* global, int source_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes)
                 : "memory");
}
// The same with 4, 8 or 16 bytes, aligned to that, through the first-level cache.
template <int BYTES>
PTX_FUNCTION void cp_async_ca(uint32_t shared, const void* global, int source_bytes) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "4, 8 or 16 bytes");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(BYTES),
                 "r"(source_bytes)
                 : "memory");
}
PTX_FUNCTION void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most MAY_STAY of the thread's newest groups are under way.
template <int MAY_STAY>
PTX_FUNCTION void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(MAY_STAY) : "memory");
}

// ---- named barriers ---------------------------------------------------------------------------------
// Barrier ID of 16 (0 is __syncthreads') for num_threads threads, a multiple of 32; arrive does not wait.
template <int ID>
PTX_FUNCTION void named_bar_sync(int num_threads) {
    static_assert(ID > 0 && ID < 16, "barrier 0 is __syncthreads'");
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(num_threads) : "memory");
}
template <int ID>
PTX_FUNCTION void named_bar_arrive(int num_threads) {
    static_assert(ID > 0 && ID < 16, "barrier 0 is __syncthreads'");
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(num_threads) : "memory");
}

// ---- ordered memory operations, visible to the whole GPU --------------------------------------------
PTX_FUNCTION uint32_t ld_acquire_gpu(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
PTX_FUNCTION void st_release_gpu(uint32_t* p, uint32_t v) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
// Returns the old value.
PTX_FUNCTION uint32_t atom_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
    uint32_t old;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}
PTX_FUNCTION void red_add_release_gpu(uint32_t* p, uint32_t v) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include "ptx_sm90.cuh"
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "ptx_wgmma.cuh"
#endif

// The first statement of every kernel: one that was launched while the grid before it still ran (src/device/launch.rs) waits
// until that has finished and its writes can be seen, and only then lets the grid after it start. Code for older GPUs, which
// have no such launches, does nothing.
__device__ __forceinline__ void begin_grid() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    griddep_wait();
    griddep_launch_dependents();
#endif
}
#endif  // SIMT_EMU
