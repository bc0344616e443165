// The weighted sum of the results of each token's experts, read from wherever their rows are.
//
// Layout: a CTA takes a token, a thread eight columns at a time.
//
// Macros: INPUT and OUTPUT, equal, a dtype of 16 bits; THREADS of a CTA, any number.

#include "common/types.cuh"

// rows:          (pairs, columns), INPUT; columns is a multiple of 8
// row_index:     (tokens, k), the row of each pair; a negative one adds nothing
// topk_weights:  (tokens, k)
// y:             (tokens, columns), OUTPUT
extern "C" __global__ __launch_bounds__(THREADS) void combine_expert_outputs(const u16* rows, i64 columns,
                                                                             const i64* row_index,
                                                                             const float* topk_weights, i64 k, u16* y) {
    const i64 token = blockIdx.x;
    for (i64 at = threadIdx.x * 8; at < columns; at += THREADS * 8) {
        float sum[8] = {};
#pragma unroll 4  // the loads of four experts run at once; not measured
        for (i64 j = 0; j < k; j++) {
            const i64 row = row_index[token * k + j];
            const float weight = topk_weights[token * k + j];
            __align__(16) u16 part[8];
            *(uint4*)part = row < 0 ? make_uint4(0, 0, 0, 0) : *(const uint4*)(rows + row * columns + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += row < 0 ? 0.0f : weight * load_input(part, i);
        }
        __align__(16) u16 out[8];
#pragma unroll
        for (int i = 0; i < 8; i++) store(out, i, sum[i]);
        *(uint4*)(y + token * columns + at) = *(const uint4*)out;
    }
}
