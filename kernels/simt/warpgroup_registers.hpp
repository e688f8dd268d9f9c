// setmaxnreg: the register pool of a block.
#pragma once
#include <cstdint>

namespace simt {

// Registers a thread has at launch: what 64 Ki registers allow a block that fills the multiprocessor alone.
inline int initial_registers(int num_threads) {
    const int share = 65536 / (((num_threads + 127) / 128) * 128) / 8 * 8;
    return share > 256 ? 256 : share;
}

// setmaxnreg.inc / .dec of the fiber's warpgroup.
void set_max_registers(int count, bool increase);

}  // namespace simt
