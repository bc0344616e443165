// Types of activations and results: loading, storing and rounding their values, which kernels compute in float32.
//
// Macros: INPUT, the dtype of activations, and OUTPUT, that of results and biases: one of the numbers below.

#include "common/ptx.cuh"

// The numbers of DTYPE_IDS in common/device.py.
#define FLOAT32 0
#define BFLOAT16 1
#define FLOAT16 2

__device__ __forceinline__ float bf16_to_float(u16 x) { return __uint_as_float((u32)x << 16); }

// 2^e, for e from -126 to 127.
__device__ __forceinline__ float power_of_two(int e) { return __uint_as_float((u32)(e + 127) << 23); }

// Below every score: where a running maximum begins. Finite, so that differences of two are not NaN.
constexpr float LOWEST = -1e30f;

// Value `at` of x, an array of DTYPE.
template <int DTYPE>
__device__ __forceinline__ float load_as(const void* x, i64 at) {
    if constexpr (DTYPE == FLOAT32)
        return ((const float*)x)[at];
    else if constexpr (DTYPE == BFLOAT16)
        return bf16_to_float(((const u16*)x)[at]);
    else
        return half_to_float(((const u16*)x)[at]);
}

__device__ __forceinline__ float load_input(const void* x, i64 at) { return load_as<INPUT>(x, at); }

#ifdef OUTPUT
__device__ __forceinline__ float load_output(const void* x, i64 at) { return load_as<OUTPUT>(x, at); }

// Stores to the nearest value of OUTPUT, ties to even, as torch does.
__device__ __forceinline__ void store(void* y, i64 at, float value) {
#if OUTPUT == FLOAT32
    ((float*)y)[at] = value;
#elif OUTPUT == BFLOAT16
    u32 bits = __float_as_uint(value);
    ((u16*)y)[at] = value != value ? 0x7fff : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    ((u16*)y)[at] = (u16)float_to_half(value);
#endif
}

// The value that torch would read back after storing x.
__device__ __forceinline__ float rounded(float x) {
#if OUTPUT == FLOAT32
    return x;
#else
    u16 bits;
    store(&bits, 0, x);
    return load_output(&bits, 0);
#endif
}
#endif
