// kernels/common/places.cuh: rows, positions and elements in order, and beyond 2^31.
#include "common/places.cuh"
#include "check.hpp"

int main() {
    const int32_t n = 3, frames = 4, height = 5, width = 7, pitch = 12, channels = 9;
    int64_t position = 0;
    for (int32_t i = 0; i < n; i++)
        for (int32_t t = 0; t < frames; t++)
            for (int32_t h = 0; h < height; h++)
                for (int32_t w = 0; w < width; w++, position++) {
                    CHECK(position_at(i, frames, t, height, h, width, w) == position);
                    const int32_t row = (t * height + h) * width + w;
                    CHECK(row_at(i, frames * height * width, row) == position);
                    for (int32_t c = 0; c < channels; c++) CHECK(place_at(position, pitch, c) == position * pitch + c);
                }
    // Tensors of more than 2^31 positions and elements: the last of each, from the sizes alone.
    CHECK(position_at(199, 32, 31, 1024, 1023, 1024, 1023) == int64_t(200) * 32 * 1024 * 1024 - 1);
    CHECK(row_at(65534, 1 << 30, (1 << 30) - 1) == (int64_t(65535) << 30) - 1);
    CHECK(place_at(50'000'000, 2048, 2047) == 102'400'002'047);
    CHECK(place_at(row_at(7999, 1 << 20, (1 << 20) - 1), 512, 511) == (int64_t(8000) << 20) * 512 - 1);
    CHECK(place_at((1 << 30) - 1, 2147483647, 2147483646) == (int64_t(1) << 30) * 2147483647 - 1);
    return 0;
}
