// Adds the splits of attention/attention.cu to one row per query head. Sums of coded tokens are rotated back first.
//
// Layout: a CTA takes a query head, a warp every WARPS-th split.
//
// Macros, in addition to those of common/hadamard.cuh (N is that of values):
//   V_DIM, V_STORED  values of a head, and the same padded as stored
//   WARPS            of a CTA

#include "common/hadamard.cuh"
#include "common/reduce.cuh"

// sums:              float32 (rows, splits, V_STORED); the first exact_splits are not rotated
// row_max, row_sum:  float32 (rows, splits)
// out:               (rows, V_DIM), OUTPUT
extern "C" __global__ __launch_bounds__(32 * WARPS) void combine_splits(const float* sums, const float* row_max,
                                                                        const float* row_sum, i64 exact_splits,
                                                                        i64 splits, void* out) {
    extern __shared__ uint4 arena[];
    float *totals = (float*)arena, *fractions = totals + 2 * WARPS * V_STORED;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const i64 row = blockIdx.x;
    griddepcontrol_launch_dependents();
    griddepcontrol_wait();  // the previous kernel writes the splits
    sums += row * splits * V_STORED, row_max += row * splits, row_sum += row * splits;
    float top = LOWEST, weight = 0.0f;
    for (int p = lane; p < splits; p += 32) top = fmaxf(top, row_max[p]);
    top = warp_reduce_max_up(top);
    for (int p = lane; p < splits; p += 32) {
        const float fraction = row_max[p] > LOWEST ? ex2_approx(row_max[p] - top) : 0.0f;
        weight += fraction * row_sum[p];
        if (warp == 0) fractions[p] = fraction;
    }
    weight = warp_reduce_sum_up(weight);
    __syncthreads();                     // the fractions of the splits are written
    float total[2][V_STORED / 32] = {};  // exact, rotated
    for (int p = warp; p < splits; p += WARPS) {
        if (fractions[p] == 0.0f) continue;
#pragma unroll
        for (int j = 0; j < V_STORED / 32; j++) {
            const float found = fractions[p] * sums[p * V_STORED + j * 32 + lane];
            if (p < exact_splits)
                total[0][j] += found;
            else
                total[1][j] += found;
        }
    }
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int j = 0; j < V_STORED / 32; j++) totals[(k * WARPS + warp) * V_STORED + j * 32 + lane] = total[k][j];
    __syncthreads();  // every warp's totals are written
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
