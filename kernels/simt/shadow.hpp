// Shadow memory of the race checker: who accessed each two bytes last.
#pragma once
#include <cstddef>
#include <cstdint>

#include "check.hpp"

namespace simt::check {

// One remembered access. `bytes`: bit 0 the first, bit 1 the second byte of the cell.
struct Access {
    uint32_t clock, block;
    uint16_t thread;
    uint8_t bytes : 2;
    uint8_t is_atomic : 1;
    uint8_t is_generic : 1;  // by an ordinary store, not by TMA
};

// An access of another generation (an earlier launch; for shared memory an earlier block) is no access. Two readers are
// kept: a third may displace one, so that a race can be missed, but none is invented.
struct Cell {
    uint32_t generation;
    uint8_t has_write, num_reads;
    uint8_t copies_in_flight, reads_in_flight;  // of cp.async and wgmma
    Access write, reads[2];
};

enum class Space { None, DynamicShared, StaticShared, Global };

// Where an address lies, with its cells.
struct Place {
    Space space;
    Cell* cells;    // of all of it
    size_t offset;  // of the address in it
    size_t size;    // bytes of it
    uint32_t generation;
};

// Finds the place of an access by the running fiber; fails if it leaves its buffer.
Place find_place(const void* p, size_t bytes, const char* what);
// Shared memory belongs to a new block.
void start_shadow();
// Keeps other host threads from the cells of one stretch of global memory.
class CellLock {
  public:
    CellLock(const Place& place, const void* p);
    ~CellLock();

  private:
    unsigned char* flag_;
};

}  // namespace simt::check
