// Reductions over the lanes of a warp, and over the warps of a CTA. Every lane or thread gets the result, and all of
// them must call the function.
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

// Both sums in one loop: two calls with a float each compile to other machine code.
__device__ __forceinline__ float2 warp_reduce_sum(float2 x) {
#pragma unroll
    for (int h = 16; h > 0; h /= 2) {
        x.x += __shfl_xor_sync(0xffffffff, x.x, h);
        x.y += __shfl_xor_sync(0xffffffff, x.y, h);
    }
    return x;
}

// Of bits of magnitudes: NaN is more than infinity, and infinity more than every number.
__device__ __forceinline__ u32 warp_reduce_max(u32 x) {
#pragma unroll
    for (int h = 16; h > 0; h /= 2) x = max(x, __shfl_xor_sync(0xffffffff, x, h));
    return x;
}

// The sum of COUNT values of each lane, a power of two. Folds the upper half onto the lower, in the lane and then in
// the warp: the tree of the references. Destroys `part`.
template <int COUNT>
__device__ __forceinline__ float warp_reduce_tree(float (&part)[COUNT]) {
#pragma unroll
    for (int h = COUNT / 2; h > 0; h /= 2)
#pragma unroll
        for (int j = 0; j < h; j++) part[j] = part[j] + part[j + h];
    return warp_reduce_sum(part[0]);
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

// Combines `start` with the results of all warps, in order. `x` is the result of the caller's warp. `of_warp`, in
// shared memory, has an entry for each warp; before it is written again there must be another barrier.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T x, T start, T* of_warp, int warps, const Combine& combine) {
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();  // every warp's result is written
    for (int w = 0; w < warps; w++) start = combine(start, of_warp[w]);
    return start;
}
