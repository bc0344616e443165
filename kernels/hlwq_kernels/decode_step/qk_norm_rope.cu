// Heads of one new token a sequence: queries, keys and values are normed, queries and keys turned by their position,
// keys and values put into the cache. A warp takes a head; lane l holds values l, l + 32, ... of it.
//
// Rounded wherever torch would store, see decode_step/norms.cu.
//
// Macros: SIZE of a head, a multiple of 64; QUERIES, KEYS, heads of each kind; THREADS, 32; INPUT and OUTPUT, alike.

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int EACH = SIZE / 32;

// queries (rows, QUERIES, SIZE), keys and values (rows, KEYS, SIZE), with so many elements from row to row; norms'
// weights (SIZE,), none for values; cosines, sines (rows, SIZE); slot (1,); out (rows, QUERIES, SIZE); caches (rows,
// KEYS, slots, SIZE).
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
    griddepcontrol_wait();  // heads come from the kernel before; weights, read above, do not
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
    const i64 cached = ((row * KEYS + own) * slots + *slot) * SIZE;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int i = j * 32 + lane;
        if (value) {
            store(value_cache, cached + i, x[j]);
            continue;
        }
        const float other = j < EACH / 2 ? -x[j + EACH / 2] : x[j - EACH / 2];
        const float cosine = load_input(cosines, row * SIZE + i), sine = load_input(sines, row * SIZE + i);
        const float turned = rounded(x[j] * cosine) + rounded(other * sine);
        if (query)
            store(out, (row * QUERIES + own) * SIZE + i, turned);
        else
            store(key_cache, cached + i, turned);
    }
}
