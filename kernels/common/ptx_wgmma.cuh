// wgmma and setmaxnreg, which need sm_90a: part of ptx.cuh, not to be included by itself.
#pragma once

// ---- registers --------------------------------------------------------------------------------------
// Asks for, or gives back, registers of the whole warpgroup; COUNT is what a thread then has.
template <int COUNT>
PTX_FUNCTION void setmaxnreg_inc() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "a multiple of 8 from 24 to 256");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
PTX_FUNCTION void setmaxnreg_dec() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0, "a multiple of 8 from 24 to 256");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- wgmma ------------------------------------------------------------------------------------------
// Before the first wgmma and after every wgmma_wait: orders register accesses.
PTX_FUNCTION void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX_FUNCTION void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most MAY_STAY of the newest groups are in flight.
template <int MAY_STAY>
PTX_FUNCTION void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(MAY_STAY) : "memory");
}

// The registers of N / 2 = 4 m accumulators, as text and as operands, each list on top of the one before.
#define WG_TEXT_1 "%0,%1,%2,%3"
#define WG_TEXT_2 WG_TEXT_1 ",%4,%5,%6,%7"
#define WG_TEXT_3 WG_TEXT_2 ",%8,%9,%10,%11"
#define WG_TEXT_4 WG_TEXT_3 ",%12,%13,%14,%15"
#define WG_TEXT_5 WG_TEXT_4 ",%16,%17,%18,%19"
#define WG_TEXT_6 WG_TEXT_5 ",%20,%21,%22,%23"
#define WG_TEXT_7 WG_TEXT_6 ",%24,%25,%26,%27"
#define WG_TEXT_8 WG_TEXT_7 ",%28,%29,%30,%31"
#define WG_TEXT_9 WG_TEXT_8 ",%32,%33,%34,%35"
#define WG_TEXT_10 WG_TEXT_9 ",%36,%37,%38,%39"
#define WG_TEXT_11 WG_TEXT_10 ",%40,%41,%42,%43"
#define WG_TEXT_12 WG_TEXT_11 ",%44,%45,%46,%47"
#define WG_TEXT_13 WG_TEXT_12 ",%48,%49,%50,%51"
#define WG_TEXT_14 WG_TEXT_13 ",%52,%53,%54,%55"
#define WG_TEXT_15 WG_TEXT_14 ",%56,%57,%58,%59"
#define WG_TEXT_16 WG_TEXT_15 ",%60,%61,%62,%63"
#define WG_TEXT_17 WG_TEXT_16 ",%64,%65,%66,%67"
#define WG_TEXT_18 WG_TEXT_17 ",%68,%69,%70,%71"
#define WG_TEXT_19 WG_TEXT_18 ",%72,%73,%74,%75"
#define WG_TEXT_20 WG_TEXT_19 ",%76,%77,%78,%79"
#define WG_TEXT_21 WG_TEXT_20 ",%80,%81,%82,%83"
#define WG_TEXT_22 WG_TEXT_21 ",%84,%85,%86,%87"
#define WG_TEXT_23 WG_TEXT_22 ",%88,%89,%90,%91"
#define WG_TEXT_24 WG_TEXT_23 ",%92,%93,%94,%95"
#define WG_TEXT_25 WG_TEXT_24 ",%96,%97,%98,%99"
#define WG_TEXT_26 WG_TEXT_25 ",%100,%101,%102,%103"
#define WG_TEXT_27 WG_TEXT_26 ",%104,%105,%106,%107"
#define WG_TEXT_28 WG_TEXT_27 ",%108,%109,%110,%111"
#define WG_TEXT_29 WG_TEXT_28 ",%112,%113,%114,%115"
#define WG_TEXT_30 WG_TEXT_29 ",%116,%117,%118,%119"
#define WG_TEXT_31 WG_TEXT_30 ",%120,%121,%122,%123"
#define WG_TEXT_32 WG_TEXT_31 ",%124,%125,%126,%127"
#define WG_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WG_DATA_1 WG_D4(0)
#define WG_DATA_2 WG_DATA_1, WG_D4(4)
#define WG_DATA_3 WG_DATA_2, WG_D4(8)
#define WG_DATA_4 WG_DATA_3, WG_D4(12)
#define WG_DATA_5 WG_DATA_4, WG_D4(16)
#define WG_DATA_6 WG_DATA_5, WG_D4(20)
#define WG_DATA_7 WG_DATA_6, WG_D4(24)
#define WG_DATA_8 WG_DATA_7, WG_D4(28)
#define WG_DATA_9 WG_DATA_8, WG_D4(32)
#define WG_DATA_10 WG_DATA_9, WG_D4(36)
#define WG_DATA_11 WG_DATA_10, WG_D4(40)
#define WG_DATA_12 WG_DATA_11, WG_D4(44)
#define WG_DATA_13 WG_DATA_12, WG_D4(48)
#define WG_DATA_14 WG_DATA_13, WG_D4(52)
#define WG_DATA_15 WG_DATA_14, WG_D4(56)
#define WG_DATA_16 WG_DATA_15, WG_D4(60)
#define WG_DATA_17 WG_DATA_16, WG_D4(64)
#define WG_DATA_18 WG_DATA_17, WG_D4(68)
#define WG_DATA_19 WG_DATA_18, WG_D4(72)
#define WG_DATA_20 WG_DATA_19, WG_D4(76)
#define WG_DATA_21 WG_DATA_20, WG_D4(80)
#define WG_DATA_22 WG_DATA_21, WG_D4(84)
#define WG_DATA_23 WG_DATA_22, WG_D4(88)
#define WG_DATA_24 WG_DATA_23, WG_D4(92)
#define WG_DATA_25 WG_DATA_24, WG_D4(96)
#define WG_DATA_26 WG_DATA_25, WG_D4(100)
#define WG_DATA_27 WG_DATA_26, WG_D4(104)
#define WG_DATA_28 WG_DATA_27, WG_D4(108)
#define WG_DATA_29 WG_DATA_28, WG_D4(112)
#define WG_DATA_30 WG_DATA_29, WG_D4(116)
#define WG_DATA_31 WG_DATA_30, WG_D4(120)
#define WG_DATA_32 WG_DATA_31, WG_D4(124)

// One instruction: N, the number of lists, the type, and the numbers of the operands that follow the accumulators.
#define WG_SS(N, M, TYPE, A, B, S, TA, TB)                                                        \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #S                                          \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WG_TEXT_##M \
                 "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";\n}"                           \
                 : WG_DATA_##M                                                                    \
                 : "l"(descriptor_a), "l"(descriptor_b), "r"(scale_d), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B))
#define WG_RS(N, M, TYPE, A0, A1, A2, A3, B, S, TB)                                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #S                                          \
                 ", 0;\n"                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WG_TEXT_##M \
                 "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", p, 1, 1, %" #TB ";\n}"       \
                 : WG_DATA_##M                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor_b), "r"(scale_d), "n"(TRANSPOSE_B))
#define WG_CASE(CHOSEN, ...)                       \
    if constexpr (N == CHOSEN) {                   \
        if constexpr (BF16)                        \
            WG_SHAPE(CHOSEN, "bf16", __VA_ARGS__); \
        else                                       \
            WG_SHAPE(CHOSEN, "f16", __VA_ARGS__);  \
    }

// d[64][N] = a[64][16] b[16][N] + (scale_d ? d : 0), both operands in shared memory. Descriptor: address / 16, leading
// and stride byte offsets / 16 at bits 16 and 32, swizzle at bits 62. TRANSPOSE 0: k innermost in memory; 1: m or n
// innermost.
template <int N, bool BF16, int TRANSPOSE_A, int TRANSPOSE_B>
PTX_FUNCTION void wgmma_m64k16(float (&d)[N / 2], uint64_t descriptor_a, uint64_t descriptor_b, int scale_d) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 from 8 to 256");
#define WG_SHAPE(CHOSEN, TYPE, M, ...) WG_SS(CHOSEN, M, TYPE, __VA_ARGS__)
    WG_CASE(8, 1, 4, 5, 6, 7, 8)
    WG_CASE(16, 2, 8, 9, 10, 11, 12)
    WG_CASE(24, 3, 12, 13, 14, 15, 16)
    WG_CASE(32, 4, 16, 17, 18, 19, 20)
    WG_CASE(40, 5, 20, 21, 22, 23, 24)
    WG_CASE(48, 6, 24, 25, 26, 27, 28)
    WG_CASE(56, 7, 28, 29, 30, 31, 32)
    WG_CASE(64, 8, 32, 33, 34, 35, 36)
    WG_CASE(72, 9, 36, 37, 38, 39, 40)
    WG_CASE(80, 10, 40, 41, 42, 43, 44)
    WG_CASE(88, 11, 44, 45, 46, 47, 48)
    WG_CASE(96, 12, 48, 49, 50, 51, 52)
    WG_CASE(104, 13, 52, 53, 54, 55, 56)
    WG_CASE(112, 14, 56, 57, 58, 59, 60)
    WG_CASE(120, 15, 60, 61, 62, 63, 64)
    WG_CASE(128, 16, 64, 65, 66, 67, 68)
    WG_CASE(136, 17, 68, 69, 70, 71, 72)
    WG_CASE(144, 18, 72, 73, 74, 75, 76)
    WG_CASE(152, 19, 76, 77, 78, 79, 80)
    WG_CASE(160, 20, 80, 81, 82, 83, 84)
    WG_CASE(168, 21, 84, 85, 86, 87, 88)
    WG_CASE(176, 22, 88, 89, 90, 91, 92)
    WG_CASE(184, 23, 92, 93, 94, 95, 96)
    WG_CASE(192, 24, 96, 97, 98, 99, 100)
    WG_CASE(200, 25, 100, 101, 102, 103, 104)
    WG_CASE(208, 26, 104, 105, 106, 107, 108)
    WG_CASE(216, 27, 108, 109, 110, 111, 112)
    WG_CASE(224, 28, 112, 113, 114, 115, 116)
    WG_CASE(232, 29, 116, 117, 118, 119, 120)
    WG_CASE(240, 30, 120, 121, 122, 123, 124)
    WG_CASE(248, 31, 124, 125, 126, 127, 128)
    WG_CASE(256, 32, 128, 129, 130, 131, 132)
#undef WG_SHAPE
}

// The same with a in registers, the layout of mma_m16n8k16's: warp w of the warpgroup holds rows 16 w to 16 w + 15.
// They must not change until the wait.
template <int N, bool BF16, int TRANSPOSE_B>
PTX_FUNCTION void wgmma_m64k16_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t descriptor_b, int scale_d) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "N is a multiple of 8 from 8 to 256");
#define WG_SHAPE(CHOSEN, TYPE, M, ...) WG_RS(CHOSEN, M, TYPE, __VA_ARGS__)
    WG_CASE(8, 1, 4, 5, 6, 7, 8, 9, 10)
    WG_CASE(16, 2, 8, 9, 10, 11, 12, 13, 14)
    WG_CASE(24, 3, 12, 13, 14, 15, 16, 17, 18)
    WG_CASE(32, 4, 16, 17, 18, 19, 20, 21, 22)
    WG_CASE(40, 5, 20, 21, 22, 23, 24, 25, 26)
    WG_CASE(48, 6, 24, 25, 26, 27, 28, 29, 30)
    WG_CASE(56, 7, 28, 29, 30, 31, 32, 33, 34)
    WG_CASE(64, 8, 32, 33, 34, 35, 36, 37, 38)
    WG_CASE(72, 9, 36, 37, 38, 39, 40, 41, 42)
    WG_CASE(80, 10, 40, 41, 42, 43, 44, 45, 46)
    WG_CASE(88, 11, 44, 45, 46, 47, 48, 49, 50)
    WG_CASE(96, 12, 48, 49, 50, 51, 52, 53, 54)
    WG_CASE(104, 13, 52, 53, 54, 55, 56, 57, 58)
    WG_CASE(112, 14, 56, 57, 58, 59, 60, 61, 62)
    WG_CASE(120, 15, 60, 61, 62, 63, 64, 65, 66)
    WG_CASE(128, 16, 64, 65, 66, 67, 68, 69, 70)
    WG_CASE(136, 17, 68, 69, 70, 71, 72, 73, 74)
    WG_CASE(144, 18, 72, 73, 74, 75, 76, 77, 78)
    WG_CASE(152, 19, 76, 77, 78, 79, 80, 81, 82)
    WG_CASE(160, 20, 80, 81, 82, 83, 84, 85, 86)
    WG_CASE(168, 21, 84, 85, 86, 87, 88, 89, 90)
    WG_CASE(176, 22, 88, 89, 90, 91, 92, 93, 94)
    WG_CASE(184, 23, 92, 93, 94, 95, 96, 97, 98)
    WG_CASE(192, 24, 96, 97, 98, 99, 100, 101, 102)
    WG_CASE(200, 25, 100, 101, 102, 103, 104, 105, 106)
    WG_CASE(208, 26, 104, 105, 106, 107, 108, 109, 110)
    WG_CASE(216, 27, 108, 109, 110, 111, 112, 113, 114)
    WG_CASE(224, 28, 112, 113, 114, 115, 116, 117, 118)
    WG_CASE(232, 29, 116, 117, 118, 119, 120, 121, 122)
    WG_CASE(240, 30, 120, 121, 122, 123, 124, 125, 126)
    WG_CASE(248, 31, 124, 125, 126, 127, 128, 129, 130)
    WG_CASE(256, 32, 128, 129, 130, 131, 132, 133, 134)
#undef WG_SHAPE
}
#undef WG_CASE
#undef WG_RS
#undef WG_SS
