// Instructions that need sm_90: part of ptx.cuh, not to be included by itself.
#pragma once

// ---- stmatrix ---------------------------------------------------------------------------------------
// The reverse of ldmatrix.
template <int NUM, bool TRANSPOSE>
PTX_FUNCTION void stmatrix(uint32_t address, const uint32_t (&r)[NUM]) {
    static_assert(NUM == 1 || NUM == 2 || NUM == 4, "1, 2 or 4 matrices");
    if constexpr (NUM == 1 && !TRANSPOSE)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
    if constexpr (NUM == 1 && TRANSPOSE)
        asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
    if constexpr (NUM == 2 && !TRANSPOSE)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(r[0]), "r"(r[1])
                     : "memory");
    if constexpr (NUM == 2 && TRANSPOSE)
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(address), "r"(r[0]),
                     "r"(r[1])
                     : "memory");
    if constexpr (NUM == 4 && !TRANSPOSE)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]),
                     "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory");
    if constexpr (NUM == 4 && TRANSPOSE)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(r[0]),
                     "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory");
}

// ---- mbarrier ---------------------------------------------------------------------------------------
// 8 bytes of shared memory. A phase ends when `count` threads have arrived and all announced bytes have come.
PTX_FUNCTION void mbar_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Makes the initialisation visible to TMA; before the block's first synchronisation.
PTX_FUNCTION void fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PTX_FUNCTION void mbar_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
PTX_FUNCTION void mbar_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
PTX_FUNCTION void mbar_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the phase of this parity (0 for the first) has ended. The loop is part of the wrapper: kernels never
// spin.
PTX_FUNCTION void mbar_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}
// Between ordinary writes of shared or global memory and their use by TMA or wgmma; executed by the writer.
PTX_FUNCTION void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
// The same for the block's shared memory alone: it waits for no write to global memory.
PTX_FUNCTION void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- TMA loads --------------------------------------------------------------------------------------
// `map`: address of a `const __grid_constant__ CUtensorMap` parameter. Coordinates start with the innermost dimension
// and may lie outside the tensor. `shared` is 128-byte aligned, or to 256, 512, 1024 with a swizzle of 32, 64, 128
// bytes.
PTX_FUNCTION void prefetch_tensor_map(const void* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#define PTX_LOAD(rank) \
    "cp.async.bulk.tensor." #rank "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {"
PTX_FUNCTION void tma_load_1d(uint32_t shared, const void* map, uint32_t barrier, int c0) {
    asm volatile(PTX_LOAD(1) "%3}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0) : "memory");
}
PTX_FUNCTION void tma_load_2d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1) {
    asm volatile(PTX_LOAD(2) "%3,%4}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0), "r"(c1) : "memory");
}
PTX_FUNCTION void tma_load_3d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1, int c2) {
    asm volatile(PTX_LOAD(3) "%3,%4,%5}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}
PTX_FUNCTION void tma_load_4d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1, int c2, int c3) {
    asm volatile(PTX_LOAD(4) "%3,%4,%5,%6}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2),
                 "r"(c3)
                 : "memory");
}
PTX_FUNCTION void tma_load_5d(uint32_t shared, const void* map, uint32_t barrier, int c0, int c1, int c2, int c3,
                              int c4) {
    asm volatile(PTX_LOAD(5) "%3,%4,%5,%6,%7}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2),
                 "r"(c3), "r"(c4)
                 : "memory");
}
#undef PTX_LOAD

// im2col: a column of pixels of the bounding box, from (w, h, d, n) on; the offsets choose the filter tap.
#define PTX_IM2COL(rank) \
    "cp.async.bulk.tensor." #rank "d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {"
PTX_FUNCTION void tma_load_im2col_3d(uint32_t shared, const void* map, uint32_t barrier, int c, int w, int n,
                                     uint16_t w_offset) {
    asm volatile(PTX_IM2COL(3) "%3,%4,%5}], [%2], {%6};" ::"r"(shared), "l"(map), "r"(barrier), "r"(c), "r"(w), "r"(n),
                 "h"(w_offset)
                 : "memory");
}
PTX_FUNCTION void tma_load_im2col_4d(uint32_t shared, const void* map, uint32_t barrier, int c, int w, int h, int n,
                                     uint16_t w_offset, uint16_t h_offset) {
    asm volatile(PTX_IM2COL(4) "%3,%4,%5,%6}], [%2], {%7,%8};" ::"r"(shared), "l"(map), "r"(barrier), "r"(c), "r"(w),
                 "r"(h), "r"(n), "h"(w_offset), "h"(h_offset)
                 : "memory");
}
PTX_FUNCTION void tma_load_im2col_5d(uint32_t shared, const void* map, uint32_t barrier, int c, int w, int h, int d,
                                     int n, uint16_t w_offset, uint16_t h_offset, uint16_t d_offset) {
    asm volatile(PTX_IM2COL(5) "%3,%4,%5,%6,%7}], [%2], {%8,%9,%10};" ::"r"(shared), "l"(map), "r"(barrier), "r"(c),
                 "r"(w), "r"(h), "r"(d), "r"(n), "h"(w_offset), "h"(h_offset), "h"(d_offset)
                 : "memory");
}
#undef PTX_IM2COL

// ---- TMA stores -------------------------------------------------------------------------------------
#define PTX_STORE(rank) "cp.async.bulk.tensor." #rank "d.global.shared::cta.tile.bulk_group [%0, {"
PTX_FUNCTION void tma_store_2d(const void* map, uint32_t shared, int c0, int c1) {
    asm volatile(PTX_STORE(2) "%2,%3}], [%1];" ::"l"(map), "r"(shared), "r"(c0), "r"(c1) : "memory");
}
PTX_FUNCTION void tma_store_3d(const void* map, uint32_t shared, int c0, int c1, int c2) {
    asm volatile(PTX_STORE(3) "%2,%3,%4}], [%1];" ::"l"(map), "r"(shared), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
PTX_FUNCTION void tma_store_4d(const void* map, uint32_t shared, int c0, int c1, int c2, int c3) {
    asm volatile(PTX_STORE(4) "%2,%3,%4,%5}], [%1];" ::"l"(map), "r"(shared), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
PTX_FUNCTION void tma_store_5d(const void* map, uint32_t shared, int c0, int c1, int c2, int c3, int c4) {
    asm volatile(PTX_STORE(5) "%2,%3,%4,%5,%6}], [%1];" ::"l"(map), "r"(shared), "r"(c0), "r"(c1), "r"(c2), "r"(c3),
                 "r"(c4)
                 : "memory");
}
#undef PTX_STORE
PTX_FUNCTION void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most MAY_STAY of the thread's newest groups are under way; _read: until they have read shared memory.
template <int MAY_STAY>
PTX_FUNCTION void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(MAY_STAY) : "memory");
}
template <int MAY_STAY>
PTX_FUNCTION void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(MAY_STAY) : "memory");
}

// ---- dependent grids, fused multiply-add ------------------------------------------------------------
// The grid after this one may start.
PTX_FUNCTION void griddep_launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
// The grid before this one has finished; before any write of global memory.
PTX_FUNCTION void griddep_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// a b + c, but +0 where a or b is the NaN that TMA's NaN fill leaves outside the tensor.
PTX_FUNCTION __half2 fma_oob(__half2 a, __half2 b, __half2 c) {
    uint32_t x, y, z, r;
    memcpy(&x, &a, 4), memcpy(&y, &b, 4), memcpy(&z, &c, 4);
    asm("fma.rn.oob.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(z));
    memcpy(&a, &r, 4);
    return a;
}
PTX_FUNCTION __nv_bfloat162 fma_oob(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    uint32_t x, y, z, r;
    memcpy(&x, &a, 4), memcpy(&y, &b, 4), memcpy(&z, &c, 4);
    asm("fma.rn.oob.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(z));
    memcpy(&a, &r, 4);
    return a;
}
