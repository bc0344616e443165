// A block of N weights in the registers of one thread: rotate, search a scale, code, pack. encode/reference.py defines
// every rounding. Multiplications and additions must not be fused, except where __fmaf_rn does it.
//
// Macros (encode/cuda_config.py computes them):
//   N             weights of a block; bounds the registers of a thread
//   BITS          of a code
//   SPAN          cells of the table of codes, minus one
//   PAIR_COPIES   copies of the table of codes; bounds shared memory
//   VALUE_COPIES  copies of the table of the search; bounds shared memory

#include "common/types.cuh"

#define WORDS (N * BITS / 32)
#define PER_UNIT ((float)(2 << BITS))      // cells of the search in a unit
#define COARSE ((float)(1 << (BITS - 1)))  // cells of the coding in a unit

// 2^23: added to a float of [0, 2^23), it leaves the integer in the low bits of the sum.
#define MAGIC 8388608.0f
#define MAGIC_BITS 0x4B000000u
#define INFINITY_ __uint_as_float(0x7F800000u)

// Butterflies from neighbours outward.
template <int H = 1>
__device__ inline void rotate(float (&z)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        if (!(i & H)) {
            const float a = z[i], b = z[i + H];
            z[i] = a + b;
            z[i + H] = a - b;
        }
    if constexpr (2 * H < N) rotate<2 * H>(z);
}

// The sum of term(0 .. N - 1) by folding the upper half onto the lower, depth first, so that few sums are alive.
template <int I = 0, int H = 1, class Term>
__device__ inline float tree_sum(const Term& term) {
    if constexpr (H == N)
        return term(I);
    else
        return tree_sum<I, 2 * H>(term) + tree_sum<I + H, 2 * H>(term);
}

__device__ inline float magnitude(const float (&z)[N]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) largest = fmaxf(largest, fabsf(z[i]));
    return largest;
}

__device__ inline void scale_block(float (&z)[N], float factor) {
#pragma unroll
    for (int i = 0; i < N; i++) z[i] *= factor;
}

// The error of coding with boundaries rounded to cells, in squared cells. `inverse` turns z into cells, `values` is the
// address of this lane's copy of the table; without CLAMP no cell may lie beyond the table's end.
template <bool CLAMP>
__device__ inline float error_by_cells(const float (&z)[N], float inverse, float top, u32 values) {
    return tree_sum([&](int i) {
        const float v = fabsf(z[i]) * inverse;
        const float cell = __fadd_rd(CLAMP ? fminf(v, top) : v, MAGIC);
        const float d = v - ld_shared_f32(__float_as_uint(cell) * (4 * VALUE_COPIES) + values);
        return d * d;
    });
}

// The largest k with steps[k] <= ratio: a guess that is off by one at most, then the table decides. Steps are 1/32
// octave, and step 255 is 1. The smallest step is about 2^-8, so a ratio below 1e-3 gives 0 in any case.
__device__ inline int step_below(const float* steps, float ratio) {
    int k = (int)floorf(lg2_approx(fmaxf(ratio, 1e-3f)) * 32.0f) + 255;
    k = min(max(k, 0), 255);
    k -= steps[k] > ratio;
    return k + (steps[k + 1] <= ratio);
}

// Copies a table of `count` entries of `words` words to shared memory, `copies` times next to each other.
__device__ inline void replicate(u32* to, const u32* from, int count, int words, int copies) {
    for (int i = threadIdx.x; i < count * words * copies; i += blockDim.x)
        to[i] = from[i / (words * copies) * words + i % words];
}

// One plane's bits of the 8 codes of group g: even codes lie in the bytes of one word, odd ones in those of another.
template <int BELOW, int WIDTH>
__device__ inline void put(u32 (&words)[WORDS], int g, u32 even, u32 odd) {
    constexpr u32 fields = 0x01010101u * ((1 << WIDTH) - 1), halves = 0x00010001u * ((1 << 4 * WIDTH) - 1);
    u32 x = ((even >> BELOW) & fields) | (((odd >> BELOW) & fields) << WIDTH);
    if (WIDTH < 4) x = (x | x >> (8 - 2 * WIDTH)) & halves;
    const int word = N * BELOW / 32 + g * WIDTH / 4, shift = 4 * WIDTH * (g % (4 / WIDTH));
    words[word] = shift ? words[word] | x << shift : x;
}

__device__ inline void pack(u32 (&words)[WORDS], int g, const u32 (&c)[8]) {
    const u32 even = c[0] + (c[2] << 8) + (c[4] << 16) + (c[6] << 24);
    const u32 odd = c[1] + (c[3] << 8) + (c[5] << 16) + (c[7] << 24);
    if (BITS >= 4) put<0, 4>(words, g, even, odd);
    if (BITS == 8) put<BITS == 8 ? 4 : 0, 4>(words, g, even, odd);
    if (BITS == 6 || BITS == 7) put<BITS == 6 || BITS == 7 ? 4 : 0, 2>(words, g, even, odd);
    if (BITS < 4) put<0, 2>(words, g, even, odd);
    if (BITS % 2) put<BITS % 2 ? BITS - 1 : 0, 1>(words, g, even, odd);
}

// The code of x, which is u in coarse cells. A cell's pair is the boundary in it, or the next, and the code below that.
// `position` errs by far less than cells overlap (see encode/cuda_config.py), and the comparison with the boundary is
// exact.
__device__ __forceinline__ u32 code_of(float x, float u, float inverse_span, u32 pairs) {
    const float position = __saturatef(__fmaf_rn(x, inverse_span, 0.5f));
    const u32 cell = __float_as_uint(__fmaf_rn(position, (float)SPAN, MAGIC));
    float boundary;
    u32 c;
    ld_shared_v2(cell * (8 * PAIR_COPIES) + pairs, boundary, c);
    return c + (__float_as_uint(boundary - u) >> 31);  // one more where the boundary is below u
}

// Codes a block; returns the error in squared coarse cells, and leaves squares in z. `inverse` turns z into coarse
// cells.
__device__ inline float code(float (&z)[N], float inverse, u32 pairs, u32 centroids, u32 (&words)[WORDS]) {
    const float inverse_span = inverse * (1.0f / SPAN);
#pragma unroll
    for (int g = 0; g < N / 8; g++) {
        u32 c[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float x = z[8 * g + i], u = x * inverse;
            c[i] = code_of(x, u, inverse_span, pairs);
            const float d = u - ld_shared_f32(c[i] * 4 + centroids);
            z[8 * g + i] = d * d;
        }
        pack(words, g, c);
    }
    return tree_sum([&](int i) { return z[i]; });
}

// Stores the words of one plane of a block, in the widest words that its alignment allows.
template <int BELOW, int WIDTH>
__device__ inline void store_block_plane(u8* row, i64 blocks, i64 inner, const u32 (&words)[WORDS]) {
    constexpr int count = N * WIDTH / 32, first = N * BELOW / 32;
    u8* at = row + blocks * (N * BELOW / 8) + inner * (N * WIDTH / 8);
    if (count % 4 == 0 && ((u64)at & 15) == 0) {
#pragma unroll
        for (int i = 0; i < count; i += 4)
            *(uint4*)(at + 4 * i) = make_uint4(words[first + i], words[first + (i + 1) % count],
                                               words[first + (i + 2) % count], words[first + (i + 3) % count]);
    } else if (count % 2 == 0 && ((u64)at & 7) == 0) {
#pragma unroll
        for (int i = 0; i < count; i += 2)
            *(uint2*)(at + 4 * i) = make_uint2(words[first + i], words[first + (i + 1) % count]);
    } else {
#pragma unroll
        for (int i = 0; i < count; i++) *(u32*)(at + 4 * i) = words[first + i];
    }
}

__device__ inline void store_codes(u8* row, i64 blocks, i64 inner, const u32 (&words)[WORDS]) {
    if (BITS >= 4) store_block_plane<0, 4>(row, blocks, inner, words);
    if (BITS == 8) store_block_plane<BITS == 8 ? 4 : 0, 4>(row, blocks, inner, words);
    if (BITS == 6 || BITS == 7) store_block_plane<BITS == 6 || BITS == 7 ? 4 : 0, 2>(row, blocks, inner, words);
    if (BITS < 4) store_block_plane<0, 2>(row, blocks, inner, words);
    if (BITS % 2) store_block_plane<BITS % 2 ? BITS - 1 : 0, 1>(row, blocks, inner, words);
}
