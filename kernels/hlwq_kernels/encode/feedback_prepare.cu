// Normalizes and rotates rows of weights for the encoder with error feedback. encode/feedback_reference.py defines it.
//
// Layout: a warp holds a row, block after block; see common/hadamard.cuh.
//
// Macros, in addition to those of common/hadamard.cuh (encode/feedback_cuda.py computes them):
//   LARGEST, SMALLEST, HEADROOM, ERROR_UNIT  see codes/tables.py and encode/feedback_reference.py

#include "common/hadamard.cuh"

// weight:    (rows, columns), INPUT
// z:         float32 (rows, padded); rows that are not coded become zeros
// bases:     float32 (rows,), of the normalized rows; 0 where the row is not coded
// units:     float32 (rows,): normalized rows times these are the rows
// energies:  float64 (rows,); NaN where a weight is not finite or too large
extern "C" __global__ void feedback_prepare(const void* weight, i64 rows, i64 columns, i64 padded,
                                            float inverse_outermost, float* z, float* bases, float* units,
                                            double* energies) {
    const int lane = threadIdx.x % 32;
    const i64 row = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    u32 largest = 0;  // bits of a magnitude, so that NaN is more than infinity
    for (i64 i = lane; i < columns; i += 32)
        largest = max(largest, __float_as_uint(load_input(weight, row * columns + i)) & 0x7fffffffu);
    largest = warp_reduce_max(largest);
    const float size = __uint_as_float(largest);
    const bool finite = size < LARGEST, coded = finite && size >= SMALLEST;
    const int exponent = coded ? (int)(largest >> 23) - 127 : 0;
    const float down = power_of_two(-exponent);
    float base = 0.0f;
    u64 energy = 0;
    for (i64 block = 0; block < padded / N; block++) {
        float v[VALUES];
        load_block(v, weight, row, columns, block, lane);
        for (int j = 0; j < VALUES; j++) v[j] = coded ? v[j] * down : 0.0f;
        rotate_block(v, lane);
        float square[VALUES];
#pragma unroll
        for (int j = 0; j < VALUES; j++) {
            v[j] *= ROOT;
            square[j] = v[j] * v[j];
            z[row * padded + block * N + j * 32 + lane] = v[j];
        }
        const float sum = warp_reduce_tree(square);
        base = fmaxf(base, fmaxf(__fsqrt_rn(sum * (1.0f / N)) * HEADROOM, largest_in_warp(v) * inverse_outermost));
        energy += (u64)(sum * ERROR_UNIT);
    }
    if (lane) return;
    const double up = power_of_two(exponent);
    bases[row] = __uint_as_float((__float_as_uint(base) + 0xFFFFu) & 0xFFFF0000u);  // up to bfloat16
    units[row] = (float)up;
    energies[row] = finite ? (double)energy * (up * up / ERROR_UNIT) : (double)__uint_as_float(0x7fc00000u);
}
