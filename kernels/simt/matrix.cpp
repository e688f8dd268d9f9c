#include "matrix.hpp"

#include <cstring>

#include "check.hpp"
#include "conversions.hpp"
#include "machine.hpp"

namespace simt {

static void need_whole_warp(uint32_t lanes, const char* what) {
    if (lanes != ~0u) fail("%s: not all lanes of the warp take part (mask %08x)", what, lanes);
}

// ---- ldmatrix, stmatrix -----------------------------------------------------------------------------
struct MatrixArguments {
    uint32_t address;
    uint32_t* load_to;
    const uint32_t* store_from;
    int num;
    bool transpose;
};

// Pointers to the 8 rows of matrix i, checked.
static void find_rows(void** all, int i, uint16_t* rows[8], const char* what, check::Kind kind) {
    for (int r = 0; r < 8; r++) {
        const int lane = i * 8 + r;
        const uint32_t address = static_cast<MatrixArguments*>(all[lane])->address;
        if (address & 15) fail("%s: address 0x%x of lane %d is not 16-byte aligned", what, address, lane);
        char* p = shared_pointer(address);
        check_shared_bounds(p, 16, what);
        check::access(p, 16, kind, fiber->warp_idx * 32 + lane, what);
        rows[r] = reinterpret_cast<uint16_t*>(p);
    }
}

static void load_all(void** all, uint32_t lanes) {
    need_whole_warp(lanes, "ldmatrix");
    const MatrixArguments& first = *static_cast<MatrixArguments*>(all[0]);
    for (int i = 0; i < first.num; i++) {
        uint16_t* rows[8];
        find_rows(all, i, rows, "ldmatrix", check::Kind::Read);
        for (int lane = 0; lane < 32; lane++) {
            const int row = lane >> 2, column = (lane & 3) * 2;
            const uint32_t low = first.transpose ? rows[column][row] : rows[row][column];
            const uint32_t high = first.transpose ? rows[column + 1][row] : rows[row][column + 1];
            static_cast<MatrixArguments*>(all[lane])->load_to[i] = low | high << 16;
        }
    }
}

static void store_all(void** all, uint32_t lanes) {
    need_whole_warp(lanes, "stmatrix");
    const MatrixArguments& first = *static_cast<MatrixArguments*>(all[0]);
    for (int i = 0; i < first.num; i++) {
        uint16_t* rows[8];
        find_rows(all, i, rows, "stmatrix", check::Kind::Write);
        for (int lane = 0; lane < 32; lane++) {
            const int row = lane >> 2, column = (lane & 3) * 2;
            const uint32_t v = static_cast<MatrixArguments*>(all[lane])->store_from[i];
            (first.transpose ? rows[column][row] : rows[row][column]) = uint16_t(v);
            (first.transpose ? rows[column + 1][row] : rows[row][column + 1]) = uint16_t(v >> 16);
        }
    }
}

void load_matrix(uint32_t* registers, uint32_t address, int num, bool transpose) {
    MatrixArguments arguments{address, registers, nullptr, num, transpose};
    warp_collective(~0u, transpose ? "ldmatrix.trans" : "ldmatrix", &arguments, load_all);
}

void store_matrix(const uint32_t* registers, uint32_t address, int num, bool transpose) {
    MatrixArguments arguments{address, nullptr, registers, num, transpose};
    warp_collective(~0u, transpose ? "stmatrix.trans" : "stmatrix", &arguments, store_all);
}

// ---- mma.sync ---------------------------------------------------------------------------------------
struct MmaArguments {
    float* d;
    const uint32_t *a, *b;
};

// Lane 4 g + q holds of a: rows g and g + 8, columns 2 q, 2 q + 1 and, for K = 16, 8 more; of b: those k, column g.
template <int K>
static void gather(void** all, uint16_t (&a)[16][16], uint16_t (&b)[16][8]) {
    for (int lane = 0; lane < 32; lane++) {
        const MmaArguments& x = *static_cast<MmaArguments*>(all[lane]);
        const int g = lane >> 2, q = (lane & 3) * 2;
        for (int half = 0; half < K / 8; half++) {
            memcpy(&a[g][q + 8 * half], &x.a[2 * half], 4);
            memcpy(&a[g + 8][q + 8 * half], &x.a[2 * half + 1], 4);
            b[q + 8 * half][g] = uint16_t(x.b[half]);
            b[q + 8 * half + 1][g] = uint16_t(x.b[half] >> 16);
        }
    }
}

template <int K, bool BF16>
static void multiply(void** all, uint32_t lanes) {
    need_whole_warp(lanes, "mma.sync");
    alignas(32) uint16_t a[16][16], b[16][8];
    gather<K>(all, a, b);
    __m256 b_row[K];
    for (int k = 0; k < K; k++) b_row[k] = to_f32x8<BF16>(b[k]);
    for (int row = 0; row < 16; row++) {
        __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
        for (int k = 0; k < K; k += 2) {
            even = _mm256_fmadd_ps(_mm256_set1_ps(to_f32<BF16>(a[row][k])), b_row[k], even);
            odd = _mm256_fmadd_ps(_mm256_set1_ps(to_f32<BF16>(a[row][k + 1])), b_row[k + 1], odd);
        }
        alignas(32) float sum[8];
        _mm256_store_ps(sum, _mm256_add_ps(even, odd));
        for (int q = 0; q < 4; q++) {
            float* d = static_cast<MmaArguments*>(all[(row & 7) * 4 + q])->d + (row >> 3) * 2;
            d[0] += sum[2 * q];
            d[1] += sum[2 * q + 1];
        }
    }
}

void mma_m16n8(float* d, const uint32_t* a, const uint32_t* b, int k, bool bf16) {
    MmaArguments arguments{d, a, b};
    if (k == 16)
        warp_collective(~0u, "mma.sync.m16n8k16", &arguments, bf16 ? multiply<16, true> : multiply<16, false>);
    else
        warp_collective(~0u, "mma.sync.m16n8k8", &arguments, bf16 ? multiply<8, true> : multiply<8, false>);
}

}  // namespace simt
