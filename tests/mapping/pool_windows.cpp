// kernels/pool3d/windows.cuh: windows hold the positions that hold them, numbered alike from both sides.
#include "pool3d/windows.cuh"
#include "check.hpp"

// As src/ops/divide.rs makes it.
static Divider divider(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t(1) << shift) < divisor) shift++;
    return {divisor, uint32_t((((uint64_t(1) << shift) - divisor) << 32) / divisor + 1), shift};
}

static void check_axis(int32_t input, int32_t kernel, int32_t stride, int32_t padding) {
    if (kernel > input + 2 * padding || padding > kernel / 2) return;
    const int32_t output = (input + 2 * padding - kernel) / stride + 1;
    const PoolAxis a = {input, output, kernel, stride, padding, divider(stride), divider(input)};
    for (int32_t o = 0; o < output; o++) {
        const PoolRange range = inputs_of(a, o);
        CHECK(range.begin < range.end);
        for (int32_t i = 0; i < input; i++) {
            const int32_t tap = i - (o * stride - padding);
            const bool is_inside = tap >= 0 && tap < kernel;
            CHECK(is_inside == (i >= range.begin && i < range.end));
            const PoolRange windows = windows_of(a, i);
            CHECK(is_inside == (o >= windows.begin && o < windows.end));
            if (is_inside) CHECK(tap_of(a, o, i) == tap);
        }
    }
}

int main() {
    for (int32_t input = 1; input < 14; input++)
        for (int32_t kernel = 1; kernel < 6; kernel++)
            for (int32_t stride = 1; stride < 5; stride++)
                for (int32_t padding = 0; padding < 3; padding++) check_axis(input, kernel, stride, padding);
    // Positions of a tensor, in order.
    const auto axis = [](int32_t size) { return PoolAxis{size, size, 1, 1, 0, divider(1), divider(size)}; };
    const PoolAxis t = axis(3), h = axis(79), w = axis(40);
    for (int32_t row = 0; row < 5 * 3 * 79 * 40; row++) {
        const PoolPosition p = position_of(t, h, w, row);
        CHECK(((p.n * 3 + p.t) * 79 + p.h) * 40 + p.w == row && p.t < 3 && p.h < 79 && p.w < 40);
    }
    const PoolPosition last = position_of(t, h, w, (1 << 30) - 1);
    CHECK(((int64_t(last.n) * 3 + last.t) * 79 + last.h) * 40 + last.w == (1 << 30) - 1);
    return 0;
}
