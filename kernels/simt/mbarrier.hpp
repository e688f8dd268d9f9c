// mbarrier: a packed 64-bit word in the emulated shared memory.
#pragma once
#include <cstdint>
#include <string>

#include "machine.hpp"

namespace simt {

// For the deadlock report: the state of the barrier that a blocked fiber waits for, or an empty string.
std::string describe_mbarrier_wait(const Fiber& f);

void mbarrier_init(uint32_t address, uint32_t count);
void mbarrier_arrive(uint32_t address);
void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_expect_tx(uint32_t address, uint32_t bytes);
void mbarrier_wait(uint32_t address, uint32_t parity);

uint64_t* mbarrier_at(uint32_t address);
void mbarrier_complete_tx(uint64_t* barrier, uint32_t bytes);

}  // namespace simt
