// Unit kernels of ldmatrix and mma.sync. Block: 32 threads.
#include "unit.cuh"

// a: u16 [32][8], the rows of four matrices; output: u32 [NUM][32] registers. flags[0] NUM, flags[1] transpose.
template <int NUM, bool TRANSPOSE>
__device__ __forceinline__ void load(const UnitArgs& args, uint32_t address) {
    uint32_t r[NUM];
    ldmatrix<NUM, TRANSPOSE>(r, address);
    for (int i = 0; i < NUM; i++) pointer<uint32_t>(args.output)[i * 32 + threadIdx.x] = r[i];
}

extern "C" __global__ void unit_ldmatrix(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    fill_shared(shared, args.a, 512);
    __syncthreads();
    const uint32_t address = smem_u32(shared) + threadIdx.x * 16;
    const int num = args.flags[0];
    if (args.flags[1]) {
        if (num == 1) load<1, true>(args, address);
        if (num == 2) load<2, true>(args, address);
        if (num == 4) load<4, true>(args, address);
    } else {
        if (num == 1) load<1, false>(args, address);
        if (num == 2) load<2, false>(args, address);
        if (num == 4) load<4, false>(args, address);
    }
}
SIMT_EXPORT(unit_ldmatrix)

// d = c + a b. a: u32 [32][k / 4], b: u32 [32][k / 8], c: f32 [32][4], each lane's registers; output: f32 [32][4].
// flags[0]: k 8 or 16; flags[1]: bf16.
template <bool BF16>
__device__ __forceinline__ void multiply(const UnitArgs& args) {
    const int lane = threadIdx.x;
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = pointer<const float>(args.c)[lane * 4 + i];
    const uint32_t* from_a = pointer<const uint32_t>(args.a);
    const uint32_t* from_b = pointer<const uint32_t>(args.b);
    if (args.flags[0] == 16) {
        uint32_t a[4], b[2];
        for (int i = 0; i < 4; i++) a[i] = from_a[lane * 4 + i];
        for (int i = 0; i < 2; i++) b[i] = from_b[lane * 2 + i];
        mma_m16n8k16<BF16>(d, a, b);
    } else {
        uint32_t a[2] = {from_a[lane * 2], from_a[lane * 2 + 1]}, b[1] = {from_b[lane]};
        mma_m16n8k8<BF16>(d, a, b);
    }
    for (int i = 0; i < 4; i++) pointer<float>(args.output)[lane * 4 + i] = d[i];
}

extern "C" __global__ void unit_mma(const UnitArgs args) {
    if (args.flags[1])
        multiply<true>(args);
    else
        multiply<false>(args);
}
SIMT_EXPORT(unit_mma)
