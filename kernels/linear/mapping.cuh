// How products are cut along k, and where partial sums lie. Plain C++, so that a host test reads these very functions.
#pragma once
#include "../common/places.cuh"

// k = begin .. end of a split; splits that begin beyond k do not exist. k < 2^30.
struct KRange {
    int32_t begin, end;
};
PLACES_FUNCTION KRange k_range(int32_t k, int32_t k_per_split, int32_t split) {
    const int32_t begin = split * k_per_split;
    return {begin, k - begin < k_per_split ? k : begin + k_per_split};
}
// Stages of `stage_k` products that a range takes.
PLACES_FUNCTION int32_t num_stages(const KRange& range, int32_t stage_k) {
    return (range.end - range.begin - 1) / stage_k + 1;
}
// The first partial sum of a split of a tile, of [tiles][splits][tile_len].
PLACES_FUNCTION int64_t partial_at(int32_t tile, int32_t splits, int32_t split, int32_t tile_len) {
    return (int64_t(tile) * splits + split) * tile_len;
}
