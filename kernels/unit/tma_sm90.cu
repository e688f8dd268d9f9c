// Unit kernels of mbarrier and TMA.
#include "unit.cuh"

// Two stages between a producing warp and a consuming one, flags[0] rounds. Block: 64; shared 16 + 256 bytes.
// output: u32 [rounds][32].
extern "C" __global__ void unit_mbarrier_ring(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    uint32_t* stage = reinterpret_cast<uint32_t*>(shared);  // [2][32]
    const uint32_t full = smem_u32(shared) + 256, empty = full + 16;
    const int tid = threadIdx.x, lane = tid & 31;
    if (tid == 0)
        for (int s = 0; s < 2; s++) mbar_init(full + 8 * s, 32), mbar_init(empty + 8 * s, 32);
    fence_mbar_init();
    __syncthreads();
    for (int i = 0; i < args.flags[0]; i++) {
        const int s = i & 1, use = i >> 1;
        if (tid < 32) {
            if (use > 0) mbar_wait(empty + 8 * s, (use - 1) & 1);
            stage[s * 32 + lane] = 1000 * i + lane;
            mbar_arrive(full + 8 * s);
        } else {
            mbar_wait(full + 8 * s, use & 1);
            pointer<uint32_t>(args.output)[i * 32 + lane] = stage[s * 32 + 31 - lane];
            mbar_arrive(empty + 8 * s);
        }
    }
}
SIMT_EXPORT(unit_mbarrier_ring)

// One load at the coordinates flags[1..5] of a map of rank flags[0]; bits[0]: bytes, the box. output: shared memory.
// Block: 32; shared: bytes rounded up to 1024, and 1024 more.
extern "C" __global__ void unit_tma_load(const UnitArgs args, const __grid_constant__ CUtensorMap map) {
    DYN_SMEM(uint8_t, shared);
    const int bytes = int(args.bits[0]);
    const uint32_t to = smem_u32(shared), barrier = to + (bytes + 1023) / 1024 * 1024;
    const int32_t* c = args.flags + 1;
    if (threadIdx.x == 0) {
        prefetch_tensor_map(&map);
        mbar_init(barrier, 1);
        fence_mbar_init();
        // Announced in two halves: expect_tx alone, then with the arrival.
        mbar_expect_tx(barrier, bytes / 2);
        mbar_arrive_expect_tx(barrier, bytes - bytes / 2);
        if (args.flags[0] == 1) tma_load_1d(to, &map, barrier, c[0]);
        if (args.flags[0] == 2) tma_load_2d(to, &map, barrier, c[0], c[1]);
        if (args.flags[0] == 3) tma_load_3d(to, &map, barrier, c[0], c[1], c[2]);
        if (args.flags[0] == 4) tma_load_4d(to, &map, barrier, c[0], c[1], c[2], c[3]);
        if (args.flags[0] == 5) tma_load_5d(to, &map, barrier, c[0], c[1], c[2], c[3], c[4]);
    }
    __syncthreads();
    mbar_wait(barrier, 0);
    dump_shared(shared, args.output, bytes);
}
SIMT_EXPORT(unit_tma_load)

// As unit_tma_load by im2col; bits[1]: the offsets of W, H, D, 16 bits each.
extern "C" __global__ void unit_tma_im2col(const UnitArgs args, const __grid_constant__ CUtensorMap map) {
    DYN_SMEM(uint8_t, shared);
    const int bytes = int(args.bits[0]);
    const uint32_t to = smem_u32(shared), barrier = to + (bytes + 1023) / 1024 * 1024;
    const int32_t* c = args.flags + 1;
    const uint16_t w = uint16_t(args.bits[1]), h = uint16_t(args.bits[1] >> 16), d = uint16_t(args.bits[1] >> 32);
    if (threadIdx.x == 0) {
        mbar_init(barrier, 1);
        fence_mbar_init();
        mbar_arrive_expect_tx(barrier, bytes);
        if (args.flags[0] == 3) tma_load_im2col_3d(to, &map, barrier, c[0], c[1], c[2], w);
        if (args.flags[0] == 4) tma_load_im2col_4d(to, &map, barrier, c[0], c[1], c[2], c[3], w, h);
        if (args.flags[0] == 5) tma_load_im2col_5d(to, &map, barrier, c[0], c[1], c[2], c[3], c[4], w, h, d);
    }
    __syncthreads();
    mbar_wait(barrier, 0);
    dump_shared(shared, args.output, bytes);
}
SIMT_EXPORT(unit_tma_im2col)

// Stores a box of bits[0] bytes from a through shared memory; then, after the shared memory may be used again, fills it
// with other values.
extern "C" __global__ void unit_tma_store(const UnitArgs args, const __grid_constant__ CUtensorMap map) {
    DYN_SMEM(uint8_t, shared);
    const int bytes = int(args.bits[0]);
    const int32_t* c = args.flags + 1;
    fill_shared(shared, args.a, bytes);
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t from = smem_u32(shared);
        if (args.flags[0] == 2) tma_store_2d(&map, from, c[0], c[1]);
        if (args.flags[0] == 3) tma_store_3d(&map, from, c[0], c[1], c[2]);
        if (args.flags[0] == 4) tma_store_4d(&map, from, c[0], c[1], c[2], c[3]);
        if (args.flags[0] == 5) tma_store_5d(&map, from, c[0], c[1], c[2], c[3], c[4]);
        tma_store_commit();
        tma_store_wait_read<0>();
        *reinterpret_cast<uint32_t*>(shared) = 0xDEADBEEF;
        tma_store_wait<0>();
    }
}
SIMT_EXPORT(unit_tma_store)
