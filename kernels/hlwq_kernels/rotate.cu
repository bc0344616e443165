// Rows of activations, rotated block by block and rounded to fp16 under a power of two of their own.
//
// Macros: N, the block size; INPUT, 0 float32, 1 bfloat16, 2 float16; ACT, 0 none, 1 silu, 2 gelu by tanh: then a row is
// gates and values, (2, columns), and act(gate) * value is what is rotated. A CTA takes a row; a warp takes blocks.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

constexpr int LANES = 32, VALUES = N / LANES;
constexpr float ROOT = N == 32 ? 0.17677669529663687f : N == 64 ? 0.125f : N == 128 ? 0.08838834764831845f : 0.0625f;

__device__ __forceinline__ float load(const void* x, i64 i) {
#if INPUT == 0
  return ((const float*)x)[i];
#elif INPUT == 1
  return __uint_as_float((u32)((const u16*)x)[i] << 16);
#else
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(((const u16*)x)[i]));
  return value;
#endif
}

__device__ __forceinline__ float weighed(const void* x, i64 row, i64 columns, i64 i) {
#if ACT == 0
  return load(x, row * columns + i);
#else
  float gate = load(x, row * 2 * columns + i), value = load(x, row * 2 * columns + columns + i);
#if ACT == 1
  return gate / (1.0f + expf(-gate)) * value;
#else
  return 0.5f * gate * (1.0f + tanhf(0.7978845608028654f * (gate + 0.044715f * gate * gate * gate))) * value;
#endif
#endif
}

__device__ __forceinline__ void rotated(float* v, const void* x, i64 row, i64 columns, i64 block, int lane) {
#pragma unroll
  for (int j = 0; j < VALUES; j++) {
    i64 i = block * N + j * LANES + lane;
    v[j] = i < columns ? weighed(x, row, columns, i) : 0.0f;
  }
#pragma unroll
  for (int h = 1; h < VALUES; h *= 2)
#pragma unroll
    for (int j = 0; j < VALUES; j++)
      if (!(j & h)) {
        float a = v[j], b = v[j + h];
        v[j] = a + b;
        v[j + h] = a - b;
      }
#pragma unroll
  for (int h = 1; h < LANES; h *= 2)
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
      float other = __shfl_xor_sync(0xffffffff, v[j], h);
      v[j] = lane & h ? other - v[j] : v[j] + other;
    }
}

extern "C" __global__ void rotate_rows(const void* x, i64 columns, i64 blocks, u16* out, float* units) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  __shared__ float largest_of[32];
  i64 row = blockIdx.x;
  int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, warps = blockDim.x / LANES;
  float v[VALUES], largest = 0.0f;
  for (i64 block = warp; block < blocks; block += warps) {
    rotated(v, x, row, columns, block, lane);
#pragma unroll
    for (int j = 0; j < VALUES; j++) largest = fmaxf(largest, fabsf(v[j]));
  }
  for (int h = 1; h < LANES; h *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, h));
  if (lane == 0) largest_of[warp] = largest;
  __syncthreads();
  for (int w = 0; w < warps; w++) largest = fmaxf(largest, largest_of[w]);
  // The row's largest value goes to [2^13, 2^14): far from overflow, and what is 2^27 times smaller is still normal.
  int exponent = (int)((__float_as_uint(largest) >> 23) & 255) - 127;
  exponent = exponent < -100 ? -100 : exponent > 110 ? 110 : exponent;
  float down = __uint_as_float((u32)(13 - exponent + 127) << 23);
  if (threadIdx.x == 0) units[row] = __uint_as_float((u32)(exponent - 13 + 127) << 23) * ROOT;
  for (i64 block = warp; block < blocks; block += warps) {
    rotated(v, x, row, columns, block, lane);
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
      u16 half;
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(v[j] * down));
      out[(row * blocks + block) * N + j * LANES + lane] = half;
    }
  }
}
