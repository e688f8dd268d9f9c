// Which positions a window holds, and which windows hold a position: plain C++, so that a host test reads the very functions
// that the kernels use. Window o of an axis begins at o * stride - padding; its positions are numbered from there.
#pragma once
#include "../common/divide.cuh"

struct PoolAxis {
    int32_t input, output;  // sizes
    int32_t kernel, stride, padding;
    Divider by_stride;
    Divider by_size;        // by the size of the side that is walked: forward the output, grad_input the input
};
static_assert(sizeof(PoolAxis) == 44, "mirrored in Rust");

struct PoolRange {
    int32_t begin, end;
};

// The positions of the input that window o holds.
DIVIDE_FUNCTION PoolRange inputs_of(const PoolAxis& a, int32_t o) {
    const int32_t first = o * a.stride - a.padding, end = first + a.kernel;
    return {first < 0 ? 0 : first, end < a.input ? end : a.input};
}
// Number of a position in window o.
DIVIDE_FUNCTION int32_t tap_of(const PoolAxis& a, int32_t o, int32_t i) { return i - (o * a.stride - a.padding); }
// The windows that hold position i.
DIVIDE_FUNCTION PoolRange windows_of(const PoolAxis& a, int32_t i) {
    const int32_t at = i + a.padding;
    const int32_t first = at < a.kernel ? 0 : a.by_stride.quotient(at - a.kernel) + 1;
    const int32_t end = a.by_stride.quotient(at) + 1;
    return {first, end < a.output ? end : a.output};
}

struct PoolPosition {
    int32_t n, t, h, w;
};

// A row of the side that is walked.
DIVIDE_FUNCTION PoolPosition position_of(const PoolAxis& t, const PoolAxis& h, const PoolAxis& w, int32_t row) {
    const int32_t nth = w.by_size.quotient(row), nt = h.by_size.quotient(nth), n = t.by_size.quotient(nt);
    return {n, nt - n * int32_t(t.by_size.divisor), nth - nt * int32_t(h.by_size.divisor),
            row - nth * int32_t(w.by_size.divisor)};
}
