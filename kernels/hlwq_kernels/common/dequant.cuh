// From bit planes to pairs of fp16 weights, for the kernels that multiply by codes.
//
// Two codes are looked up at once in a table of pairs in shared memory. The copies of an entry are neighbours, so lanes
// rarely read the same bank. A table of pairs of 7 or 8 bits would be too large: these codes are looked up one by one.
//
// Macros, in addition to those of common/planes.cuh and common/types.cuh:
//   ALIGN    the bytes of a row are a multiple of it: 4, 8 or 16; bounds the width of loads
//   COPIES   copies of the table, 1 to 32, a power of two; bounds its shared memory
//   THREADS  of a CTA

#include "common/planes.cuh"
#include "common/types.cuh"

constexpr int LANE_CODES = 32;  // so that a lane has whole words of every plane

template <int WORDS>
__device__ __forceinline__ void load_words(u32* out, const u8* at) {
    if constexpr (ALIGN >= 16 && WORDS == 4) {
        uint4 v = __ldcs((const uint4*)at);
        out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else if constexpr (ALIGN >= 8 && WORDS >= 2) {
#pragma unroll
        for (int w = 0; w < WORDS; w += 2) {
            uint2 v = __ldcs((const uint2*)(at + 4 * w));
            out[w] = v.x, out[w + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int w = 0; w < WORDS; w++) out[w] = __ldcs((const u32*)(at + 4 * w));
    }
}

// The field pair (2p, 2p + 1) of a plane, p = 0 .. 15 within a lane's 32 codes, moved to bit TO. In a word the codes
// with bit 2 of their index clear fill the low half: see codes/planes.py.
template <int WIDTH, int P, int TO>
__device__ __forceinline__ u32 fields(const u32* words) {
    constexpr int code = 2 * P, per_word = 32 / WIDTH, word = code / per_word, i = code % per_word;
    constexpr int from = (i & 4 ? 16 : 0) + (i / 8 * 4 + i % 4) * WIDTH;
    constexpr u32 mask = ((1u << 2 * WIDTH) - 1) << TO;
    return (from > TO ? words[word] >> (from > TO ? from - TO : 0) : words[word] << (from > TO ? 0 : TO - from)) & mask;
}

// The same for one code of the pair.
template <int WIDTH, int CODE, int TO>
__device__ __forceinline__ u32 field(const u32* words) {
    constexpr int per_word = 32 / WIDTH, word = CODE / per_word, i = CODE % per_word;
    constexpr int from = (i & 4 ? 16 : 0) + (i / 8 * 4 + i % 4) * WIDTH;
    constexpr u32 mask = ((1u << WIDTH) - 1) << TO;
    return (from > TO ? words[word] >> (from > TO ? from - TO : 0) : words[word] << (from > TO ? 0 : TO - from)) & mask;
}

// The number of address bits below a table's index, for entries of C copies of 4 bytes.
template <int C>
constexpr int LOW = C == 1    ? 2
                    : C == 2  ? 3
                    : C == 4  ? 4
                    : C == 8  ? 5
                    : C == 16 ? 6
                              : 7;

// One weight as fp16, in both halves, from a table without pairs.
template <int CODE, int C, int B>
__device__ __forceinline__ u32 weight(const PlanesOf<B>& w, u32 table, u32 copy) {
    u32 at = copy | field<4, CODE, LOW<C>>(w.a) | field<Width<B>::PLANE_B, CODE, LOW<C> + 4>(w.b);
    if constexpr (Width<B>::PLANE_C != 0) at |= field<1, CODE, LOW<C> + 6>(w.c);
    return ld_shared(table, at);
}

// Two weights as fp16.
template <int P, int C = COPIES, int B>
__device__ __forceinline__ u32 weights(const PlanesOf<B>& w, u32 table, u32 copy) {
    if constexpr (Width<B>::PAIRS) {
        u32 at = copy | fields<Width<B>::PLANE_A, P, LOW<C>>(w.a);
        if constexpr (Width<B>::PLANE_B != 0) at |= fields<Width<B>::PLANE_B, P, LOW<C> + 2 * Width<B>::PLANE_A>(w.b);
        return ld_shared(table, at);
    } else {
        return __byte_perm(weight<2 * P, C>(w, table, copy), weight<2 * P + 1, C>(w, table, copy), 0x5410);
    }
}

// The two codes of a table's index, whose bits are in the order of `fields`.
template <int B = BITS>
__device__ __forceinline__ void codes_of(const u32 index, u32& low, u32& high) {
    constexpr int FIRST = Width<B>::PLANE_A, SECOND = Width<B>::PLANE_B;
    low = index & ((1 << FIRST) - 1);
    high = index >> FIRST & ((1 << FIRST) - 1);
    if (SECOND) {
        u32 rest = index >> 2 * FIRST;
        low |= (rest & ((1 << SECOND) - 1)) << FIRST;
        high |= (rest >> SECOND & ((1 << SECOND) - 1)) << FIRST;
    }
}

// The lane's centroid for build_lut. Call it early, so that the load is complete in time.
template <int B = BITS>
__device__ __forceinline__ float own_centroid(const float* centroids) {
    return __ldg(centroids + threadIdx.x % 32 % (1 << B));
}

// Builds the table; whole warps must call it. Neighbouring threads write neighbouring words: no bank conflicts.
template <int B = BITS, int C = COPIES>
__device__ __forceinline__ void build_lut(u32* table, const float* centroids, float own) {
    constexpr int WIDE = C >= 4 ? 4 : 1;  // words per store: 16 bytes where four copies of an entry fill them
#pragma unroll 4                          // several shuffles run at once; not measured
    for (int i = threadIdx.x; i < Width<B>::ENTRIES * C / WIDE; i += THREADS) {
        u32 low = i * WIDE / C, high = low;
        if (Width<B>::PAIRS) codes_of<B>(low, low, high);
        const float a = B <= 5 ? __shfl_sync(0xffffffff, own, low) : __ldg(centroids + low);
        const float b = B <= 5 ? __shfl_sync(0xffffffff, own, high) : __ldg(centroids + high);
        const u32 value = float_to_half(a) | float_to_half(b) << 16;
        if constexpr (WIDE == 4)
            ((uint4*)table)[i] = make_uint4(value, value, value, value);
        else
            table[i] = value;
    }
}
