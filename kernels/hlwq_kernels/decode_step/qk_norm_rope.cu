// The heads of one new token per sequence: queries, keys and values are normed, queries and keys rotated by their
// position (RoPE), keys and values written to a cache, or to tensors of their own.
//
// Layout: a warp takes a head; lane l holds values l, l + 32, ... of it. Values are rounded wherever torch would store
// them (decode_step/norms.cu).
//
// Macros:
//   SIZE           values of a head, a multiple of 64
//   QUERIES, KEYS  heads of each kind; there are as many value heads as key heads
//   THREADS        32
//   TABLE          0: cosines and sines are given for each row. 1: they are looked up by the position of the row
//   INPUT, OUTPUT  the dtype of all tensors, equal

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int EACH = SIZE / 32;

// queries:                   (rows, QUERIES, SIZE), INPUT, rows query_stride elements apart
// keys, values:              (rows, KEYS, SIZE), INPUT, rows key_stride and value_stride elements apart
// query_weight, key_weight:  (SIZE,), INPUT; the norm of values has no weight
// cosines, sines:            (rows, SIZE), INPUT. With TABLE, cosines is (positions, SIZE): the cosines of SIZE / 2
//                            angles, then their sines; sines is null
// slot:                      (1,), where the token goes in the cache. With TABLE (rows,), the positions
// out:                       (rows, QUERIES, SIZE), OUTPUT
// key_cache, value_cache:    (rows, KEYS, slots, SIZE), OUTPUT; one slot with TABLE
// grid:                      (QUERIES + 2 * KEYS, rows)
extern "C" __global__ __launch_bounds__(THREADS) void qk_norm_rope_append(
    const void* queries, i64 query_stride, const void* keys, i64 key_stride, const void* values, i64 value_stride,
    const void* query_weight, const void* key_weight, const void* cosines, const void* sines, const i64* slot,
    float eps, void* out, void* key_cache, void* value_cache, i64 slots) {
    griddepcontrol_launch_dependents();
    const int head = blockIdx.x, lane = threadIdx.x;
    const i64 row = blockIdx.y;
    const bool query = head < QUERIES, value = head >= QUERIES + KEYS;
    const int own = query ? head : value ? head - QUERIES - KEYS : head - QUERIES;
    const void* weight = query ? query_weight : key_weight;
    float w[EACH], x[EACH], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < EACH; j++) w[j] = value ? 1.0f : load_input(weight, j * 32 + lane);
    griddepcontrol_wait();  // the previous kernel writes the heads; it does not write the weights, read above
    const void* from = query ? queries : value ? values : keys;
    const i64 at = row * (query ? query_stride : value ? value_stride : key_stride) + own * SIZE;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        x[j] = load_input(from, at + j * 32 + lane);
        squares += x[j] * x[j];
    }
    squares = warp_reduce_sum(squares);
    const float inverse = 1.0f / sqrtf(squares / SIZE + eps);
#pragma unroll
    for (int j = 0; j < EACH; j++) x[j] = rounded(x[j] * inverse * w[j]);
#if TABLE
    const i64 cached = (row * KEYS + own) * SIZE, angles = slot[row] * SIZE;
#else
    const i64 cached = ((row * KEYS + own) * slots + *slot) * SIZE;
#endif
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int i = j * 32 + lane;
        if (value) {
            store(value_cache, cached + i, x[j]);
            continue;
        }
        const float other = j < EACH / 2 ? -x[j + EACH / 2] : x[j - EACH / 2];
#if TABLE
        const i64 angle = angles + j % (EACH / 2) * 32 + lane;
        const float cosine = load_input(cosines, angle), sine = load_input(cosines, angle + SIZE / 2);
#else
        const float cosine = load_input(cosines, row * SIZE + i), sine = load_input(sines, row * SIZE + i);
#endif
        const float rotated = rounded(x[j] * cosine) + rounded(other * sine);
        if (query)
            store(out, (row * QUERIES + own) * SIZE + i, rotated);
        else
            store(key_cache, cached + i, rotated);
    }
}
