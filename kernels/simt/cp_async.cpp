#include "cp_async.hpp"

#include <cstring>

#include "check.hpp"
#include "machine.hpp"

namespace simt {

static void copy(const CpAsyncOp& op) {
    memcpy(op.destination, op.source, op.source_bytes);
    memset(op.destination + op.source_bytes, 0, op.bytes - op.source_bytes);
}

void cp_async(uint32_t destination, const void* source, int bytes, int source_bytes) {
    char* to = shared_pointer(destination);
    const auto from = reinterpret_cast<uintptr_t>(source);
    if (destination % bytes || (from % bytes && source_bytes))
        fail("cp.async: shared address 0x%x or global address %p is not %d-byte aligned", destination, source, bytes);
    if (source_bytes < 0 || source_bytes > bytes) fail("cp.async: %d bytes to read of %d", source_bytes, bytes);
    check_shared_bounds(to, bytes, "cp.async");
    check::access(to, bytes, check::Kind::Write, fiber->linear, "a cp.async (at issue)");
    check::copy_begins(to, bytes);
    if (source_bytes) check::access(source, source_bytes, check::Kind::Read, fiber->linear, "a cp.async");
    const CpAsyncOp op{to, static_cast<const char*>(source), bytes, source_bytes, fiber->cp_async_group};
    if (block->options.eager)
        copy(op);
    else
        memset(to, 0xFF, bytes);  // NaN until the wait
    fiber->cp_async.push_back(op);
}

void cp_async_commit_group() { fiber->cp_async_group++; }

void cp_async_wait_group(int may_stay) {
    auto& ops = fiber->cp_async;
    size_t done = 0;
    for (; done < ops.size() && ops[done].group < fiber->cp_async_group - may_stay; done++) {
        // In eager mode the data has arrived; writing it again would only hide what happened to it since.
        if (!block->options.eager) copy(ops[done]);
        check::copy_ends(ops[done].destination, ops[done].bytes);
        check::access(ops[done].destination, ops[done].bytes, check::Kind::Write, fiber->linear,
                      "a cp.async (at its wait)");
    }
    ops.erase(ops.begin(), ops.begin() + done);
}

}  // namespace simt
