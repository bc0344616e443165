// The choice of experts for a few tokens: logits, the k largest, their prob_sum. A CTA takes an expert's row; the one
// that comes last of a token's takes the logits of all and chooses.
//
// Macros, beside those of common/types.cuh: EXPERTS, at most 1024; TOP_K, k; THREADS.

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int WARPS = THREADS / 32;

// x (tokens, columns), weight (EXPERTS, columns), scale (EXPERTS,), columns a multiple of 8; logits (tokens, EXPERTS)
// float32 and arrived (tokens,), zeros, for the kernel's own use; topk_ids int64, topk_weights float32 (tokens, TOP_K),
// the largest first.
extern "C" __global__ __launch_bounds__(THREADS) void route_topk(const void* x, i64 columns, const void* weight,
                                                                 const void* scale, float* logits, u32* arrived,
                                                                 i64* topk_ids, float* topk_weights) {
    griddepcontrol_launch_dependents();
    __shared__ float sums[WARPS], all[EXPERTS], best[TOP_K];
    __shared__ int which[TOP_K];
    __shared__ bool last;
    const int t = threadIdx.x, expert = blockIdx.x;
    const i64 token = blockIdx.y;
    griddepcontrol_wait();  // x comes from the kernel before
    float sum = 0.0f;
    for (i64 at = t * 8; at < columns; at += THREADS * 8) {
#if INPUT == FLOAT32
        for (int i = 0; i < 8; i++)
            sum += load_input(x, token * columns + at + i) * load_input(weight, expert * columns + at + i);
#else
        __align__(16) u16 a[8], b[8];
        *(uint4*)a = *(const uint4*)((const u16*)x + token * columns + at);
        *(uint4*)b = *(const uint4*)((const u16*)weight + expert * columns + at);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += load_input(a, i) * load_input(b, i);
#endif
    }
    sum = warp_reduce_sum(sum);
    if (t % 32 == 0) sums[t / 32] = sum;
    __syncthreads();  // every warp's sum is there
    if (t == 0) {
        for (int w = 1; w < WARPS; w++) sum += sums[w];
        sum = rounded(sum);  // as torch stores a logit
        __stcg(logits + token * EXPERTS + expert, sum);
        __threadfence();  // the logit is visible before the count says so
        last = atomicAdd(arrived + token, 1) == EXPERTS - 1;
    }
    __syncthreads();  // `last` is known
    if (!last) return;
    __threadfence();  // the counts of all CTAs are seen, so are their logits
    if (t == 0) arrived[token] = 0;
    for (int i = t; i < EXPERTS; i += THREADS) all[i] = __ldcg(logits + token * EXPERTS + i);
    for (int k = t; k < TOP_K; k += THREADS) best[k] = 0.0f, which[k] = k;  // where NaN has no rank
    __syncthreads();                              // all logits are there, and what `best` holds without a rank
    for (int i = t; i < EXPERTS; i += THREADS) {  // of equals the first
        int rank = 0;
        for (int j = 0; j < EXPERTS; j++) rank += all[j] > all[i] || (all[j] == all[i] && j < i);
        if (rank < TOP_K) best[rank] = all[i], which[rank] = i;
    }
    __syncthreads();  // the largest logits are there, in order
    float prob_sum = 0.0f;
    for (int k = 0; k < TOP_K; k++) prob_sum += expf(best[k] - best[0]);
    for (int k = t; k < TOP_K; k += THREADS) {
        topk_ids[token * TOP_K + k] = which[k];
        topk_weights[token * TOP_K + k] = expf(best[k] - best[0]) / prob_sum * load_input(scale, which[k]);
    }
}
