// What a kernel file sees instead of the CUDA compiler: keywords, built-in variables, device functions, and the
// emulated instructions. Reached through kernels/common/ptx.cuh when SIMT_EMU is defined.
#pragma once
#include "keywords.hpp"
// keywords.hpp comes first: it undoes what the toolkit's headers define.
#include "atomics.hpp"
#include "builtins.hpp"
#include "half_functions.hpp"
#include "launch.hpp"
#include "ptx_emulation.hpp"
#include "warp.hpp"
