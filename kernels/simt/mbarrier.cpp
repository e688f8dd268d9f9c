// bit 0: phase; 1..20: expected arrivals; 21..40: pending arrivals; 41..63: pending transaction bytes, signed.
#include "mbarrier.hpp"

#include <cstdio>
#include <cstring>

#include "check.hpp"

namespace simt {

constexpr int TX_LIMIT = (1 << 20) - 1;

struct Fields {
    uint32_t phase, expected;
    int pending, tx;
};

static Fields unpack(uint64_t v) {
    return {uint32_t(v & 1), uint32_t(v >> 1 & 0xFFFFF), int(v >> 21 & 0xFFFFF), int(int64_t(v) >> 41)};
}

static uint64_t pack(const Fields& f) {
    return uint64_t(f.phase) | uint64_t(f.expected) << 1 | uint64_t(f.pending) << 21 | uint64_t(int64_t(f.tx)) << 41;
}

std::string describe_mbarrier_wait(const Fiber& f) {
    if (strncmp(f.wait_what, "mbarrier", 8) != 0) return "";
    uint64_t word;
    memcpy(&word, shared_pointer(uint32_t(f.wait_a)), sizeof word);
    const Fields v = unpack(word);
    char text[100];
    snprintf(text, sizeof text, " [phase %u, pending arrivals %d of %u, pending bytes %d]", v.phase, v.pending,
             v.expected, v.tx);
    return text;
}

uint64_t* mbarrier_at(uint32_t address) {
    char* p = shared_pointer(address);
    if (reinterpret_cast<uintptr_t>(p) & 7) fail("mbarrier: shared address 0x%x is not 8-byte aligned", address);
    check_shared_bounds(p, 8, "mbarrier");
    return reinterpret_cast<uint64_t*>(p);
}

static Fields state(const uint64_t* barrier) {
    const Fields f = unpack(*barrier);
    if (f.expected == 0 || f.expected == 0xFFFFF) fail("mbarrier is used before mbarrier.init");
    return f;
}

static void update(uint64_t* barrier, int arrivals, int tx) {
    Fields f = state(barrier);
    if (arrivals > f.pending)
        fail("mbarrier: more arrivals in a phase than the %u it was initialised with", f.expected);
    f.pending -= arrivals;
    f.tx += tx;
    if (f.tx > TX_LIMIT || f.tx < -TX_LIMIT) fail("mbarrier: %d pending transaction bytes are out of range", f.tx);
    if (f.pending == 0 && f.tx == 0) {
        f.phase ^= 1;
        f.pending = int(f.expected);
        check::mbarrier_phase(barrier);
        auto& waits = block->mbarrier_waits;
        for (size_t i = 0; i < waits.size();) {
            if (waits[i].barrier != barrier) {
                i++;
                continue;
            }
            wake(waits[i].linear);
            waits[i] = waits.back();
            waits.pop_back();
        }
    }
    *barrier = pack(f);
}

void mbarrier_init(uint32_t address, uint32_t count) {
    if (count == 0 || count >= 0xFFFFF) fail("mbarrier.init with %u arrivals, expected 1 to 2^20 - 2", count);
    uint64_t* barrier = mbarrier_at(address);
    *barrier = pack({0, count, int(count), 0});
    check::mbarrier_init(barrier);
}

void mbarrier_arrive(uint32_t address) {
    uint64_t* barrier = mbarrier_at(address);
    check::mbarrier_arrive(barrier);
    update(barrier, 1, 0);
}

void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
    uint64_t* barrier = mbarrier_at(address);
    check::mbarrier_arrive(barrier);
    update(barrier, 1, int(bytes));
}

void mbarrier_expect_tx(uint32_t address, uint32_t bytes) {
    uint64_t* barrier = mbarrier_at(address);
    Fields f = state(barrier);
    f.tx += int(bytes);  // cannot complete a phase: arrivals are pending
    if (f.tx > TX_LIMIT) fail("mbarrier: %d pending transaction bytes are out of range", f.tx);
    *barrier = pack(f);
}

void mbarrier_complete_tx(uint64_t* barrier, uint32_t bytes) { update(barrier, 0, -int(bytes)); }

void mbarrier_wait(uint32_t address, uint32_t parity) {
    uint64_t* barrier = mbarrier_at(address);
    if (parity > 1) fail("mbarrier.try_wait: parity %u, expected 0 or 1", parity);
    while (state(barrier).phase == parity) {
        block->mbarrier_waits.push_back({barrier, fiber->linear});
        block_on("mbarrier.try_wait.parity", address, parity);
    }
    check::mbarrier_wait(barrier);
}

}  // namespace simt
