// kernels/sgd/mapping.cuh: each element of a task is one thread's, also beyond 2^31.
#include "sgd/mapping.cuh"
#include "check.hpp"

static void check_task(uint64_t begin, uint32_t len) {
    const SgdTask task = {begin, len, 0.0f};
    uint64_t next = begin / SGD_TILE * SGD_TILE, found = 0;
    for (int round = 0; round < SGD_ROUNDS; round++)
        for (int thread = 0; thread < SGD_THREADS; thread++, next += SGD_VECTOR) {
            const uint64_t first = first_element(task, round, thread);
            CHECK(first == next && first % SGD_VECTOR == 0);
            for (int i = 0; i < SGD_VECTOR; i++) {
                const bool is_own = own_elements(task, first) >> i & 1u;
                CHECK(is_own == (first + i >= begin && first + i < begin + len));
                found += is_own;
            }
        }
    CHECK(found == len);
}

int main() {
    for (const uint64_t tile : {uint64_t(0), uint64_t(1), uint64_t(1) << 19, (uint64_t(1) << 32) + 3})
        for (const uint32_t begin : {0u, 1u, 64u, 4095u})
            for (const uint32_t len : {1u, 3u, 64u, 1000u, 4096u})
                if (begin + len <= SGD_TILE) check_task(tile * SGD_TILE + begin, len);
    return 0;
}
