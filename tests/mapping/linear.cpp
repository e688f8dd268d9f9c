// kernels/linear/mapping.cuh: splits cover k once, in whole stages but for the last; partial sums beyond 2^31.
#include "linear/mapping.cuh"
#include "check.hpp"

static void check_cover(int32_t k, int32_t k_per_split) {
    int32_t next = 0;
    const int32_t splits = (k - 1) / k_per_split + 1;
    for (int32_t split = 0; split < splits; split++) {
        const KRange range = k_range(k, k_per_split, split);
        CHECK(range.begin == next && range.end > range.begin && range.end <= k);
        CHECK(split + 1 == splits || range.end - range.begin == k_per_split);
        const int32_t stages = num_stages(range, k, 64);
        CHECK((stages - 1) * 64 < range.end - range.begin && int64_t(stages) * 64 >= range.end - range.begin);
        next = range.end;
    }
    CHECK(next == k);
}

// Stages that restart at every `together` products cover the range once, in order, and never hold two such multiples.
static void check_stages(int32_t k, int32_t together) {
    const KRange range = {0, k};
    int32_t next = 0;
    for (int32_t i = 0, stages = num_stages(range, together, 64); i < stages; i++) {
        const KRange stage = stage_range(range, together, 64, i);
        CHECK(stage.begin == next && stage.end > stage.begin && stage.end - stage.begin <= 64);
        CHECK(stage.begin / together == (stage.end - 1) / together);
        next = stage.end;
    }
    CHECK(next == k);
}

int main() {
    for (int32_t k = 1; k < 300; k++)
        for (int32_t together : {1, 3, 8, 63, 64, 65, 128, 130, 300}) check_stages(k, together);
    for (int32_t k = 1; k < 400; k++)
        for (int32_t k_per_split : {64, 128, 192, 448}) check_cover(k, k_per_split);
    // The most products there can be.
    for (int32_t k : {(1 << 30) - 1, (1 << 30) - 64, (1 << 30) - 65})
        for (int32_t k_per_split : {1 << 23, (1 << 29) + 64, 1 << 30}) check_cover(k, k_per_split);
    // [tiles][splits][64 x 64], in order, the last beyond 2^31.
    CHECK(partial_at(0, 9, 1, 4096) == 4096 && partial_at(1, 9, 0, 4096) == 9 * 4096);
    CHECK(partial_at(65534, 128, 127, 4096) == int64_t(65535) * 128 * 4096 - 4096);
    return 0;
}
