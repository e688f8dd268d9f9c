// Unit kernels of wgmma and setmaxnreg. Block: 128 threads.
#include "unit.cuh"

// D = A B, or 2 A B where flags[1] is set (a second wgmma accumulates). a: an image of shared memory, flags[2] bytes;
// bits[0] and bits[1]: descriptors of A and B in it, with addresses relative to its start; c: A's registers u32
// [128][4] for the RS form. output: f32 [64][N]. flags[0]: N.
template <int N>
__device__ __forceinline__ void write_d(const UnitArgs& args, const float (&d)[N / 2]) {
    const int tid = threadIdx.x, lane = tid & 31;
    for (int i = 0; i < N / 2; i++) {
        const int row = tid / 32 * 16 + lane / 4 + (i / 2 % 2) * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        pointer<float>(args.output)[row * N + column] = d[i];
    }
}

template <int N, bool BF16, int TA, int TB>
__device__ __forceinline__ void multiply_ss(const UnitArgs& args, uint64_t base) {
    float d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = -1.0f;  // scale_d 0 must drop it
    wgmma_fence();
    wgmma_m64k16<N, BF16, TA, TB>(d, args.bits[0] + base, args.bits[1] + base, 0);
    if (args.flags[1]) wgmma_m64k16<N, BF16, TA, TB>(d, args.bits[0] + base, args.bits[1] + base, 1);
    wgmma_commit();
    wgmma_wait<0>();
    write_d<N>(args, d);
}

template <int N, bool BF16, int TB>
__device__ __forceinline__ void multiply_rs(const UnitArgs& args, uint64_t base) {
    float d[N / 2];
    uint32_t a[4];
    for (int i = 0; i < N / 2; i++) d[i] = -1.0f;
    for (int i = 0; i < 4; i++) a[i] = pointer<const uint32_t>(args.c)[threadIdx.x * 4 + i];
    wgmma_fence();
    wgmma_m64k16_rs<N, BF16, TB>(d, a, args.bits[1] + base, 0);
    if (args.flags[1]) wgmma_m64k16_rs<N, BF16, TB>(d, a, args.bits[1] + base, 1);
    wgmma_commit();
    wgmma_wait<0>();
    write_d<N>(args, d);
}

__device__ __forceinline__ uint64_t prepare(const UnitArgs& args, uint8_t* shared) {
    fill_shared(shared, args.a, args.flags[2]);
    fence_proxy_async_shared();
    __syncthreads();
    return smem_u32(shared) >> 4;
}

#define UNIT_EVERY_N(CASE)                                                                                            \
    CASE(8)                                                                                                           \
    CASE(16) CASE(24) CASE(32) CASE(40) CASE(48) CASE(56) CASE(64) CASE(72) CASE(80) CASE(88) CASE(96) CASE(104)      \
        CASE(112) CASE(120) CASE(128) CASE(136) CASE(144) CASE(152) CASE(160) CASE(168) CASE(176) CASE(184) CASE(192) \
            CASE(200) CASE(208) CASE(216) CASE(224) CASE(232) CASE(240) CASE(248) CASE(256)

#define UNIT_WGMMA(name, CASE)                                                    \
    extern "C" __global__ void __launch_bounds__(128) name(const UnitArgs args) { \
        DYN_SMEM(uint8_t, shared);                                                \
        const uint64_t base = prepare(args, shared);                              \
        switch (args.flags[0]) { UNIT_EVERY_N(CASE) }                             \
    }                                                                             \
    SIMT_EXPORT(name)

#define UNIT_SS_BF16(N) \
    case N: multiply_ss<N, true, 0, 0>(args, base); break;
#define UNIT_SS_F16(N) \
    case N: multiply_ss<N, false, 0, 0>(args, base); break;
#define UNIT_RS_BF16(N) \
    case N: multiply_rs<N, true, 0>(args, base); break;
#define UNIT_RS_F16(N) \
    case N: multiply_rs<N, false, 0>(args, base); break;
UNIT_WGMMA(unit_wgmma_ss_bf16, UNIT_SS_BF16)
UNIT_WGMMA(unit_wgmma_ss_f16, UNIT_SS_F16)
UNIT_WGMMA(unit_wgmma_rs_bf16, UNIT_RS_BF16)
UNIT_WGMMA(unit_wgmma_rs_f16, UNIT_RS_F16)

// N = 64, the operands' majors by flags[3] (A) and flags[4] (B): 0 K-major, 1 M/N-major. flags[5]: 1 bf16, 2 A in
// registers.
extern "C" __global__ void __launch_bounds__(128) unit_wgmma_major(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    const uint64_t base = prepare(args, shared);
    const int major = args.flags[3] * 2 + args.flags[4];
    if (args.flags[5] & 2) {
        if (args.flags[5] & 1)
            multiply_rs<64, true, 1>(args, base);
        else
            multiply_rs<64, false, 1>(args, base);
    } else if (args.flags[5] & 1) {
        if (major == 0) multiply_ss<64, true, 0, 0>(args, base);
        if (major == 1) multiply_ss<64, true, 0, 1>(args, base);
        if (major == 2) multiply_ss<64, true, 1, 0>(args, base);
        if (major == 3) multiply_ss<64, true, 1, 1>(args, base);
    } else {
        if (major == 0) multiply_ss<64, false, 0, 0>(args, base);
        if (major == 1) multiply_ss<64, false, 0, 1>(args, base);
        if (major == 2) multiply_ss<64, false, 1, 0>(args, base);
        if (major == 3) multiply_ss<64, false, 1, 1>(args, base);
    }
}
SIMT_EXPORT(unit_wgmma_major)

// A in registers and B N-major, wider than one row of atoms: flags[0] is N, 128 or 256; flags[5]: 1 bf16.
extern "C" __global__ void __launch_bounds__(128) unit_wgmma_rs_n_major(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    const uint64_t base = prepare(args, shared);
    if (args.flags[5] & 1) {
        if (args.flags[0] == 128) multiply_rs<128, true, 1>(args, base);
        if (args.flags[0] == 256) multiply_rs<256, true, 1>(args, base);
    } else {
        if (args.flags[0] == 128) multiply_rs<128, false, 1>(args, base);
        if (args.flags[0] == 256) multiply_rs<256, false, 1>(args, base);
    }
}
SIMT_EXPORT(unit_wgmma_rs_n_major)

// D = A B, N = 256, bf16, flags[1] times 16 k in a chain: each product a group of its own, of which one stays in flight while
// the next fragments of A are loaded. c: A's registers u32 [flags[1]][128][4]; bits[1]: B's descriptor, bits[0]: what it grows
// by from 16 k to the next. a, flags[2] and output as above.
extern "C" __global__ void __launch_bounds__(128) unit_wgmma_chain(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    const uint64_t base = prepare(args, shared);
    const uint32_t* from = pointer<const uint32_t>(args.c) + threadIdx.x * 4;
    float d[128];
    for (int i = 0; i < 128; i++) d[i] = -1.0f;
    uint32_t even[4], odd[4];
    for (int step = 0; step < args.flags[1]; step += 2) {
        wgmma_wait<1>();
        for (int i = 0; i < 4; i++) even[i] = from[step * 512 + i];
        wgmma_fence();
        wgmma_m64k16_rs<256, true, 0>(d, even, args.bits[1] + base + step * args.bits[0], step > 0);
        wgmma_commit();
        wgmma_wait<1>();
        for (int i = 0; i < 4; i++) odd[i] = from[(step + 1) * 512 + i];
        wgmma_fence();
        wgmma_m64k16_rs<256, true, 0>(d, odd, args.bits[1] + base + (step + 1) * args.bits[0], 1);
        wgmma_commit();
    }
    wgmma_wait<0>();
    write_d<256>(args, d);
}
SIMT_EXPORT(unit_wgmma_chain)

// Warpgroup 0 gives registers, 1 and 2 take them. Block: 384, which starts with 168 a thread; output: u32 [384].
extern "C" __global__ void __launch_bounds__(384, 1) unit_setmaxnreg(const UnitArgs args) {
    if (threadIdx.x < 128)
        setmaxnreg_dec<40>();
    else
        setmaxnreg_inc<232>();
    pointer<uint32_t>(args.output)[threadIdx.x] = threadIdx.x;
}
SIMT_EXPORT(unit_setmaxnreg)
