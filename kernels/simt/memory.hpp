// Global memory with guard pages, and the arenas (stacks and shared memory) that blocks run in.
#pragma once
#include <cstddef>
#include <cstdint>

#include "machine.hpp"

namespace simt {

// A piece of emulated global memory. Between `base + bytes` and the next multiple of 16 lies a canary; then unmapped
// pages follow, as they do before the first page.
struct Allocation {
    char* base;
    size_t bytes;
    char* mapping;
    size_t mapping_bytes;
    void* shadow;  // the checker's cells, mapped on first use
    size_t shadow_bytes;
    bool at_front;  // the guard pages touch the first byte, not the last one
};

// The allocation that holds `p`, or null. Fast when asked for the same one again.
Allocation* find_allocation(const void* p);
// The allocation whose guard pages or slack hold `p`, or null. Slow.
const Allocation* find_surroundings(const void* p);
// Says in words where `p` lies relative to the nearest allocation.
std::string describe_address(const void* p);
// The name of a damaged canary behind some allocation, or an empty string; the canary is restored.
std::string find_damaged_canary();

// Stacks and shared memory for one block at a time.
Block* take_arena();
void return_arena(Block* b);
// Catches memory faults of fibers and turns them into errors; other faults go to the handler that was there before.
void install_fault_handler();

}  // namespace simt
