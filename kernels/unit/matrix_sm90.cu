// Unit kernels of stmatrix, fma.rn.oob and griddepcontrol. Block: 32 threads.
#include "unit.cuh"

// a: u32 [NUM][32] registers; output: the 512 bytes of shared memory, zero before.
template <int NUM, bool TRANSPOSE>
__device__ __forceinline__ void store(const UnitArgs& args, uint32_t address) {
    uint32_t r[NUM];
    for (int i = 0; i < NUM; i++) r[i] = pointer<const uint32_t>(args.a)[i * 32 + threadIdx.x];
    stmatrix<NUM, TRANSPOSE>(address, r);
}

extern "C" __global__ void unit_stmatrix(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    reinterpret_cast<uint4*>(shared)[threadIdx.x] = uint4{0, 0, 0, 0};
    __syncthreads();
    const uint32_t address = smem_u32(shared) + threadIdx.x * 16;
    const int num = args.flags[0];
    if (args.flags[1]) {
        if (num == 1) store<1, true>(args, address);
        if (num == 2) store<2, true>(args, address);
        if (num == 4) store<4, true>(args, address);
    } else {
        if (num == 1) store<1, false>(args, address);
        if (num == 2) store<2, false>(args, address);
        if (num == 4) store<4, false>(args, address);
    }
    __syncthreads();
    dump_shared(shared, args.output, 512);
}
SIMT_EXPORT(unit_stmatrix)

// a, b, c: u32 [32] pairs of halves; output: u32 [2][32]: fma_oob as f16 and as bf16.
extern "C" __global__ void unit_fma_oob(const UnitArgs args) {
    const int tid = threadIdx.x;
    __half2 x, y, z;
    __nv_bfloat162 u, v, w;
    const void* from[3] = {pointer<const uint32_t>(args.a) + tid, pointer<const uint32_t>(args.b) + tid,
                           pointer<const uint32_t>(args.c) + tid};
    memcpy((void*)&x, from[0], 4), memcpy((void*)&y, from[1], 4), memcpy((void*)&z, from[2], 4);
    memcpy((void*)&u, from[0], 4), memcpy((void*)&v, from[1], 4), memcpy((void*)&w, from[2], 4);
    x = fma_oob(x, y, z);
    u = fma_oob(u, v, w);
    memcpy(pointer<uint32_t>(args.output) + tid, &x, 4);
    memcpy(pointer<uint32_t>(args.output) + 32 + tid, &u, 4);
}
SIMT_EXPORT(unit_fma_oob)

// griddepcontrol: output u32 [32]; the wait comes before the first write.
extern "C" __global__ void unit_griddep(const UnitArgs args) {
    griddep_launch_dependents();
    griddep_wait();
    pointer<uint32_t>(args.output)[threadIdx.x] = threadIdx.x;
}
SIMT_EXPORT(unit_griddep)
