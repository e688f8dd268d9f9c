// Kernels that are right with flags[0] = 0 and wrong with another value, which chooses the mistake. The emulator must
// find each; tests/suite/emulator/fault.rs lists how. Never compiled for a GPU.
#include "../../unit/unit.cuh"

// ---- shared memory ----------------------------------------------------------------------------------
// Reverses a (u32 [64]) through dynamic shared memory (256 bytes). Block: 64. 1: no __syncthreads; 2: only half of the
// threads come to it; 3: a write behind the end; 4: a read behind the end, of a value that is not used.
extern "C" __global__ void fault_dynamic_shared(const UnitArgs args) {
    DYN_SMEM(uint32_t, shared);
    const int tid = threadIdx.x, fault = args.flags[0];
    shared[tid] = pointer<const uint32_t>(args.a)[tid];
    if (fault == 0 || fault > 2 || (fault == 2 && tid < 32)) __syncthreads();
    if (fault == 2 && tid >= 32) named_bar_sync<1>(64);
    if (fault == 3 && tid == 63) shared[tid + 1] = 7;
    const uint32_t beyond = fault == 4 && tid == 0 ? *reinterpret_cast<volatile uint32_t*>(shared + 64) : 0;
    pointer<uint32_t>(args.output)[tid] = shared[63 - tid] + (beyond & 0);
}
SIMT_EXPORT(fault_dynamic_shared)

// The same, twice, through a static array. 1: no __syncthreads; 2: the second round overwrites the array too early.
extern "C" __global__ void fault_static_shared(const UnitArgs args) {
    __shared__ uint32_t shared[64];
    const int tid = threadIdx.x, fault = args.flags[0];
    for (int round = 1; round >= 0; round--) {
        shared[tid] = pointer<const uint32_t>(args.a)[tid] + round;
        if (fault != 1) __syncthreads();
        pointer<uint32_t>(args.output)[tid] = shared[63 - tid];
        if (fault != 2) __syncthreads();
    }
}
SIMT_EXPORT(fault_static_shared)

// Neighbours in a warp exchange through shared memory (128 bytes). Block: 32. 1: a shuffle stands where __syncwarp is
// needed.
extern "C" __global__ void fault_warp_exchange(const UnitArgs args) {
    DYN_SMEM(uint32_t, shared);
    const int lane = threadIdx.x;
    shared[lane] = lane;
    if (args.flags[0] == 0)
        __syncwarp();
    else
        (void)__shfl_xor_sync(~0u, lane, 1);
    pointer<uint32_t>(args.output)[lane] = shared[lane ^ 1];
}
SIMT_EXPORT(fault_warp_exchange)

// ---- collectives and barriers -----------------------------------------------------------------------
// Block: 64. 1: half a warp at __syncwarp, the other half at a shuffle; 2: a lane outside its mask; 3: one warp does
// not come to bar.sync; 4: warps disagree on its number of threads; 5: a shuffle reads a lane that does not take part.
extern "C" __global__ void fault_collective(const UnitArgs args) {
    const int tid = threadIdx.x, lane = tid & 31, fault = args.flags[0];
    int v = lane;
    if (fault == 1) {
        if (lane < 16)
            __syncwarp();
        else
            v = __shfl_xor_sync(~0u, v, 1);
    }
    if (fault == 2) v = __shfl_sync(0x0000FFFFu, v, 0);
    if (fault == 5 && lane < 16) v = __shfl_sync(0x0000FFFFu, v, 20);
    if (fault != 3 || tid < 32) named_bar_sync<1>(fault == 4 && tid >= 32 ? 96 : 64);
    pointer<int>(args.output)[tid] = v;
}
SIMT_EXPORT(fault_collective)

// ---- global memory ----------------------------------------------------------------------------------
// a: u32 [64]; output: u32 [64 + blocks]. Block: 64. 1: a load behind the end of a; 2: a store before its start; 3: all
// blocks store the same word; 4: a block loads what another stores; 5: threads of a block without __syncthreads; 6: a
// store into the bytes between the end and the next multiple of 16.
extern "C" __global__ void fault_global(const UnitArgs args) {
    const int tid = threadIdx.x, fault = args.flags[0];
    const uint32_t* a = pointer<const uint32_t>(args.a);
    uint32_t* out = pointer<uint32_t>(args.output);
    uint32_t v = a[fault == 1 && tid == 63 ? 64 : tid];
    if (fault == 2 && tid == 0) const_cast<uint32_t*>(a)[-1] = 1;
    if (tid == 0) out[64 + blockIdx.x] = 5;
    if (fault == 3 && tid == 1) out[0] = blockIdx.x;
    if (fault == 4 && tid == 1) v += out[64 + (blockIdx.x + 1) % gridDim.x];
    if (fault != 5) __syncthreads();
    if (tid == 7) v += out[64 + blockIdx.x];
    if (fault == 6 && tid == 0 && blockIdx.x == 0) out[64 + gridDim.x] = 1;
    if (blockIdx.x == 0 && fault != 3) out[tid] = v;
}
SIMT_EXPORT(fault_global)

// The last block reduces (see unit_ticket); output: u32 [2 + blocks]. Block: 64. 1: no fence before the ticket; 2: none
// after it; 3: a plain counter.
extern "C" __global__ void fault_ticket(const UnitArgs args) {
    __shared__ bool is_last;
    uint32_t* ticket = pointer<uint32_t>(args.output);
    uint32_t* partial = ticket + 1;
    const int tid = threadIdx.x, fault = args.flags[0];
    if (tid == 1) partial[blockIdx.x] = blockIdx.x + 1;
    __syncthreads();
    if (tid == 0) {
        if (fault != 1) __threadfence();
        if (fault == 3)
            is_last = (*ticket)++ == gridDim.x - 1;
        else
            is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
        if (fault != 2) __threadfence();
    }
    __syncthreads();
    if (!is_last || tid != 2) return;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < gridDim.x; i++) sum += partial[i];
    partial[gridDim.x] = sum;
}
SIMT_EXPORT(fault_ticket)

// Block: 32; output: u32 [32]. 1: global memory is written before griddepcontrol.wait.
extern "C" __global__ void fault_griddep(const UnitArgs args) {
    if (args.flags[0] == 1) pointer<uint32_t>(args.output)[threadIdx.x] = 1;
    griddep_wait();
    pointer<uint32_t>(args.output)[threadIdx.x] = 2;
}
SIMT_EXPORT(fault_griddep)

// Block: 32; output: u32 [32]. 1: a recursion that is deeper than a thread's stack; 2: __trap.
__attribute__((noinline)) static uint32_t dive(int depth, uint32_t seed) {
    volatile uint32_t pad[256];
    pad[seed % 256] = seed;
    return depth == 0 ? pad[seed % 256] : dive(depth - 1, seed * 5 + 1) + pad[seed % 256];
}

extern "C" __global__ void fault_thread(const UnitArgs args) {
    if (args.flags[0] == 2 && threadIdx.x == 31) __trap();
    pointer<uint32_t>(args.output)[threadIdx.x] = args.flags[0] == 1 ? dive(200, threadIdx.x) : 1;
}
SIMT_EXPORT(fault_thread)
