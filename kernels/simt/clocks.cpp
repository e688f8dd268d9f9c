#ifdef SIMT_CHECK
#include "clocks.hpp"

#include <algorithm>

namespace simt::check {

using Entry = BlockClocks::value_type;

static bool is_before(const Entry& e, uint64_t block) { return e.first < block; }

const Clock* find(const Known& known, uint64_t block) {
    if (!known) return nullptr;
    const auto it = std::lower_bound(known->begin(), known->end(), block, is_before);
    return it != known->end() && it->first == block ? it->second.get() : nullptr;
}

static Entry join_entries(const Entry& a, const Entry& b) {
    if (a.second == b.second) return a;
    Clock both = *a.second;
    join(both, *b.second);
    return {a.first, std::make_shared<const Clock>(std::move(both))};
}

Known join(const Known& a, const Known& b) {
    if (!b || a == b) return a;
    if (!a) return b;
    BlockClocks all;
    all.reserve(a->size() + b->size());
    size_t i = 0, j = 0;
    while (i < a->size() || j < b->size()) {
        if (j == b->size() || (i < a->size() && (*a)[i].first < (*b)[j].first))
            all.push_back((*a)[i++]);
        else if (i == a->size() || (*b)[j].first < (*a)[i].first)
            all.push_back((*b)[j++]);
        else
            all.push_back(join_entries((*a)[i++], (*b)[j++]));
    }
    return std::make_shared<const BlockClocks>(std::move(all));
}

}  // namespace simt::check
#endif
