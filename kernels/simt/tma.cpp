#include "tma.hpp"

#include <cstring>

#include "check.hpp"
#include "machine.hpp"
#include "mbarrier.hpp"
#include "tensor_map.hpp"

namespace simt {

static const TensorMap& map_of(const TmaOp& op) { return *reinterpret_cast<const TensorMap*>(op.map); }

static const char* name_of(const TmaOp& op) {
    if (op.is_store) return "TMA store";
    return op.is_im2col ? "TMA im2col load" : "TMA load";
}

// ---- one row ----------------------------------------------------------------------------------------
static void fill(char* p, size_t bytes, const TensorMap& map) {
    if (!map.fill_nan) {
        memset(p, 0, bytes);
    } else if (map.element_bytes == 2) {
        for (size_t i = 0; i < bytes; i += 2) memcpy(p + i, &OOB_NAN_16, 2);
    } else {
        for (size_t i = 0; i < bytes; i += 4) memcpy(p + i, &OOB_NAN_32, 4);
    }
}

// Whether coordinates 1.. lie in the tensor; `row` is the address of element 0 of dimension 0 there.
static bool find_row(const TensorMap& map, const int* c, char*& row) {
    bool inside = true;
    row = const_cast<char*>(map.base);
    for (int i = 1; i < map.rank; i++) {
        inside &= c[i] >= 0 && uint32_t(c[i]) <= map.size[i];
        row += int64_t(c[i]) * int64_t(map.stride_bytes[i]);
    }
    return inside;
}

// Moves `n` elements of dimension 0 from coordinate c on, between global memory and the linear buffer `packed`.
static void move_row(TmaOp& op, const int* c, int n, char* packed) {
    const TensorMap& map = map_of(op);
    char* row;
    const int64_t size = int64_t(map.size[0]) + 1;
    const bool inside = find_row(map, c, row);
    const int64_t first = c[0] < 0 ? -int64_t(c[0]) : 0;  // elements [first, end) lie in the tensor
    const int64_t end = size - c[0] < n ? size - c[0] : n;
    const int e = map.element_bytes;
    if (!inside || end <= first) {
        if (!op.is_store) fill(packed, size_t(n) * e, map);
        return;
    }
    char* global = row + (c[0] + first) * e;
    const size_t bytes = size_t(end - first) * e;
    check::tma_access(op, global, bytes, op.is_store ? check::Kind::Write : check::Kind::Read);
    if (op.is_store) {
        memcpy(global, packed + first * e, bytes);
        return;
    }
    fill(packed, size_t(first) * e, map);
    memcpy(packed + first * e, global, bytes);
    fill(packed + end * e, size_t(n - end) * e, map);
}

// ---- the whole box ----------------------------------------------------------------------------------
struct Box {
    int extent[5];  // elements along each dimension; im2col: channels, pixels
    uint32_t row_bytes, bytes;
};

static Box box_of(const TmaOp& op) {
    const TensorMap& map = map_of(op);
    Box box{{1, 1, 1, 1, 1}, 0, 0};
    if (map.is_im2col) {
        box.extent[0] = map.channels_per_pixel;
        box.extent[1] = map.pixels_per_column;
    } else {
        box.extent[0] = map.box[0];  // dimension 0 has no element stride
        for (int i = 1; i < map.rank; i++)
            box.extent[i] = (map.box[i] + map.element_stride[i] - 1) / map.element_stride[i];
    }
    box.row_bytes = uint32_t(box.extent[0]) * map.element_bytes;
    box.bytes = box.row_bytes;
    for (int i = 1; i < 5; i++) box.bytes *= uint32_t(box.extent[i]);
    return box;
}

static void move_tiled(TmaOp& op, const Box& box, char* packed) {
    const TensorMap& map = map_of(op);
    const int* n = box.extent;
    int c[5] = {op.coordinate[0], 0, 0, 0, 0};
    for (int i4 = 0; i4 < n[4]; i4++)
        for (int i3 = 0; i3 < n[3]; i3++)
            for (int i2 = 0; i2 < n[2]; i2++)
                for (int i1 = 0; i1 < n[1]; i1++, packed += box.row_bytes) {
                    const int index[5] = {0, i1, i2, i3, i4};
                    for (int d = 1; d < map.rank; d++) c[d] = op.coordinate[d] + index[d] * map.element_stride[d];
                    move_row(op, c, n[0], packed);
                }
}

// Pixels walk W, H, D inside the bounding box [lower, size - 1 + upper] with the element stride, then N. The offset of
// the filter tap is added where memory is accessed.
static void move_im2col(TmaOp& op, const Box& box, char* packed) {
    const TensorMap& map = map_of(op);
    const int spatial = map.rank - 2;
    int c[5];
    memcpy(c, op.coordinate, sizeof c);
    for (int i = 0; i < spatial; i++) {
        const int last = int(map.size[1 + i]) + map.upper[i];
        if (c[1 + i] < map.lower[i] || c[1 + i] > last)
            fail("TMA im2col: start coordinate %d of dimension %d lies outside the bounding box %d..%d", c[1 + i],
                 1 + i, map.lower[i], last);
    }
    for (int pixel = 0; pixel < box.extent[1]; pixel++, packed += box.row_bytes) {
        int at[5];
        memcpy(at, c, sizeof at);
        for (int i = 0; i < spatial; i++) at[1 + i] += op.offset[i];
        move_row(op, at, box.extent[0], packed);
        int i = 0;
        for (; i < spatial; i++) {
            c[1 + i] += map.element_stride[1 + i];
            if (c[1 + i] <= int(map.size[1 + i]) + map.upper[i]) break;
            c[1 + i] = map.lower[i];
        }
        if (i == spatial) c[1 + spatial]++;
    }
}

// Between the linear buffer and shared memory, whose 16-byte chunks are swizzled by their address.
static void move_shared(TmaOp& op, const Box& box, char* packed) {
    check_shared_bounds(op.shared, box.bytes, name_of(op));
    check::tma_access(op, op.shared, box.bytes, op.is_store ? check::Kind::Read : check::Kind::Write);
    const uint32_t start = shared_address(op.shared);
    for (uint32_t at = 0; at < box.bytes; at += 16) {
        char* chunk = shared_pointer(swizzled(start + at, map_of(op).swizzle));
        if (op.is_store)
            memcpy(packed + at, chunk, 16);
        else
            memcpy(chunk, packed + at, 16);
    }
}

// ---- loads ------------------------------------------------------------------------------------------
static void execute_load(TmaOp& op) {
    Fiber* interrupted = fiber;
    fiber = &block->fibers[op.issuer];  // faults are the issuer's
    const Box box = box_of(op);
    std::vector<char> packed(box.bytes);
    if (op.is_im2col)
        move_im2col(op, box, packed.data());
    else
        move_tiled(op, box, packed.data());
    move_shared(op, box, packed.data());
    check::tma_load_done(op);
    mbarrier_complete_tx(op.barrier, box.bytes);
    fiber = interrupted;
}

void run_one_load() {
    auto& loads = block->loads;
    const size_t i = block->options.schedule == 2 ? next_random() % loads.size() : 0;
    TmaOp op = loads[i];
    loads.erase(loads.begin() + long(i));
    if (block->num_alive == 0) {
        fiber = &block->fibers[op.issuer];
        fail("the block ends while a TMA load that nobody waited for is under way");
    }
    execute_load(op);
}

static TmaOp make_op(const void* map, uint32_t shared, std::initializer_list<int> coordinates, bool is_im2col,
                     bool is_store) {
    TmaOp op{};
    memcpy(op.map, map, sizeof op.map);
    const TensorMap& m = map_of(op);
    op.is_im2col = is_im2col;
    op.is_store = is_store;
    op.shared = shared_pointer(shared);
    op.issuer = fiber->linear;
    op.group = fiber->store_group;
    if (m.magic != TENSOR_MAP_MAGIC) fail("%s: no tensor map at the address that was given", name_of(op));
    if (coordinates.size() != m.rank)
        fail("%s: %zu coordinates for a map of rank %d", name_of(op), coordinates.size(), m.rank);
    if (is_im2col != bool(m.is_im2col))
        fail("%s: the map was encoded for %s", name_of(op), m.is_im2col ? "im2col" : "tiles");
    const uint32_t alignment = m.swizzle ? 128u << m.swizzle : 128;  // where the swizzle's pattern begins
    if (shared % alignment) fail("%s: shared address 0x%x is not %u-byte aligned", name_of(op), shared, alignment);
    const uint32_t row_bytes = box_of(op).row_bytes;
    if (m.swizzle && row_bytes != 16u << m.swizzle)
        fail("%s: rows of %u bytes with a swizzle of %u: shorter rows are not emulated", name_of(op), row_bytes,
             16u << m.swizzle);
    int i = 0;
    for (int c : coordinates) op.coordinate[i++] = c;
    return op;
}

static void issue_load(TmaOp& op, uint32_t barrier) {
    op.barrier = mbarrier_at(barrier);
    check::tma_issue(op);
    if (block->options.eager)
        execute_load(op);
    else
        block->loads.push_back(op);
}

void tma_load(const void* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> coordinates) {
    TmaOp op = make_op(map, shared, coordinates, false, false);
    issue_load(op, barrier);
}

void tma_load_im2col(const void* map, uint32_t shared, uint32_t barrier, std::initializer_list<int> coordinates,
                     std::initializer_list<int> offsets) {
    TmaOp op = make_op(map, shared, coordinates, true, false);
    const int limit = offsets.size() == 3 ? 32 : offsets.size() == 2 ? 256 : 65536;
    int i = 0;
    for (int offset : offsets) {
        if (offset < 0 || offset >= limit) fail("TMA im2col: offset %d, expected 0 to %d", offset, limit - 1);
        op.offset[i++] = offset;
    }
    issue_load(op, barrier);
}

// ---- stores -----------------------------------------------------------------------------------------
static void read_shared(TmaOp& op) {
    const Box box = box_of(op);
    op.captured.resize(box.bytes);
    move_shared(op, box, op.captured.data());
    op.was_read = true;
}

static void write_global(TmaOp& op) { move_tiled(op, box_of(op), op.captured.data()); }

void tma_store(const void* map, uint32_t shared, std::initializer_list<int> coordinates) {
    TmaOp op = make_op(map, shared, coordinates, false, true);
    check::tma_issue(op);
    if (block->options.eager) {
        read_shared(op);
        write_global(op);
    }
    fiber->stores.push_back(op);
}

void tma_store_commit_group() { fiber->store_group++; }

void tma_store_wait_group(int may_stay, bool read_only) {
    auto& stores = fiber->stores;
    for (size_t i = 0; i < stores.size();) {
        TmaOp& op = stores[i];
        if (op.group >= fiber->store_group - may_stay) {
            i++;
            continue;
        }
        if (!op.was_read) read_shared(op);
        op.was_waited_for = true;
        check::tma_store_read(op);
        if (read_only) {
            i++;
            continue;
        }
        if (!block->options.eager) write_global(op);
        check::tma_store_done(op);
        stores.erase(stores.begin() + long(i));
    }
}

// Shared memory must outlive the reads; the writes then complete by themselves.
void finish_stores_of_exiting_thread() {
    for (TmaOp& op : fiber->stores) {
        if (!op.was_waited_for)
            fail("the thread ends before its TMA store has read shared memory (wait_group.read is missing)");
        if (!block->options.eager) write_global(op);
    }
    fiber->stores.clear();
}

}  // namespace simt
