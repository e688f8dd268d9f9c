// Unit kernels of cp.async. Block: 32 threads; dynamic shared memory: 512 bytes.
#include "unit.cuh"

// Thread t copies the first flags[0] + t % flags[1] bytes of its piece of a; output: what shared memory then holds.
// flags[2]: 4, 8 or 16 by .ca; 16 by .cg where flags[3] is set.
extern "C" __global__ void unit_cp_async(const UnitArgs args) {
    DYN_SMEM(uint8_t, shared);
    const int tid = threadIdx.x, piece = args.flags[2], bytes = args.flags[0] + tid % args.flags[1];
    const uint8_t* from = pointer<const uint8_t>(args.a) + tid * piece;
    const uint32_t to = smem_u32(shared) + tid * piece;
    if (args.flags[3])
        cp_async16(to, from, bytes);
    else if (piece == 16)
        cp_async_ca<16>(to, from, bytes);
    else if (piece == 8)
        cp_async_ca<8>(to, from, bytes);
    else
        cp_async_ca<4>(to, from, bytes);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    dump_shared(shared, args.output, 32 * piece);
}
SIMT_EXPORT(unit_cp_async)

// A ring of 4 stages of 16 bytes a thread: adds up flags[0] pieces of a, u32 [pieces][32][4]; output u32 [32][4].
extern "C" __global__ void unit_cp_async_ring(const UnitArgs args) {
    DYN_SMEM(uint4, shared);
    const int tid = threadIdx.x, pieces = args.flags[0];
    const uint32_t base = smem_u32(shared) + tid * 16;
    const uint4* from = pointer<const uint4>(args.a) + tid;
    for (int s = 0; s < 3; s++) {
        if (s < pieces) cp_async16(base + s * 512, from + s * 32, 16);
        cp_async_commit();
    }
    uint4 sum = {0, 0, 0, 0};
    for (int i = 0; i < pieces; i++) {
        cp_async_wait<2>();
        const uint4 v = shared[i % 4 * 32 + tid];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        const int next = i + 3;
        if (next < pieces) cp_async16(base + next % 4 * 512, from + next * 32, 16);
        cp_async_commit();
    }
    cp_async_wait<0>();
    pointer<uint4>(args.output)[tid] = sum;
}
SIMT_EXPORT(unit_cp_async_ring)
