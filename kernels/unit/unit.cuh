// What all unit kernels share: their one parameter struct and small helpers. A unit kernel runs one wrapper of
// kernels/common/ptx.cuh on small exact values and writes everything that it gives, so that a GPU's output can be
// compared with the emulator's bit for bit. tests/suite/emulator has the inputs and an independent meaning of each.
#pragma once
#include "../common/ptx.cuh"

// Mirrored by `UnitArgs` in tests/suite/emulator.
struct UnitArgs {
    uint64_t a, b, c, output;  // addresses; the kernel says of what
    uint64_t bits[2];
    int32_t flags[6];
};
static_assert(sizeof(UnitArgs) == 72, "mirrored in Rust");

template <class T>
__device__ __forceinline__ T* pointer(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

// Copies `bytes` (a multiple of 16) from global to dynamic shared memory, by all threads of the block.
__device__ __forceinline__ void fill_shared(uint8_t* shared, uint64_t from, int bytes) {
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x)
        reinterpret_cast<uint4*>(shared)[i] = pointer<const uint4>(from)[i];
}

// And back.
__device__ __forceinline__ void dump_shared(const uint8_t* shared, uint64_t to, int bytes) {
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x)
        pointer<uint4>(to)[i] = reinterpret_cast<const uint4*>(shared)[i];
}
