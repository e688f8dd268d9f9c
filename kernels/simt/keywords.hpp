// CUDA's keywords and built-in variables for a host compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <cuda.h>  // CUtensorMap; types only, libcuda is not linked
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include "machine.hpp"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __shared__ thread_local  // at block scope: static; a block never leaves its host thread
#define __constant__ const
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict

#define threadIdx (simt::fiber->thread_idx)
#define blockIdx (simt::block->block_idx)
#define blockDim (simt::block->block_dim)
#define gridDim (simt::block->grid_dim)
#define warpSize 32

// All dynamic shared memory of the block as an array of T; on the device `extern __shared__ __align__(1024) T name[]`.
#define DYN_SMEM(T, name) T* const name = reinterpret_cast<T*>(simt::block->shared)
