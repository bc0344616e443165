// Routing for a few tokens: logits = x weight^T, the TOP_K largest, and their normalized probabilities.
//
// Layout: a CTA multiplies the row of one expert. The CTA of a token that finishes last reads the logits of all experts
// and ranks them: the rank of a logit is the number of larger ones.
//
// Macros, in addition to those of common/types.cuh:
//   EXPERTS  rows of the router's weight, at most 1024; bounds the logits in shared memory
//   TOP_K    experts per token
//   THREADS  of a CTA

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int WARPS = THREADS / 32;

// x:             (tokens, columns), INPUT; columns is a multiple of 8
// weight:        (EXPERTS, columns), INPUT
// scale:         (EXPERTS,), INPUT
// logits:        float32 (tokens, EXPERTS), scratch
// arrived:       (tokens,), scratch: zeros before and after
// topk_ids:      (tokens, TOP_K), the largest probability first
// topk_weights:  (tokens, TOP_K)
// grid:          (EXPERTS, tokens)
extern "C" __global__ __launch_bounds__(THREADS) void route_topk(const void* x, i64 columns, const void* weight,
                                                                 const void* scale, float* logits, u32* arrived,
                                                                 i64* topk_ids, float* topk_weights) {
    griddepcontrol_launch_dependents();
    __shared__ float sums[WARPS], all[EXPERTS], best[TOP_K];
    __shared__ int which[TOP_K];
    __shared__ bool last;
    const int t = threadIdx.x, expert = blockIdx.x;
    const i64 token = blockIdx.y;
    griddepcontrol_wait();  // the previous kernel writes x
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
    __syncthreads();  // every warp's sum is complete
    if (t == 0) {
        for (int w = 1; w < WARPS; w++) sum += sums[w];
        sum = rounded(sum);  // torch stores the logit in this dtype
        __stcg(logits + token * EXPERTS + expert, sum);
        __threadfence();  // makes the logit visible before the count
        last = atomicAdd(arrived + token, 1) == EXPERTS - 1;
    }
    __syncthreads();  // `last` is known
    if (!last) return;
    __threadfence();  // makes the logits of the counted CTAs visible here
    if (t == 0) arrived[token] = 0;
    for (int i = t; i < EXPERTS; i += THREADS) all[i] = __ldcg(logits + token * EXPERTS + i);
    for (int k = t; k < TOP_K; k += THREADS) best[k] = 0.0f, which[k] = k;  // NaN has no rank
    __syncthreads();                              // all logits and the defaults of `best` are written
    for (int i = t; i < EXPERTS; i += THREADS) {  // of equal logits the first wins
        int rank = 0;
        for (int j = 0; j < EXPERTS; j++) rank += all[j] > all[i] || (all[j] == all[i] && j < i);
        if (rank < TOP_K) best[rank] = all[i], which[rank] = i;
    }
    __syncthreads();  // the largest logits are written, in order
    float prob_sum = 0.0f;
    for (int k = 0; k < TOP_K; k++) prob_sum += expf(best[k] - best[0]);
    for (int k = t; k < TOP_K; k += THREADS) {
        topk_ids[token * TOP_K + k] = which[k];
        topk_weights[token * TOP_K + k] = expf(best[k] - best[0]) / prob_sum * load_input(scale, which[k]);
    }
}
