// The exact tokens of a split, without MMA: see attention/attention.cu.

#include "attention/shape.cuh"
#include "common/reduce.cuh"

// Attention over up to EXACT exact tokens.
__device__ __forceinline__ void read_exact(float* shared, const Cache& c, int begin, int count, int rows, float* sums,
                                           float* row_max, float* row_sum, i64 stride) {
    constexpr int OWN = (EXACT + WARPS - 1) / WARPS, HELD_KEYS = (K_DIM + 31) / 32;
    constexpr int HELD_VALUES = (V_STORED + THREADS - 1) / THREADS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *queries = shared, *probs = shared + ROWS * K_DIM;
    auto slot = [&](int e) { return (i64)(c.ring ? (c.coded + begin + e) % c.ring : begin + e); };
    float k[OWN][HELD_KEYS], v[HELD_VALUES][EXACT];  // all loads run at once
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < HELD_KEYS; j++) {
            const int e = warp + i * WARPS, d = j * 32 + lane;
            k[i][j] = e < count && d < K_DIM ? load_input(c.k_exact, slot(e) * K_DIM + d) : 0.0f;
        }
#pragma unroll
    for (int i = 0; i < HELD_VALUES; i++)
#pragma unroll
        for (int e = 0; e < EXACT; e++) {
            const int d = i * THREADS + threadIdx.x;
            v[i][e] = e < count && d < V_DIM ? load_input(c.v_exact, slot(e) * V_DIM + d) : 0.0f;
        }
    for (int i = threadIdx.x; i < rows * K_DIM; i += THREADS) queries[i] = load_input(c.query, i);
    __syncthreads();  // the queries are written
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int e = warp + i * WARPS;
        if (e >= count) break;
        const bool seen = visible(c, c.coded + begin + e);
        for (int r = 0; r < rows; r++) {
            float s = 0.0f;
#pragma unroll
            for (int j = 0; j < HELD_KEYS; j++)
                if (j * 32 + lane < K_DIM) s += k[i][j] * queries[r * K_DIM + j * 32 + lane];
            s = warp_reduce_sum_up(s);
            if (lane == 0) probs[r * EXACT + e] = seen ? logit(s * c.scaling, c.softcap) : minus_infinity();
        }
    }
    __syncthreads();  // the logits of all tokens are written
    for (int r = warp; r < rows; r += WARPS) {
        const float l = lane < count ? probs[r * EXACT + lane] : minus_infinity();
        float top = fmaxf(l, LOWEST);
        top = warp_reduce_max_up(top);
        const float prob = ex2_approx(l - top);
        float weight = prob;
        weight = warp_reduce_sum_up(weight);
        if (lane < EXACT) probs[r * EXACT + lane] = prob;
        if (lane == 0) row_max[r * stride] = top, row_sum[r * stride] = weight;
    }
    __syncthreads();  // the probabilities are written
#pragma unroll
    for (int i = 0; i < HELD_VALUES; i++) {
        const int d = i * THREADS + threadIdx.x;
        for (int r = 0; r < rows; r++) {
            float sum = 0.0f;
#pragma unroll
            for (int e = 0; e < EXACT; e += 4) {
                const float4 four = *(const float4*)(probs + r * EXACT + e);  // zeros from `count` on
                sum += four.x * v[i][e] + four.y * v[i][e + 1] + four.z * v[i][e + 2] + four.w * v[i][e + 3];
            }
            if (d < V_STORED) sums[r * stride * V_STORED + d] = sum;
        }
    }
}
