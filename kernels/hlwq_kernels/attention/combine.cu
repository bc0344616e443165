// What the stretches of attention/attention.cu found, to one row a query head: those of codes rotated back, the exact ones added.
//
// Macros, beside those of common/hadamard.cuh (N is the values'): V_DIM and V_STORED, of a head; WARPS.

#include "common/hadamard.cuh"

constexpr float LOWEST = -1e30f;

// sums (rows, parts, V_STORED), highests and weights (rows, parts), of which the first exact_parts are not rotated; out
// (rows, V_DIM).
extern "C" __global__ __launch_bounds__(32 * WARPS) void merge(
    const float* sums, const float* highests, const float* weights, i64 exact_parts, i64 parts, void* out) {
  extern __shared__ uint4 arena[];
  float *totals = (float*)arena, *shares = totals + 2 * WARPS * V_STORED;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const i64 row = blockIdx.x;
  let_the_next_kernel_start();
  wait_for_the_kernel_before();
  sums += row * parts * V_STORED, highests += row * parts, weights += row * parts;
  float top = LOWEST, weight = 0.0f;
  for (int p = lane; p < parts; p += 32) top = fmaxf(top, highests[p]);
#pragma unroll
  for (int m = 1; m < 32; m *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, m));
  for (int p = lane; p < parts; p += 32) {
    const float share = highests[p] > LOWEST ? exp2_of(highests[p] - top) : 0.0f;
    weight += share * weights[p];
    if (warp == 0) shares[p] = share;
  }
#pragma unroll
  for (int m = 1; m < 32; m *= 2) weight += __shfl_xor_sync(0xffffffff, weight, m);
  __syncthreads();
  float total[2][V_STORED / 32] = {};  // exact, rotated
  for (int p = warp; p < parts; p += WARPS) {
    if (shares[p] == 0.0f) continue;
#pragma unroll
    for (int j = 0; j < V_STORED / 32; j++) {
      const float found = shares[p] * sums[p * V_STORED + j * 32 + lane];
      if (p < exact_parts)
        total[0][j] += found;
      else
        total[1][j] += found;
    }
  }
#pragma unroll
  for (int k = 0; k < 2; k++)
#pragma unroll
    for (int j = 0; j < V_STORED / 32; j++) totals[(k * WARPS + warp) * V_STORED + j * 32 + lane] = total[k][j];
  __syncthreads();
  for (int b = warp; b < V_STORED / N; b += WARPS) {
    float v[VALUES];
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
      v[j] = 0.0f;
#pragma unroll
      for (int k = 0; k < WARPS; k++) v[j] += totals[(WARPS + k) * V_STORED + b * N + j * 32 + lane];
    }
    rotate_block(v, lane);
#pragma unroll
    for (int j = 0; j < VALUES; j++) {
      const int d = b * N + j * 32 + lane;
      float value = v[j] * ROOT;
#pragma unroll
      for (int k = 0; k < WARPS; k++) value += totals[k * V_STORED + d];
      if (d < V_DIM) store(out, row * V_DIM + d, weight == 0.0f ? 0.0f : value / weight);
    }
  }
}
