// Reductions over the lanes of a warp; every lane gets the result. All lanes of the warp must call them.
//
// Float sums depend on the order of additions, so there are two: from the farthest lane inward, and `_up`, from
// neighbours outward. A kernel keeps its order, because its results are compared with those of a reference.

#include "common/ptx.cuh"

// Over WIDTH neighbouring lanes, a power of two.
template <int WIDTH = 32>
__device__ __forceinline__ float warp_reduce_sum(float x) {
#pragma unroll
    for (int h = WIDTH / 2; h > 0; h /= 2) x += __shfl_xor_sync(0xffffffff, x, h);
    return x;
}

template <int WIDTH = 32>
__device__ __forceinline__ float warp_reduce_max(float x) {
#pragma unroll
    for (int h = WIDTH / 2; h > 0; h /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, h));
    return x;
}

// Over lanes whose numbers differ in the bits from FIRST up to END, exclusive.
template <int FIRST = 1, int END = 32>
__device__ __forceinline__ float warp_reduce_sum_up(float x) {
#pragma unroll
    for (int h = FIRST; h < END; h *= 2) x += __shfl_xor_sync(0xffffffff, x, h);
    return x;
}

template <int FIRST = 1, int END = 32>
__device__ __forceinline__ float warp_reduce_max_up(float x) {
#pragma unroll
    for (int h = FIRST; h < END; h *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, h));
    return x;
}
