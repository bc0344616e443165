// Encodes tokens of the key/value cache: the bytes of encode_kv_reference in attention/kv_encode.py. It must be
// compiled without fused multiply-adds.
//
// Layout: a warp encodes one head of one token; lane l holds values l, l + 32, ... of it. Sums are the trees of the
// reference.
//
// Macros, in addition to those of common/planes.cuh and common/hadamard.cuh:
//   THREADS                    of a CTA
//   DIM, STORED                values of a head, at most 512, and the same padded as stored; they bound the registers
//   LOWEST_STEP, HIGHEST_STEP  the candidate scales, as steps from the scale of the root mean square
//   THRESHOLD_0 .. 3           THRESHOLDS in attention/kv_tables.py

#include "common/hadamard.cuh"
#include "common/planes.cuh"
#include "common/reduce.cuh"

constexpr int HELD = STORED / 32, WARPS = THREADS / 32, CODES = 1 << BITS, BEYOND = 255;

__device__ __forceinline__ float energy(const float* z) {
    constexpr int WIDE = HELD == 1 ? 1 : HELD == 2 ? 2 : HELD <= 4 ? 4 : HELD <= 8 ? 8 : 16;
    float part[WIDE];
#pragma unroll
    for (int j = 0; j < WIDE; j++) part[j] = j < HELD ? z[j] * z[j] : 0.0f;
    return warp_reduce_tree(part);
}

// `_scale_index` in attention/kv_encode.py, by the exponent and mantissa of a float32.
__device__ __forceinline__ int scale_index(float mean_square) {
    if (mean_square == 0.0f) return 0;
    const u32 word = __float_as_uint(mean_square) & 0x7fffffff;
    const float mantissa = __uint_as_float((word & 0x7fffff) | 0x3f800000);
    int above = (mantissa >= THRESHOLD_0) + (mantissa >= THRESHOLD_1);
    above += (mantissa >= THRESHOLD_2) + (mantissa >= THRESHOLD_3);
    const int k = 128 + 4 * ((int)(word >> 23) - 127) + above;
    return k < 253 ? max(k, 0) : BEYOND;  // infinities and NaN have the largest exponent
}

// The number of boundaries below a value, by binary search.
__device__ __forceinline__ int nearest(float z, const float* boundaries) {
    int found = 0;
#pragma unroll
    for (int half = CODES / 2; half > 0; half /= 2)
        if (z > boundaries[found + half - 1]) found += half;
    return found;
}

// Stores one plane: WIDTH bits of each code, from bit BELOW on. See codes/planes.py.
template <int BELOW, int WIDTH>
__device__ __forceinline__ void store_token_plane(u32* row, const u8* codes, int lane) {
    constexpr int per_word = 32 / WIDTH;
    for (int w = lane; w < STORED / per_word; w += 32) {
        u32 word = 0;
#pragma unroll
        for (int i = 0; i < per_word; i++) {
            const u32 field = codes[w * per_word + i] >> BELOW & ((1 << WIDTH) - 1);
            word |= field << ((i & 4 ? 16 : 0) + (i / 8 * 4 + i % 4) * WIDTH);
        }
        row[STORED * BELOW / 32 + w] = word;
    }
}

// tokens:      (count, DIM), INPUT
// boundaries:  float32 (2^BITS - 1,)
// centroids:   float32 (2^BITS,)
// steps:       float32 (256,), the scale of each scale byte
// codes:       u8 (count, STORED * BITS / 8)
// scales:      u8 (count,)
extern "C" __global__ __launch_bounds__(THREADS) void encode_tokens(const void* tokens, i64 count,
                                                                    const float* boundaries, const float* centroids,
                                                                    const float* steps, u32* codes, u8* scales) {
    extern __shared__ uint4 arena[];
    float *limits = (float*)arena, *values = limits + CODES, *sizes = values + CODES;
    for (int i = threadIdx.x; i < CODES; i += THREADS) {
        limits[i] = i < CODES - 1 ? boundaries[i] : 0.0f;
        values[i] = centroids[i];
    }
    for (int i = threadIdx.x; i < 256; i += THREADS) sizes[i] = steps[i];
    __syncthreads();  // the tables are written
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u8* kept = (u8*)(sizes + 256) + warp * STORED;
    for (i64 row = (i64)blockIdx.x * WARPS + warp; row < count; row += (i64)gridDim.x * WARPS) {
        float z[HELD];
#pragma unroll
        for (int b = 0; b < STORED / N; b++) {
            load_block(z + b * VALUES, tokens, row, DIM, b, lane);
            rotate_block(z + b * VALUES, lane);
        }
#pragma unroll
        for (int j = 0; j < HELD; j++) z[j] = z[j] * ROOT;
        const int middle = scale_index(energy(z) * (1.0f / STORED));
        float least = __uint_as_float(0x7f800000u);
        int best = 0;
        int code[HELD] = {};
#pragma unroll 1  // one copy of the loop's code; more were not measured
        for (int step = LOWEST_STEP; step <= HIGHEST_STEP; step++) {
            const int k = min(max(middle + step, 1), BEYOND - 1);
            const float s = sizes[k], inverse = __fdiv_rn(1.0f, s);
            float off[HELD];
            int now[HELD];
#pragma unroll
            for (int j = 0; j < HELD; j++) {
                const int found = nearest(z[j] * inverse, limits);
                now[j] = found;
                off[j] = z[j] - values[found] * s;
            }
            const float error = energy(off);
            if (error < least) {
                least = error, best = k;
#pragma unroll
                for (int j = 0; j < HELD; j++) code[j] = now[j];
            }
        }
        if (lane == 0) scales[row] = (u8)(middle == 0 ? 0 : middle == BEYOND ? BEYOND : best);
#pragma unroll
        for (int j = 0; j < HELD; j++) kept[j * 32 + lane] = (u8)code[j];
        __syncwarp();  // the codes of all lanes are written
        u32* out = codes + row * (STORED * BITS / 32);
        store_token_plane<0, PLANE_A>(out, kept, lane);
        if constexpr (PLANE_B != 0) store_token_plane<PLANE_A, PLANE_B>(out, kept, lane);
        if constexpr (PLANE_C != 0) store_token_plane<PLANE_A + PLANE_B, PLANE_C>(out, kept, lane);
        __syncwarp();  // every lane has read the codes; those of the next token overwrite them
    }
}
