// A block of activations, rotated by a warp: lane l holds values l, l + 32, ... of it.
//
// Macros: N, the block size; GATE, 0 none, 1 silu, 2 gelu by tanh: then a row is gates and values, (2, columns), and
// gate(a) * b is what is rotated. Joined behind lookup.cu or types of its own; INPUT as there.

constexpr int VALUES = N / 32;
constexpr float ROOT = N == 32    ? 0.17677669529663687f
                       : N == 64  ? 0.125f
                       : N == 128 ? 0.08838834764831845f
                       : N == 256 ? 0.0625f
                                  : 0.04419417382415922f;

__device__ __forceinline__ float activation(const void* x, i64 row, i64 columns, i64 i) {
#if GATE == 0
  return load_input(x, row * columns + i);
#else
  const float a = load_input(x, row * 2 * columns + i), b = load_input(x, row * 2 * columns + columns + i);
#if GATE == 1
  return a / (1.0f + expf(-a)) * b;
#else
  return 0.5f * a * (1.0f + tanhf(0.7978845608028654f * (a + 0.044715f * a * a * a))) * b;
#endif
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

// Not divided by sqrt(N). From neighbours outward, as hadamard.py adds.
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

__device__ __forceinline__ float largest_in_warp(const float* v) {
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < VALUES; j++) largest = fmaxf(largest, fabsf(v[j]));
#pragma unroll
  for (int h = 1; h < 32; h *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, h));
  return largest;
}

// 2^e as far as float32 and the products to come allow.
__device__ __forceinline__ int exponent_of(float x) {
  const int e = (int)(__float_as_uint(x) >> 23 & 255) - 127;
  return e < -100 ? -100 : e > 110 ? 110 : e;
}

__device__ __forceinline__ float power_of_two(int e) { return __uint_as_float((u32)(e + 127) << 23); }
