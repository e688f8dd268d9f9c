// fma.rn.oob: a factor that is the NaN of an out-of-bounds element makes the result +0.
#pragma once
#include <cstring>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "half_functions.hpp"
#include "tensor_map.hpp"

namespace simt {

template <class T2>
T2 fma_oob(T2 a, T2 b, T2 c) {
    uint16_t x[2], y[2], r[2];
    T2 result = __hfma2(a, b, c);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    memcpy(r, &result, sizeof r);
    for (int i = 0; i < 2; i++)
        if (x[i] == OOB_NAN_16 || y[i] == OOB_NAN_16) r[i] = 0;
    memcpy(static_cast<void*>(&result), r, sizeof r);
    return result;
}

}  // namespace simt
