// In lazy mode a wgmma is executed when it is issued, in eager mode when it is waited for; until then its accumulators
// hold NaN, so that whoever reads them sees it.
#include "wgmma.hpp"

#include <cstring>

#include "check.hpp"
#include "conversions.hpp"
#include "machine.hpp"
#include "tensor_map.hpp"

namespace simt {

constexpr uint32_t IN_FLIGHT = 0xFFFFFFFFu;  // NaN bits of an accumulator in flight

// ---- operands in shared memory ----------------------------------------------------------------------
struct Descriptor {
    uint32_t start, leading, stride;  // bytes
    int swizzle;                      // 0 none, 1: 32 bytes, 2: 64, 3: 128

    explicit Descriptor(uint64_t bits) {
        start = uint32_t(bits & 0x3FFF) << 4;
        leading = uint32_t(bits >> 16 & 0x3FFF) << 4;
        stride = uint32_t(bits >> 32 & 0x3FFF) << 4;
        const int mode = int(bits >> 62);
        swizzle = mode == 0 ? 0 : 4 - mode;  // encoded 1: 128 bytes, 2: 64, 3: 32
        if (bits >> 49 & 7)
            fail("wgmma: descriptor %016llx has a base offset, which is not emulated", (unsigned long long)bits);
    }

    // Byte address of element (mn, k). K-major: atoms of 8 rows (mn) of one swizzle width. MN-major: atoms of 8 rows
    // (k).
    uint32_t address(int mn, int k, bool mn_major) const {
        const int width = 1 << swizzle;  // of an atom's row, in 16-byte chunks
        uint32_t offset;
        if (!mn_major && swizzle)
            offset = (mn & 7) * width * 16 + (mn >> 3) * stride + k * 2;
        else if (!mn_major)
            offset = (mn & 7) * 16 + (mn >> 3) * stride + (k >> 3) * leading + (k & 7) * 2;
        else if (swizzle)
            offset = (mn >> 3) % width * 16 + (mn >> 3) / width * leading + (k & 7) * width * 16 + (k >> 3) * stride +
                     (mn & 7) * 2;
        else
            offset = (mn >> 3) * stride + (k & 7) * 16 + (k >> 3) * leading + (mn & 7) * 2;
        return swizzled(start + offset, swizzle);
    }
};

// Eight elements that lie together: along k if K-major, else along mn. Each of the four warps may be the one that
// reads.
static const uint16_t* chunk_at(const Descriptor& d, int mn, int k, bool mn_major, Fiber** group, int warps,
                                const char* what) {
    char* p = shared_pointer(d.address(mn, k, mn_major));
    check_shared_bounds(p, 16, what);
    for (int w = 0; w < 4; w++)
        if (warps >> w & 1) check::access(p, 16, check::Kind::Read, group[w * 32]->linear, what, true);
    return reinterpret_cast<const uint16_t*>(p);
}

// Reads [count][16] into `to` (row pitch `pitch`, k innermost) or, `k_outer`, into [16][pitch].
template <bool BF16>
static void read_operand(uint64_t bits, int count, bool mn_major, bool k_outer, float* to, int pitch, Fiber** group) {
    const Descriptor d(bits);
    for (int mn = 0; mn < count; mn += mn_major ? 8 : 1)
        for (int k = 0; k < 16; k += mn_major ? 1 : 8) {
            // Rows 16 w .. 16 w + 15 of A belong to warp w; all warps read all of B.
            const int warps = k_outer ? 15 : 1 << (mn >> 4);
            const uint16_t* p =
                chunk_at(d, mn, k, mn_major, group, warps, k_outer ? "wgmma (operand B)" : "wgmma (operand A)");
            alignas(32) float v[8];
            _mm256_store_ps(v, to_f32x8<BF16>(p));
            for (int i = 0; i < 8; i++) {
                const int row = mn_major ? mn + i : mn, column = mn_major ? k : k + i;
                to[k_outer ? column * pitch + row : row * pitch + column] = v[i];
            }
        }
}

// Tells the checker which shared memory an operation reads while it is in flight.
static void mark_operand(uint64_t bits, int count, bool mn_major, bool begins) {
    const Descriptor d(bits);
    for (int mn = 0; mn < count; mn += mn_major ? 8 : 1)
        for (int k = 0; k < 16; k += mn_major ? 1 : 8) {
            char* p = shared_pointer(d.address(mn, k, mn_major));
            check_shared_bounds(p, 16, "wgmma");
            if (begins)
                check::async_read_begins(p, 16);
            else
                check::async_read_ends(p, 16);
        }
}

static void mark_operands(const WgmmaOp& op, bool begins) {
    if (!check::IS_ON || !block->options.eager) return;
    if (!op.registers_a) mark_operand(op.descriptor_a, 64, op.transpose_a, begins);
    mark_operand(op.descriptor_b, op.n, op.transpose_b, begins);
}

// ---- operands in registers --------------------------------------------------------------------------
// Thread t of the warpgroup holds rows t / 32 * 16 + t % 32 / 4 and 8 more, columns 2 (t % 4), 2 (t % 4) + 1 and so on
// by 8.
static int row_of(int t, int i) { return (t >> 5) * 16 + (t & 31) / 4 + (i >> 1 & 1) * 8; }
static int column_of(int t, int i) { return (i >> 2) * 8 + (t & 3) * 2 + (i & 1); }

template <bool BF16>
static void read_registers_a(Fiber** group, size_t index, float (*a)[16]) {
    for (int t = 0; t < 128; t++) {
        const WgmmaOp& op = group[t]->wgmma[index];
        fiber = group[t];
        if (memcmp(op.registers_a, op.copy_a, sizeof op.copy_a) != 0)
            fail("wgmma: registers of A were changed while the operation was in flight");
        for (int i = 0; i < 8; i++) {
            const uint16_t bits = uint16_t(op.copy_a[i >> 1] >> 16 * (i & 1));
            a[row_of(t, i)][column_of(t, i)] = to_f32<BF16>(bits);
        }
    }
}

static void load_accumulators(Fiber** group, size_t index, float (*d)[256]) {
    const int n = group[0]->wgmma[index].n;
    for (int t = 0; t < 128; t++) {
        WgmmaOp& op = group[t]->wgmma[index];
        const float* from = op.d;
        if (op.holds_d) {
            fiber = group[t];
            for (int i = 0; i < n / 2; i++) {
                uint32_t bits;
                memcpy(&bits, op.d + i, sizeof bits);
                if (bits != IN_FLIGHT) fail("wgmma: accumulator %d was written while the operation was in flight", i);
            }
            from = op.saved_d.data();
        }
        for (int i = 0; i < n / 2; i++) d[row_of(t, i)][column_of(t, i)] = from[i];
    }
}

static void store_accumulators(Fiber** group, size_t index, const float (*d)[256]) {
    const int n = group[0]->wgmma[index].n;
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < n / 2; i++) group[t]->wgmma[index].d[i] = d[row_of(t, i)][column_of(t, i)];
}

// ---- the product ------------------------------------------------------------------------------------
static void check_uniform(Fiber** group, size_t index) {
    const WgmmaOp& first = group[0]->wgmma[index];
    for (int t = 1; t < 128; t++) {
        const WgmmaOp& op = group[t]->wgmma[index];
        fiber = group[t];
        if (op.descriptor_a != first.descriptor_a || op.descriptor_b != first.descriptor_b || op.n != first.n ||
            op.scale_d != first.scale_d)
            fail("wgmma: thread %d of the warpgroup has other operands than thread 0", t);
    }
}

template <bool BF16>
static void multiply(Fiber** group, size_t index, float (*d)[256]) {
    const WgmmaOp op = group[0]->wgmma[index];
    alignas(32) static thread_local float a[64][16], b[16][256];
    if (op.registers_a)
        read_registers_a<BF16>(group, index, a);
    else
        read_operand<BF16>(op.descriptor_a, 64, op.transpose_a, false, a[0], 16, group);
    read_operand<BF16>(op.descriptor_b, op.n, op.transpose_b, true, b[0], 256, group);
    for (int m = 0; m < 64; m += 4)
        for (int n = 0; n < op.n; n += 8) {
            __m256 sum[4];
            for (int i = 0; i < 4; i++) sum[i] = op.scale_d ? _mm256_load_ps(d[m + i] + n) : _mm256_setzero_ps();
            for (int k = 0; k < 16; k++) {
                const __m256 column = _mm256_load_ps(b[k] + n);
                for (int i = 0; i < 4; i++) sum[i] = _mm256_fmadd_ps(_mm256_set1_ps(a[m + i][k]), column, sum[i]);
            }
            for (int i = 0; i < 4; i++) _mm256_store_ps(d[m + i] + n, sum[i]);
        }
}

// Executes what the threads of a warpgroup (the arguments) have in flight, up to the group that thread 0 may keep.
static void execute(void** arguments) {
    Fiber** group = reinterpret_cast<Fiber**>(arguments);
    Fiber* const running = fiber;
    alignas(32) static thread_local float d[64][256];
    const Fiber& first = *group[0];
    for (int t = 1; t < 128; t++) {
        fiber = group[t];
        if (fiber->wgmma.size() != first.wgmma.size() || fiber->wgmma_group != first.wgmma_group ||
            fiber->wgmma_keep != first.wgmma_keep)
            fail("wgmma: thread %d of the warpgroup has other operations in flight than thread 0", t);
    }
    fiber = running;
    for (int w = 0; w < 4; w++) check::warp_join_all(group[w * 32]->warp_idx);
    size_t count = 0;
    while (count < first.wgmma.size() && first.wgmma[count].group < first.wgmma_group - first.wgmma_keep) count++;
    for (size_t i = 0; i < count; i++) {
        check_uniform(group, i);
        const bool continues = i > 0 && first.wgmma[i].d == first.wgmma[i - 1].d;
        const bool is_continued = i + 1 < count && first.wgmma[i + 1].d == first.wgmma[i].d;
        if (!continues) load_accumulators(group, i, d);
        fiber = running;
        mark_operands(first.wgmma[i], false);
        if (first.wgmma[i].bf16)
            multiply<true>(group, i, d);
        else
            multiply<false>(group, i, d);
        if (!is_continued) store_accumulators(group, i, d);
    }
    for (int t = 0; t < 128; t++) group[t]->wgmma.erase(group[t]->wgmma.begin(), group[t]->wgmma.begin() + long(count));
    fiber = running;
}

static void flush(int may_stay) {
    fiber->wgmma_keep = may_stay;
    warpgroup_collective("wgmma.wait_group", fiber, execute);
}

// ---- instructions -----------------------------------------------------------------------------------
void wgmma_fence() {
    warp_collective(~0u, "wgmma.fence", nullptr, [](void**, uint32_t) {});
    fiber->wgmma_fenced = true;
}

void wgmma_commit_group() {
    warp_collective(~0u, "wgmma.commit_group", nullptr, [](void**, uint32_t) {});
    fiber->wgmma_group++;
}

void wgmma_wait_group(int may_stay) {
    flush(may_stay);
    fiber->wgmma_fenced = false;
    if (may_stay == 0) fiber->wgmma_unwaited = false;
}

void wgmma_mma_async(const WgmmaArguments& x) {
    Fiber* f = fiber;
    if (!f->wgmma_fenced) fail("wgmma.mma_async without a wgmma.fence since the accumulators were last accessible");
    WgmmaOp op{x.descriptor_a, x.descriptor_b, x.registers_a, {},    x.d, x.n,           x.bf16,
               x.scale_d,      x.transpose_a,  x.transpose_b, false, {},  f->wgmma_group};
    if (x.registers_a) memcpy(op.copy_a, x.registers_a, sizeof op.copy_a);
    bool is_held = false;  // by an earlier operation in flight
    for (const WgmmaOp& other : f->wgmma) is_held |= other.d == x.d;
    if (block->options.eager && !is_held) {
        op.holds_d = true;
        op.saved_d.assign(x.d, x.d + x.n / 2);
        memset(x.d, 0xFF, size_t(x.n / 2) * sizeof(float));
    }
    if ((f->linear & 127) == 0) mark_operands(op, true);
    f->wgmma.push_back(std::move(op));
    f->wgmma_unwaited = true;
    if (block->options.eager) return;
    const int group = f->wgmma_group;
    f->wgmma_group = group + 1;
    flush(0);
    f->wgmma_group = group;
}

}  // namespace simt
