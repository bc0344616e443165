// Loads and rotates blocks of activations. Either a warp holds a block: lane l has values l, l + 32, ... of it. Or
// N / 8 lanes hold a block, eight neighbouring values each.
//
// Macros, in addition to those of common/types.cuh:
//   N     values of a block: 32, 64, 128, 256 or 512
//   GATE  0: none; 1: silu; 2: gelu by tanh. With a gate a row is (2, columns), gates and values, and gate(a) * b is
//         rotated

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int VALUES = N / 32;
constexpr float ROOT = N == 32    ? 0.17677669529663687f
                       : N == 64  ? 0.125f
                       : N == 128 ? 0.08838834764831845f
                       : N == 256 ? 0.0625f
                                  : 0.04419417382415922f;

// silu(a) = a / (1 + exp(-a)); gelu by tanh is a / (1 + exp(-2 u)), since (1 + tanh(u)) / 2 is that.
__device__ __forceinline__ float gated(float a, float b) {
    const float u = GATE == 1 ? a : 1.5957691216057308f * (a + 0.044715f * a * a * a);
    return __fdividef(a, 1.0f + __expf(-u)) * b;
}

__device__ __forceinline__ float activation(const void* x, i64 row, i64 columns, i64 i) {
#if GATE == 0
    return load_input(x, row * columns + i);
#else
    return gated(load_input(x, row * 2 * columns + i), load_input(x, row * 2 * columns + columns + i));
#endif
}

// Zeros beyond the columns.
__device__ __forceinline__ void load_block(float* v, const void* x, i64 row, i64 columns, i64 block, int lane) {
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
        const i64 i = block * N + j * 32 + lane;
        v[j] = i < columns ? activation(x, row, columns, i) : 0.0f;
    }
}

// Does not divide by sqrt(N). Butterflies run from neighbours outward, as in codes/hadamard.py.
__device__ __forceinline__ void rotate_block(float* v, int lane) {
#pragma unroll
    for (int h = 1; h < 32; h *= 2)
#pragma unroll
        for (int j = 0; j < VALUES; j++) {
            const float other = __shfl_xor_sync(0xffffffff, v[j], h);
            v[j] = lane & h ? other - v[j] : v[j] + other;
        }
#pragma unroll
    for (int h = 1; h < VALUES; h *= 2)
#pragma unroll
        for (int j = 0; j < VALUES; j++)
            if (!(j & h)) {
                const float a = v[j], b = v[j + h];
                v[j] = a + b;
                v[j + h] = a - b;
            }
}

// Blocks by eights: N / 8 lanes hold a block, a lane values 8 l, ... 8 l + 7 of it, a warp 256 / N blocks at once.
constexpr int LANES = N / 8, TOGETHER = 32 / LANES;

__device__ __forceinline__ void load_values8(float* v, const void* x, i64 at) {
#if INPUT == FLOAT32
    __align__(16) float part[8];
    ((float4*)part)[0] = ((const float4*)x)[at / 4], ((float4*)part)[1] = ((const float4*)x)[at / 4 + 1];
#else
    __align__(16) u16 part[8];
    *(uint4*)part = ((const uint4*)x)[at / 8];
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = load_input(part, i);
}

// Columns `first` to first + 7 of a row, zeros beyond its end.
__device__ __forceinline__ void load_columns8(float* v, const void* x, i64 row, i64 columns, i64 first) {
    if (columns % 8 || (u64)x % 16) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = first + i < columns ? activation(x, row, columns, first + i) : 0.0f;
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
    if (first >= columns) return;
    load_values8(v, x, row * (GATE ? 2 : 1) * columns + first);
#if GATE != 0
    float b[8];
    load_values8(b, x, row * 2 * columns + columns + first);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = gated(v[i], b[i]);
#endif
}

// The same as rotate_block, for eight values per lane.
__device__ __forceinline__ void rotate_eight(float* v, int lane) {
#pragma unroll
    for (int h = 1; h < 8; h *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (!(i & h)) {
                const float a = v[i], b = v[i + h];
                v[i] = a + b;
                v[i + h] = a - b;
            }
#pragma unroll
    for (int h = 1; h < LANES; h *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float other = __shfl_xor_sync(0xffffffff, v[i], h);
            v[i] = lane & h ? other - v[i] : v[i] + other;
        }
}

// The largest magnitude of the lane's block.
__device__ __forceinline__ float largest_of_eights(const float* v) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
    largest = warp_reduce_max_up<1, LANES>(largest);
    return largest;
}

__device__ __forceinline__ float largest_in_warp(const float* v) {
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < VALUES; j++) largest = fmaxf(largest, fabsf(v[j]));
    largest = warp_reduce_max_up(largest);
    return largest;
}

// The exponent of x, limited so that later products stay within float32.
__device__ __forceinline__ int exponent_of(float x) {
    const int e = (int)(__float_as_uint(x) >> 23 & 255) - 127;
    return e < -100 ? -100 : e > 110 ? 110 : e;
}
