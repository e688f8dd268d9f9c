#include "check.hpp"
#include "warp.hpp"

namespace simt {

void sync_warp(uint32_t mask) {
    if (mask == ~0u) mask = fiber->warp->alive | 1u << fiber->lane;  // the last warp of a block may be incomplete
    warp_collective(mask, "__syncwarp", nullptr, [](void**, uint32_t lanes) { check::warp_join(lanes); });
}

struct Shuffle {
    uint64_t value;
    int source;
    uint64_t result;
};

uint64_t shuffle(uint32_t mask, uint64_t value, int source_lane) {
    Shuffle s{value, source_lane & 31, 0};
    warp_collective(mask, "__shfl_sync", &s, [](void** all, uint32_t lanes) {
        for (int lane = 0; lane < 32; lane++) {
            if (!(lanes >> lane & 1)) continue;
            Shuffle* own = static_cast<Shuffle*>(all[lane]);
            if (!(lanes >> own->source & 1))
                fail("__shfl_sync: lane %d reads lane %d, which does not take part", lane, own->source);
            own->result = static_cast<Shuffle*>(all[own->source])->value;
        }
    });
    return s.result;
}

struct Vote {
    bool predicate;
    uint32_t result;
};

uint32_t ballot(uint32_t mask, bool predicate) {
    Vote v{predicate, 0};
    warp_collective(mask, "vote", &v, [](void** all, uint32_t lanes) {
        uint32_t result = 0;
        for (int lane = 0; lane < 32; lane++)
            if ((lanes >> lane & 1) && static_cast<Vote*>(all[lane])->predicate) result |= 1u << lane;
        for (int lane = 0; lane < 32; lane++)
            if (lanes >> lane & 1) static_cast<Vote*>(all[lane])->result = result;
    });
    return v.result;
}

}  // namespace simt
