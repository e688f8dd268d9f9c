// cp.async: 4, 8 or 16 bytes from global to shared memory, in groups per thread.
#pragma once
#include <cstdint>

namespace simt {

void cp_async(uint32_t destination, const void* source, int bytes, int source_bytes);
void cp_async_commit_group();
void cp_async_wait_group(int may_stay);

}  // namespace simt
