// Tiles of matrices in shared memory for mma: lines of 16-bit elements in chunks of 16 bytes. The chunks of a line are
// exchanged by the line's number, so that the eight lines that ldmatrix reads at once lie in different banks.
#pragma once
#include "places.cuh"
#include "storage.cuh"

// Which of the two 16-bit types: mma has one instruction for each.
template <class T>
constexpr bool IS_BF16 = false;
template <>
constexpr bool IS_BF16<__nv_bfloat16> = true;

// Chunks among which those of a line are exchanged, and lines that have 128 bytes together: CHUNKS chunks are a line.
template <int CHUNKS>
struct Exchange {
    static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "lines of 32 bytes and more");
    static constexpr int CHUNKS_OF_IT = CHUNKS >= 8 ? 8 : CHUNKS, LINES = 8 / CHUNKS_OF_IT;
};

// Byte offset of chunk `chunk` of line `line`.
template <int CHUNKS>
__device__ __forceinline__ uint32_t chunk_offset(int line, int chunk) {
    using E = Exchange<CHUNKS>;
    return uint32_t(line * CHUNKS + (chunk ^ line / E::LINES % E::CHUNKS_OF_IT)) * 16u;
}

// From a chunk's address that of the chunk `lines` (a multiple of 8) lines and `chunks` chunks on; the chunk's number has zeros
// where `chunks` has ones. With constants it is one instruction, so that loops keep one address a matrix.
template <int CHUNKS>
__device__ __forceinline__ uint32_t move_on(uint32_t address, int lines, int chunks) {
    constexpr int EXCHANGED = Exchange<CHUNKS>::CHUNKS_OF_IT;
    return (address ^ uint32_t(chunks % EXCHANGED * 16)) + uint32_t((lines * CHUNKS + chunks / EXCHANGED * EXCHANGED) * 16);
}

// Lines first_line .. first_line + LINES, columns first_column .. first_column + 8 * CHUNKS of a matrix of num_lines lines and
// num_columns columns; zero outside of it. Aligned chunks come by cp.async, others at once: both are there after wait and barrier.
template <class T, int LINES, int CHUNKS, int THREADS>
__device__ __forceinline__ void load_tile(unsigned char* tile, const T* matrix, int pitch, bool is_aligned,
                                          int first_line, int num_lines, int first_column, int num_columns) {
#pragma unroll 1  // addresses of several rounds would take too many registers
    for (int i = threadIdx.x; i < LINES * CHUNKS; i += THREADS) {
        const int line = i / CHUNKS, chunk = i % CHUNKS;
        const int column = first_column + chunk * 8;
        const int left = first_line + line < num_lines ? min(max(num_columns - column, 0), 8) : 0;
        const T* from = matrix + (left > 0 ? place_at(first_line + line, pitch, column) : 0);
        unsigned char* to = tile + chunk_offset<CHUNKS>(line, chunk);
        if (is_aligned) {
            cp_async16(smem_u32(to), from, left * int(sizeof(T)));
        } else {
            Vec<T, 8> v;
#pragma unroll
            for (int e = 0; e < 8; e++) v.e[e] = e < left ? from[e] : from_f32<T>(0.0f);
            *reinterpret_cast<Vec<T, 8>*>(to) = v;
        }
    }
}

// ---- fragments: HAS_K says that a line holds k side by side, else it holds rows of A or columns of B -------------------

// What this lane passes to ldmatrix for the 16 rows from `row` on and k = 0 .. 15.
template <bool HAS_K, int CHUNKS>
__device__ __forceinline__ uint32_t address_of_a(const unsigned char* tile, int row) {
    const int lane = int(threadIdx.x) % 32, i = lane / 8;
    return smem_u32(tile) + (HAS_K ? chunk_offset<CHUNKS>(row + (i & 1) * 8 + lane % 8, i >> 1)
                                   : chunk_offset<CHUNKS>((i >> 1) * 8 + lane % 8, row / 8 + (i & 1)));
}
// The same for columns column .. column + 15 of B, or its first 16 lanes for 8 columns.
template <bool HAS_K, int CHUNKS>
__device__ __forceinline__ uint32_t address_of_b(const unsigned char* tile, int column) {
    const int lane = int(threadIdx.x) % 32, i = lane / 8;
    return smem_u32(tile) + (HAS_K ? chunk_offset<CHUNKS>(column + (i >> 1) * 8 + lane % 8, i & 1)
                                   : chunk_offset<CHUNKS>((i & 1) * 8 + lane % 8, column / 8 + (i >> 1)));
}

// sums[m][n] += A of rows row + 16 m times B of columns column + 8 n, over k .. k + 15. `row` is a multiple of 16 MS, `column`
// of 8 NS.
template <class T, bool A_HAS_K, int A_CHUNKS, bool B_HAS_K, int B_CHUNKS, int MS, int NS>
__device__ __forceinline__ void mma_step(float (&sums)[MS][NS][4], const unsigned char* a_tile, int row,
                                         const unsigned char* b_tile, int column, int k) {
    const uint32_t at_a = address_of_a<A_HAS_K, A_CHUNKS>(a_tile, row);
    const uint32_t at_b = address_of_b<B_HAS_K, B_CHUNKS>(b_tile, column);
    uint32_t a[MS][4], b[NS][2];
#pragma unroll
    for (int m = 0; m < MS; m++)
        ldmatrix<4, !A_HAS_K>(a[m], A_HAS_K ? move_on<A_CHUNKS>(at_a, m * 16, k / 8) : move_on<A_CHUNKS>(at_a, k, m * 2));
#pragma unroll
    for (int n = 0; n < NS; n += 2) {
        const uint32_t at = B_HAS_K ? move_on<B_CHUNKS>(at_b, n * 8, k / 8) : move_on<B_CHUNKS>(at_b, k, n);
        if constexpr (NS == 1) {
            ldmatrix<2, !B_HAS_K>(b[n], at);
        } else {
            uint32_t r[4];
            ldmatrix<4, !B_HAS_K>(r, at);
            b[n][0] = r[0], b[n][1] = r[1], b[n + 1][0] = r[2], b[n + 1][1] = r[3];
        }
    }
#pragma unroll
    for (int m = 0; m < MS; m++)
#pragma unroll
        for (int n = 0; n < NS; n++) mma_m16n8k16<IS_BF16<T>>(sums[m][n], a[m], b[n]);
}
