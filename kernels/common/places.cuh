// Where elements of large arrays lie: 64-bit, since a tensor may have more than 2^31 elements. Plain C++, so that a host test
// reads the very functions that the kernels use.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define PLACES_FUNCTION __host__ __device__ __forceinline__
#else
#define PLACES_FUNCTION inline
#endif

// Row `row` of clip `clip`, of [clips][rows].
PLACES_FUNCTION int64_t row_at(int32_t clip, int32_t rows, int32_t row) { return int64_t(clip) * rows + row; }
// Position (n, t, h, w) of [n][frames][height][width].
PLACES_FUNCTION int64_t position_at(int32_t n, int32_t frames, int32_t t, int32_t height, int32_t h, int32_t width, int32_t w) {
    return ((int64_t(n) * frames + t) * height + h) * width + w;
}
// Element `column` of row `row`, of rows that are `pitch` apart.
PLACES_FUNCTION int64_t place_at(int64_t row, int32_t pitch, int32_t column) { return row * pitch + column; }
