// The wrappers of kernels/common/ptx.cuh, by the same names, on top of the emulator.
#pragma once
#include <cstdint>

#include "machine.hpp"

inline uint32_t smem_u32(const void* p) { return simt::shared_address(p); }
