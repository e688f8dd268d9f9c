// From memory to the stages in shared memory: each thread copies its own 16-byte chunks, and after they have come changes
// the very chunks that it copied; so the prologue needs no barrier of its own.
//
// Thread i copies chunk column i % 8 of the rows i / 8 + 32 r of A: within a step of gemm_k all its chunks belong to one tap
// and the same 8 channels.
#pragma once
#include "prologue.cuh"
#include "tile.cuh"

// Steps under way. The more memory a stage takes the fewer there are, so that two blocks share a multiprocessor.
template <int PROLOGUE>
constexpr int STAGES = PROLOGUE == JOIN ? 2 : 3;

template <int N, int PROLOGUE>
constexpr int STAGE_BYTES = Tile<N>::A_BYTES * (PROLOGUE == JOIN ? 2 : 1) + Tile<N>::B_BYTES;

template <class T, int N, bool GRAD, int PROLOGUE>
struct Gather {
    static constexpr int ROWS_A = TILE_M * CHUNKS_K / THREADS;  // 4 chunks of A a thread
    static constexpr int STAGE = STAGE_BYTES<N, PROLOGUE>;
    static constexpr int SECOND = Tile<N>::A_BYTES, B = SECOND * (PROLOGUE == JOIN ? 2 : 1);
    static_assert(ROWS_A * STAGES<PROLOGUE> <= 32, "a bit for each chunk under way");

    const Conv3dParams& p;
    const BlockMemory& m;
    int split, first_n, end_chunk;  // chunks of gemm_k before the end
    int sizes[3];                   // t, h, w of the source
    uint32_t valid = 0;             // 4 bits a stage: which of the thread's chunks of A lie inside

    // Chunk column `chunk` of gemm_k: its tap and first channel.
    __device__ __forceinline__ void find(int chunk, int& tap, int& c) const {
        tap = int(p.source_chunks.quotient(chunk));
        c = (chunk - tap * int(p.source_chunks.divisor)) * 8;
    }

    __device__ __forceinline__ void load_a(int step, uint8_t* stage, int slot) {
        const int column = threadIdx.x % CHUNKS_K, chunk = step * CHUNKS_K + column;
        uint32_t bits = 0;
        int tap, c;
        find(chunk, tap, c);
        const bool exists = chunk < end_chunk;
        uint64_t source = p.source;
        int pitch = p.source_pitch;
        if constexpr (PROLOGUE == BESIDE)
            if (c >= p.prologue.second_first) c -= p.prologue.second_first, source = p.prologue.second, pitch = p.prologue.second_pitch;
        const Place at = exists ? m.taps[tap] : Place{0, OUTSIDE, OUTSIDE, 0};
#pragma unroll
        for (int i = 0; i < ROWS_A; i++) {
            const int row = threadIdx.x / CHUNKS_K + i * (THREADS / CHUNKS_K);
            const Place from = m.rows[row];
            const bool inside = exists && is_inside(from, at, sizes[0], sizes[1], sizes[2]);
            const int64_t position = inside ? from.linear + at.linear : 0;
            const uint32_t to = smem_u32(stage + chunk_byte<CHUNKS_K>(row, column));
            cp_async16(to, reinterpret_cast<const T*>(source) + (inside ? element_of(position, c, pitch) : 0),
                       inside ? 16 : 0);
            if constexpr (PROLOGUE == JOIN)
                cp_async16(to + SECOND,
                           reinterpret_cast<const T*>(p.prologue.second) +
                               (inside ? element_of(position, c, p.prologue.second_pitch) : 0),
                           inside ? 16 : 0);
            bits |= uint32_t(inside) << i;
        }
        if constexpr (PROLOGUE != PLAIN) valid = (valid & ~(15u << slot * ROWS_A)) | bits << slot * ROWS_A;
    }

    // Forward: [N][TILE_K] of the filter's rows. grad_input: [TILE_K][N], a row for each (tap, channel of the source).
    __device__ __forceinline__ void load_b(int step, uint8_t* stage) const {
        constexpr int COLUMNS = GRAD ? Tile<N>::CHUNKS_N : CHUNKS_K, ROWS = THREADS / COLUMNS;
        const int column = threadIdx.x % COLUMNS;
        const T* filter = reinterpret_cast<const T*>(p.filter);
        const int num_taps = p.gather.t.filter * p.gather.h.filter * p.gather.w.filter;
        if constexpr (PROLOGUE == BESIDE) filter += int64_t(split) * p.source_channels * p.target_channels;
#pragma unroll
        for (int i = 0; i < N / 32; i++) {
            const int row = threadIdx.x / COLUMNS + i * ROWS;
            bool inside;
            int64_t element;
            if constexpr (GRAD) {
                const int chunk = step * CHUNKS_K + row / 8;
                int tap, c;
                find(chunk, tap, c);
                inside = chunk < end_chunk && first_n + column * 8 < p.target_channels;
                const int filter_tap = inside ? m.filter_tap[tap] : 0;
                element = (int64_t(c + row % 8) * num_taps + filter_tap) * p.target_channels + first_n + column * 8;
            } else {
                const int chunk = step * CHUNKS_K + column;
                inside = chunk < end_chunk && first_n + row < p.target_channels;
                element = int64_t(first_n + row) * num_taps * p.source_channels + chunk * 8;
            }
            cp_async16(smem_u32(stage + B + chunk_byte<COLUMNS>(row, column)), filter + (inside ? element : 0),
                       inside ? 16 : 0);
        }
    }

    using Factors = std::conditional_t<PROLOGUE == JOIN, JoinChunk, AffineChunk>;

    // To be called before the wait for the copies, which then take their time together.
    __device__ __forceinline__ void load_factors_of(int step, Factors& factors) const {
        const int chunk = step * CHUNKS_K + threadIdx.x % CHUNKS_K;
        int tap, c;
        find(chunk, tap, c);
        if constexpr (PROLOGUE == BESIDE) c -= p.prologue.second_first;
        if (chunk < end_chunk && c >= 0) load_factors(factors, p.prologue, split, c);
    }

    // Of a stage whose copies have come.
    __device__ __forceinline__ void transform(int step, uint8_t* stage, int slot, const Factors& factors) const {
        const uint32_t bits = valid >> slot * ROWS_A & 15u;
        if (bits == 0) return;
        const int column = threadIdx.x % CHUNKS_K;
        int tap, c;
        find(step * CHUNKS_K + column, tap, c);
        if constexpr (PROLOGUE == BESIDE)
            if (c < p.prologue.second_first) return;
        const Place at = m.taps[tap];
        // The tap at distance 0 reads every position of the source once: it stores.
        const bool stores = p.prologue.store != 0 && first_n == 0 && (at.t | at.h | at.w) == 0;
#pragma unroll
        for (int i = 0; i < ROWS_A; i++) {
            if (!(bits >> i & 1)) continue;
            const int row = threadIdx.x / CHUNKS_K + i * (THREADS / CHUNKS_K);
            auto* chunk = reinterpret_cast<Vec<T, 8>*>(stage + chunk_byte<CHUNKS_K>(row, column));
            if constexpr (PROLOGUE == JOIN) {
                const auto second = *reinterpret_cast<const Vec<T, 8>*>(reinterpret_cast<uint8_t*>(chunk) + SECOND);
                const Vec<T, 8> v = transformed(*chunk, second, factors, p.prologue.has_relu);
                *chunk = v;
                if (stores) {
                    const int64_t element = element_of(m.rows[row].linear, c, p.prologue.store_pitch);
                    *reinterpret_cast<Vec<T, 8>*>(reinterpret_cast<T*>(p.prologue.store) + element) = v;
                }
            } else {
                *chunk = transformed(*chunk, factors);
            }
        }
    }
};
