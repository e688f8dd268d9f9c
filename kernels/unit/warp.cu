// Unit kernels of block and warp synchronisation, shuffles, votes and atomics. Block: 64 threads unless stated.
#include "unit.cuh"

// a: f32 [flags[0]]; output: f32 sum per block of 128 threads.
extern "C" __global__ void __launch_bounds__(128) unit_block_sum(const UnitArgs args) {
    __shared__ float partial[128];
    const int tid = threadIdx.x;
    float sum = 0.0f;
    for (int i = blockIdx.x * 128 + tid; i < args.flags[0]; i += gridDim.x * 128)
        sum += pointer<const float>(args.a)[i];
    partial[tid] = sum;
    __syncthreads();
    for (int half = 64; half > 0; half >>= 1) {
        if (tid < half) partial[tid] += partial[tid + half];
        __syncthreads();
    }
    if (tid == 0) pointer<float>(args.output)[blockIdx.x] = partial[0];
}
SIMT_EXPORT(unit_block_sum)

// output: i32 [8][64]: the four shuffles, width 32 and 8, of the value 100 + thread.
extern "C" __global__ void unit_shuffle(const UnitArgs args) {
    const int tid = threadIdx.x, v = 100 + tid;
    int32_t* out = pointer<int32_t>(args.output) + tid;
    out[0 * 64] = __shfl_sync(~0u, v, 5);
    out[1 * 64] = __shfl_xor_sync(~0u, v, 3);
    out[2 * 64] = __shfl_up_sync(~0u, v, 2);
    out[3 * 64] = __shfl_down_sync(~0u, v, 2);
    out[4 * 64] = __shfl_sync(~0u, v, 5, 8);
    out[5 * 64] = __shfl_xor_sync(~0u, v, 9, 8);
    out[6 * 64] = __shfl_up_sync(~0u, v, 3, 8);
    out[7 * 64] = __shfl_down_sync(~0u, v, 3, 8);
}
SIMT_EXPORT(unit_shuffle)

// output: u32 [4][64]: ballot, any, all of "lane divisible by 3"; ballot of odd lanes among the even ones (divergent).
extern "C" __global__ void unit_vote(const UnitArgs args) {
    const int tid = threadIdx.x, lane = tid & 31;
    uint32_t* out = pointer<uint32_t>(args.output) + tid;
    out[0 * 64] = __ballot_sync(~0u, lane % 3 == 0);
    out[1 * 64] = __any_sync(~0u, lane == 31 && tid < 32);
    out[2 * 64] = __all_sync(~0u, tid < 32);
    if (lane & 1)
        out[3 * 64] = __ballot_sync(0xAAAAAAAAu, lane < 16);
    else
        out[3 * 64] = __ballot_sync(0x55555555u, lane < 8);
}
SIMT_EXPORT(unit_vote)

// Named barriers: warp 0 writes, warp 1 reads. output: i32 [32].
extern "C" __global__ void unit_named_barrier(const UnitArgs args) {
    DYN_SMEM(int32_t, box);
    const int tid = threadIdx.x;
    if (tid < 32) {
        box[tid] = 7 * tid;
        named_bar_arrive<1>(64);
    } else {
        named_bar_sync<1>(64);
        pointer<int32_t>(args.output)[tid - 32] = box[63 - tid];
    }
}
SIMT_EXPORT(unit_named_barrier)

// The last block adds up what all blocks wrote. output: u32 [1 + blocks], then the sum, all zero before; flags[0]: 0
// fences, 1 the ticket by atom.acq_rel, 2 a release before and an acquire load after.
extern "C" __global__ void unit_ticket(const UnitArgs args) {
    __shared__ bool is_last;
    uint32_t* ticket = pointer<uint32_t>(args.output);
    uint32_t* partial = ticket + 1;
    const int tid = threadIdx.x;
    if (tid == 1) partial[blockIdx.x] = blockIdx.x + 1;
    __syncthreads();
    if (tid == 0) {
        if (args.flags[0] == 0) {
            __threadfence();
            is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
            __threadfence();
        } else if (args.flags[0] == 1) {
            is_last = atom_add_acq_rel_gpu(ticket, 1u) == gridDim.x - 1;
        } else {
            red_add_release_gpu(ticket, 1u);
            is_last = ld_acquire_gpu(ticket) == gridDim.x;
        }
    }
    __syncthreads();
    if (!is_last || tid != 2) return;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x; i++) sum += partial[i];
    // With flags[0] 2 several blocks may see the full count: all store the same.
    if (args.flags[0] == 2)
        st_release_gpu(partial + gridDim.x, sum);
    else
        partial[gridDim.x] = sum;
}
SIMT_EXPORT(unit_ticket)

// output: u32 [8], zero before: atomics of all threads.
extern "C" __global__ void unit_atomics(const UnitArgs args) {
    uint32_t* out = pointer<uint32_t>(args.output);
    const unsigned tid = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(out + 0, tid);
    atomicMax(out + 1, tid);
    atomicOr(out + 2, 1u << (tid & 31));
    atomicInc(out + 3, 9u);
    atomicExch(out + 4, 42u);
    atomicCAS(out + 5, 0u, 7u);
    atomicSub(out + 6, 1u);
    atomicAdd(reinterpret_cast<float*>(out + 7), 1.0f);
}
SIMT_EXPORT(unit_atomics)
