// Rotates rows of activations block by block and rounds them to fp16, each row under a power of two of its own. Output
// is what gemm_small_m reads.
//
// Layout: a CTA takes a row, a warp a block; lane l holds values l, l + 32, ... of it.
//
// Macros: those of common/hadamard.cuh. A CTA has at most 32 warps.

#include "common/hadamard.cuh"

// x:      (rows, columns), INPUT; (rows, 2 * columns) with GATE
// blocks: of a row; columns beyond the last are zeros
// out:    fp16 (rows, blocks * N)
// units:  float32 (rows,), the factor of each row of out
extern "C" __global__ void rotate_rows(const void* x, i64 columns, i64 blocks, u16* out, float* units) {
    griddepcontrol_launch_dependents();  // no wait: this kernel is not launched to overlap, so x is complete
    __shared__ float largest_of[32];
    const i64 row = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    float v[VALUES], largest = 0.0f;
    for (i64 block = warp; block < blocks; block += warps) {
        load_block(v, x, row, columns, block, lane);
        rotate_block(v, lane);
        largest = fmaxf(largest, largest_in_warp(v));
    }
    largest = block_reduce(largest, largest, largest_of, warps, [](float a, float b) { return fmaxf(a, b); });
    // Scale the row's largest value to [2^13, 2^14): far from overflow, and a 2^27 times smaller value is still normal.
    const int exponent = exponent_of(largest) - 13;
    if (threadIdx.x == 0) units[row] = power_of_two(exponent) * ROOT;
    for (i64 block = warp; block < blocks; block += warps) {
        load_block(v, x, row, columns, block, lane);
        rotate_block(v, lane);
#pragma unroll
        for (int j = 0; j < VALUES; j++)
            out[(row * blocks + block) * N + j * 32 + lane] = (u16)float_to_half(v[j] * power_of_two(-exponent));
    }
}
