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
// Stages of at most `stage_k` products that a range takes. They restart at every `together` products: a batch whose clips come
// in several launches, each a multiple of so many, is then cut as in one.
PLACES_FUNCTION int32_t num_stages(const KRange& range, int32_t together, int32_t stage_k) {
    const int32_t len = range.end - range.begin, full = (len - 1) / together, of_full = (together - 1) / stage_k + 1;
    return full * of_full + (len - full * together - 1) / stage_k + 1;
}
PLACES_FUNCTION KRange stage_range(const KRange& range, int32_t together, int32_t stage_k, int32_t stage) {
    const int32_t of_full = (together - 1) / stage_k + 1, full = stage / of_full, first = (stage - full * of_full) * stage_k;
    const int32_t begin = range.begin + full * together + first;
    const int32_t left = range.end - begin, in_full = together - first, len = left < in_full ? left : in_full;
    return {begin, begin + (len < stage_k ? len : stage_k)};
}
// The first partial sum of a split of a tile, of [tiles][splits][tile_len].
PLACES_FUNCTION int64_t partial_at(int32_t tile, int32_t splits, int32_t split, int32_t tile_len) {
    return (int64_t(tile) * splits + split) * tile_len;
}
