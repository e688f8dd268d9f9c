// Vector clocks of the race checker.
//
// Every thread of a block counts epochs; a clock says up to which epoch of each thread (and of each unit that copies
// asynchronously) something is ordered before. Of other blocks a thread knows what came to it through atomics and
// fences: a list of their clocks, shared and never changed, so that handing it on costs a pointer.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace simt::check {

using Clock = std::vector<uint32_t>;

inline void join(Clock& into, const Clock& from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++) into[i] = from[i] > into[i] ? from[i] : into[i];
}

// Clocks of other blocks, by block number.
using BlockClocks = std::vector<std::pair<uint64_t, std::shared_ptr<const Clock>>>;
using Known = std::shared_ptr<const BlockClocks>;

Known join(const Known& a, const Known& b);
// The clock of `block` in `known`, or null.
const Clock* find(const Known& known, uint64_t block);

// What a thread knows, as it is handed on by a barrier.
struct Stamp {
    Clock clock;
    Known known;

    void join(const Stamp& from) {
        check::join(clock, from.clock);
        known = check::join(known, from.known);
    }
};

}  // namespace simt::check
