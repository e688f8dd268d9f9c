// cp.async.bulk.tensor: loads that complete on an mbarrier, stores in groups per thread.
#pragma once
#include <cstdint>
#include <initializer_list>

namespace simt {

void tma_load(const void* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> coordinates);
void tma_load_im2col(const void* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> coordinates,
                     std::initializer_list<int> offsets);
void tma_store(const void* map, uint32_t shared, std::initializer_list<int> coordinates);
void tma_store_commit_group();
// `read_only`: only shared memory may be used again, the writes may still be under way.
void tma_store_wait_group(int may_stay, bool read_only);

}  // namespace simt
