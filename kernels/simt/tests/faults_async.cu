// Kernels with a mistake in asynchronous code; see faults.cu.
#include "../../unit/unit.cuh"

// ---- cp.async ---------------------------------------------------------------------------------------
// Sums up flags[1] pieces of a (uint4 [pieces][32]) by a ring of 3 stages; each thread reads its neighbour's part.
// Block: 32; shared: 1536 bytes; output: u32 [32]. 1: the wait allows one group too many; 2: no __syncwarp before the
// read; 3: none before the refill; 4: no wait at the end; 5: a source that is not aligned; 6: a copy behind the end of
// shared memory.
extern "C" __global__ void fault_cp_async(const UnitArgs args) {
    DYN_SMEM(uint4, shared);
    const int tid = threadIdx.x, fault = args.flags[0], pieces = args.flags[1];
    const uint32_t base = smem_u32(shared) + tid * 16;
    const uint8_t* from = pointer<const uint8_t>(args.a) + tid * 16 + (fault == 5 ? 4 : 0);
    auto load = [&](int i) {
        if (i < pieces) cp_async16(base + i % 3 * 512 + (fault == 6 && i == 2 ? 512 : 0), from + i * 512, 16);
        cp_async_commit();
    };
    load(0), load(1);
    if (fault == 3) load(2);
    uint32_t sum = 0;
    for (int i = 0; i < pieces; i++) {
        if (fault == 1 || fault == 3)
            cp_async_wait<2>();
        else
            cp_async_wait<1>();
        if (fault != 2) __syncwarp();
        sum += shared[i % 3 * 32 + (tid ^ 1)].x;
        if (fault == 3) {
            load(i + 3);  // into the stage that the neighbour may still read
        } else {
            __syncwarp();
            load(i + 2);
        }
    }
    if (fault == 4)
        cp_async16(base, from, 16);
    else
        cp_async_wait<0>();
    pointer<uint32_t>(args.output)[tid] = sum;
}
SIMT_EXPORT(fault_cp_async)

// ---- mbarrier and TMA -------------------------------------------------------------------------------
// A producing warp loads flags[1] boxes of 1024 bytes (map: f32 [boxes * 256]), a consuming warp sums them up, 2
// stages. Block: 64; shared: 3072 bytes; output: f32 [32]. 1: expect_tx is too small; 2: the producer ignores the empty
// barrier; 3: the consumer waits for the wrong parity; 4: a slot is released before it is read; 5: no init; 6: an
// arrival too many; 7: nobody waits for the last box; 8: a shared address that is not aligned; 9: not the rank of the
// map.
extern "C" __global__ void fault_tma_ring(const UnitArgs args, const __grid_constant__ CUtensorMap map) {
    DYN_SMEM(uint8_t, shared);
    const uint32_t base = smem_u32(shared), full = base + 2048, empty = full + 16;
    const int tid = threadIdx.x, lane = tid & 31, fault = args.flags[0], boxes = args.flags[1];
    if (tid == 0 && fault != 5)
        for (int s = 0; s < 2; s++) mbar_init(full + 8 * s, 1), mbar_init(empty + 8 * s, 32);
    fence_mbar_init();
    __syncthreads();
    if (tid >= 32) {
        for (int i = 0; lane == 0 && i < boxes + (fault == 7); i++) {
            const int s = i & 1;
            if (i >= 2 && fault != 2) mbar_wait(empty + 8 * s, (i / 2 - 1) & 1);
            mbar_arrive_expect_tx(full + 8 * s, fault == 1 ? 512 : 1024);
            if (fault == 6) mbar_arrive(full + 8 * s);
            if (fault == 9)
                tma_load_2d(base + s * 1024, &map, full + 8 * s, i * 256, 0);
            else
                tma_load_1d(base + s * 1024 + (fault == 8 ? 64 : 0), &map, full + 8 * s, i * 256);
        }
        return;
    }
    float sum = 0.0f;
    for (int i = 0; i < boxes; i++) {
        const int s = i & 1;
        mbar_wait(full + 8 * s, (i / 2 + (fault == 3)) & 1);
        if (fault == 4) mbar_arrive(empty + 8 * s);
        for (int k = lane; k < 256; k += 32) sum += reinterpret_cast<const float*>(shared)[s * 256 + (k ^ 1)];
        if (fault != 4) mbar_arrive(empty + 8 * s);
    }
    pointer<float>(args.output)[lane] = sum;
}
SIMT_EXPORT(fault_tma_ring)

// A box of bits[0] bytes goes from a to the map's tensor, the output, through shared memory. Block: 32. 1: no
// fence.proxy.async; 2: no barrier between the writes and the store; 3: shared memory is overwritten before
// wait_group.read; 4: no wait at all.
extern "C" __global__ void fault_tma_store(const UnitArgs args, const __grid_constant__ CUtensorMap map) {
    DYN_SMEM(uint8_t, shared);
    const int bytes = int(args.bits[0]), fault = args.flags[0];
    fill_shared(shared, args.a, bytes);
    if (fault != 1) fence_proxy_async();
    if (fault != 2) __syncthreads();
    if (threadIdx.x != 0) return;
    tma_store_2d(&map, smem_u32(shared), 0, 0);
    tma_store_commit();
    if (fault != 3 && fault != 4) tma_store_wait_read<0>();
    if (fault != 4) *reinterpret_cast<uint32_t*>(shared) = 0xDEADBEEF;
    if (fault != 4) tma_store_wait<0>();
}
SIMT_EXPORT(fault_tma_store)

// ---- wgmma ------------------------------------------------------------------------------------------
// D = sum of flags[1] products of 64 x 64 x 64 whose operands the threads copy from a (an image of 16 KiB, 128-byte
// swizzle) into one of 2 stages. Block: 128; shared: 32 KiB; output: f32 [64][64]. bits: descriptors. 1: no
// wgmma_fence; 2: no fence.proxy.async; 3: no __syncthreads before the wgmma; 4: a stage is refilled before its wgmma
// is waited for; 5: no wait at the end; 6: an accumulator is read before the wait; 7: one is written before the wait;
// 8: threads disagree on a descriptor; 9: operands behind the end of shared memory.
extern "C" __global__ void fault_wgmma(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    const int tid = threadIdx.x, lane = tid & 31, fault = args.flags[0];
    const uint64_t base = smem_u32(shared) >> 4;
    float d[32], peek = 0.0f;
    for (int i = 0; i < 32; i++) d[i] = 0.0f;
    for (int i = 0; i < args.flags[1]; i++) {
        const int s = fault == 4 ? 0 : i & 1;
        if (fault == 4 && i > 0) __syncthreads();
        fill_shared(shared + s * 16384, args.a, 16384);
        if (fault != 2) fence_proxy_async();
        if (fault != 3) __syncthreads();
        if (fault == 4 && i > 0) wgmma_wait<0>();
        if (fault != 1) wgmma_fence();
        const uint64_t stage = base + s * 1024 + (fault == 9 ? 1536 : 0);
        for (int k = 0; k < 4; k++)
            wgmma_m64k16<64, true, 0, 0>(d, args.bits[0] + stage + 2 * k + (fault == 8 && tid == 77 ? 2 : 0),
                                         args.bits[1] + stage + 2 * k, 1);
        wgmma_commit();
        if (fault == 6) peek += d[3];
        if (fault == 7 && tid == 5) d[3] = 1.0f;
        if (fault == 5) return;
        if (fault != 4) wgmma_wait<0>();
    }
    if (fault == 4) wgmma_wait<0>();
    for (int i = 0; i < 32; i++) {
        const int row = tid / 32 * 16 + lane / 4 + (i / 2 % 2) * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        pointer<float>(args.output)[row * 64 + column] = d[i] + peek;
    }
}
SIMT_EXPORT(fault_wgmma)

// D = A B of 64 x 64 x 16 with A in registers, two copies of a small exact value; B from c (8 KiB). Block: 128; shared:
// 8 KiB; bits[1]: descriptor; output f32 [64][64]. 1: a register of A changes before the wait.
extern "C" __global__ void fault_wgmma_registers(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    const int tid = threadIdx.x, lane = tid & 31;
    fill_shared(shared, args.c, 8192);
    fence_proxy_async();
    __syncthreads();
    uint32_t a[4];
    float d[32];
    for (int i = 0; i < 4; i++) a[i] = 0x3F803F80u;  // bf16 1, 1
    wgmma_fence();
    wgmma_m64k16_rs<64, true, 0>(d, a, args.bits[1] + (smem_u32(shared) >> 4), 0);
    wgmma_commit();
    if (args.flags[0] == 1 && tid == 9) a[2] = 0;
    wgmma_wait<0>();
    for (int i = 0; i < 32; i++) {
        const int row = tid / 32 * 16 + lane / 4 + (i / 2 % 2) * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        pointer<float>(args.output)[row * 64 + column] = d[i];
    }
}
SIMT_EXPORT(fault_wgmma_registers)

// ---- setmaxnreg -------------------------------------------------------------------------------------
// Block: 384 (168 registers a thread at first); output: u32 [384]. 1: nobody gives registers back; 2: one thread does
// not come; 3: inc to fewer registers than there are.
extern "C" __global__ void fault_setmaxnreg(const UnitArgs args) {
    const int group = threadIdx.x / 128, fault = args.flags[0];
    if (group == 0 && fault != 1) setmaxnreg_dec<40>();
    if (group != 0 && fault != 3 && (fault != 2 || threadIdx.x != 200)) setmaxnreg_inc<232>();
    if (group != 0 && fault == 3) setmaxnreg_inc<160>();
    pointer<uint32_t>(args.output)[threadIdx.x] = threadIdx.x;
}
SIMT_EXPORT(fault_setmaxnreg)
