// Every PTX instruction that the kernels use: one instruction a wrapper, named after it. No other file holds `asm`.
// With SIMT_EMU the same names come from the emulator in kernels/simt.
#pragma once

#ifdef SIMT_EMU
#include "../simt/simt.hpp"
#else
#include <cstdint>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Makes a kernel known to the emulator; nothing on the device.
#define SIMT_EXPORT(kernel)
// All dynamic shared memory of the block as an array of T, aligned as 128-byte swizzles ask for.
#define DYN_SMEM(T, name) extern __shared__ __align__(1024) T name[]

__device__ __forceinline__ uint32_t smem_u32(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
#endif
