// RMS norms of a decode step, fused with the additions around them.
//
// Layout: a CTA takes a row, a thread eight of its columns.
//
// Intermediate values are rounded wherever torch would store them, so a chain of norms differs from torch's only by the
// order of sums.
//
// Macros:
//   COLUMNS        of a row, a multiple of 8, at most 8192
//   THREADS        COLUMNS / 8, rounded up to warps
//   INPUT, OUTPUT  the dtype of all tensors, equal

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int WARPS = THREADS / 32;

struct Eight {
    float v[8];
};

// Eight values of a row; zeros beyond the columns or if x is null.
__device__ __forceinline__ Eight load_row8(const void* x, i64 row) {
    Eight e = {};
    if (!x || threadIdx.x * 8 >= COLUMNS) return e;
#if INPUT == FLOAT32
    __align__(16) float part[8];
    const float4* from = (const float4*)((const float*)x + row * COLUMNS) + threadIdx.x * 2;
    ((float4*)part)[0] = from[0], ((float4*)part)[1] = from[1];
#else
    __align__(16) u16 part[8];
    *(uint4*)part = ((const uint4*)((const u16*)x + row * COLUMNS))[threadIdx.x];
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) e.v[i] = load_input(part, i);
    return e;
}

__device__ __forceinline__ void store_row8(void* y, i64 row, const Eight& e) {
    if (threadIdx.x * 8 >= COLUMNS) return;
#if OUTPUT == FLOAT32
    __align__(16) float part[8];
#else
    __align__(16) u16 part[8];
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) store(part, i, e.v[i]);
#if OUTPUT == FLOAT32
    float4* to = (float4*)((float*)y + row * COLUMNS) + threadIdx.x * 2;
    to[0] = ((const float4*)part)[0], to[1] = ((const float4*)part)[1];
#else
    ((uint4*)((u16*)y + row * COLUMNS))[threadIdx.x] = *(const uint4*)part;
#endif
}

// 1 / sqrt(mean square + eps) of two rows at once; every thread of the CTA gets it.
__device__ __forceinline__ float2 inverse_sizes(const Eight& a, const Eight& b, float eps, int reduction) {
    __shared__ float2 sums[4][WARPS];  // a row for each reduction of a kernel, so the barrier of block_reduce is enough
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < 8; i++) sum.x += a.v[i] * a.v[i], sum.y += b.v[i] * b.v[i];
    const auto add = [](float2 p, float2 q) { return make_float2(p.x + q.x, p.y + q.y); };
    const float2 all = block_reduce(warp_reduce_sum(sum), make_float2(0.0f, 0.0f), sums[reduction], WARPS, add);
    return make_float2(1.0f / sqrtf(all.x / COLUMNS + eps), 1.0f / sqrtf(all.y / COLUMNS + eps));
}

__device__ __forceinline__ float inverse_size(const Eight& a, float eps, int reduction) {
    return inverse_sizes(a, Eight{}, eps, reduction).x;
}

// `weight_ptr` is the pointer to the weight; null stands for a norm without a weight.
__device__ __forceinline__ Eight normed(const Eight& x, float inverse, const Eight& weight, const void* weight_ptr) {
    Eight y;
#pragma unroll
    for (int i = 0; i < 8; i++) y.v[i] = rounded(x.v[i] * inverse * (weight_ptr ? weight.v[i] : 1.0f));
    return y;
}

__device__ __forceinline__ Eight sum_of(const Eight& a, const Eight& b) {
    Eight y;
#pragma unroll
    for (int i = 0; i < 8; i++) y.v[i] = rounded(a.v[i] + b.v[i]);
    return y;
}

// After attention: sum = residual + norm(x), and norms of the sum for the dense layer, the experts and their router.
//
// x, residual:                     (rows, COLUMNS), INPUT
// weight, for_dense, for_experts:  (COLUMNS,), INPUT, weights of the norms; null for a norm without a weight
// scale, root:                     factors of the router's norm, which has no weight: (COLUMNS,) and one number
// sum, dense, experts, router:     (rows, COLUMNS), OUTPUT; without experts the last two are null
extern "C" __global__ __launch_bounds__(THREADS) void fused_add_rmsnorm_pre_ffn(
    const void* x, const void* residual, const void* weight, const void* for_dense, const void* for_experts,
    const void* scale, float root, float eps, void* sum, void* dense, void* experts, void* router) {
    griddepcontrol_launch_dependents();
    const Eight w = load_row8(weight, 0), w_dense = load_row8(for_dense, 0), w_experts = load_row8(for_experts, 0);
    const Eight scales = load_row8(scale, 0);
    griddepcontrol_wait();  // the previous kernel writes the rows; it does not write the weights, read above
    const i64 row = blockIdx.x;
    const Eight a = load_row8(x, row), r = load_row8(residual, row);
    const Eight total = sum_of(r, normed(a, inverse_size(a, eps, 0), w, weight));
    store_row8(sum, row, total);
    const float inverse = inverse_size(total, eps, 1);
    store_row8(dense, row, normed(total, inverse, w_dense, for_dense));
    if (!router) return;
    store_row8(experts, row, normed(total, inverse, w_experts, for_experts));
    Eight routed = normed(total, inverse, w_dense, nullptr);
#pragma unroll
    for (int i = 0; i < 8; i++) routed.v[i] = rounded(rounded(routed.v[i] * scales.v[i]) * root);
    store_row8(router, row, routed);
}

// After the feed-forward layers: y = norm(dense) + norm(experts), or y = dense without experts. Then
// out = (residual + norm(y)) * scalar, and the next layer's first norm of out.
//
// dense, experts, residual:               (rows, COLUMNS), INPUT; experts may be null
// of_dense, of_experts, weight, of_next:  (COLUMNS,), INPUT, weights of the norms
// scalar:                                 (1,), INPUT
// out, next:                              (rows, COLUMNS), OUTPUT; next may be null
extern "C" __global__ __launch_bounds__(THREADS) void fused_add_rmsnorm_post_ffn(
    const void* dense, const void* experts, const void* residual, const void* of_dense, const void* of_experts,
    const void* weight, const void* scalar, const void* of_next, float eps, void* out, void* next) {
    griddepcontrol_launch_dependents();
    const Eight w_dense = load_row8(of_dense, 0), w_experts = load_row8(of_experts, 0), w = load_row8(weight, 0);
    const Eight w_next = load_row8(of_next, 0);
    const float factor = load_input(scalar, 0);
    griddepcontrol_wait();  // the previous kernel writes the rows
    const i64 row = blockIdx.x;
    const Eight a = load_row8(dense, row), b = load_row8(experts, row), r = load_row8(residual, row);
    Eight y = a;
    if (experts) {
        const float2 inverse = inverse_sizes(a, b, eps, 0);
        y = sum_of(normed(a, inverse.x, w_dense, of_dense), normed(b, inverse.y, w_experts, of_experts));
    }
    Eight total = sum_of(r, normed(y, inverse_size(y, eps, 1), w, weight));
#pragma unroll
    for (int i = 0; i < 8; i++) total.v[i] = rounded(total.v[i] * factor);
    store_row8(out, row, total);
    if (next) store_row8(next, row, normed(total, inverse_size(total, eps, 2), w_next, of_next));
}
