// Attention of one new token per sequence over a dense cache, divided into splits along the cache (split-KV).
//
// Layout: a CTA takes the slots of one split, for one key/value head and GROUP of its query heads. Each warp takes
// every WARPS-th run of AHEAD slots. combine_decode_splits adds the splits.
//
// Macros:
//   INPUT, OUTPUT  the dtype of queries, cache, mask and results, equal, of 16 bits
//   SIZE           values of a head, a multiple of 64, at most 512; bounds the registers of a thread
//   GROUP          query heads of a CTA: 1, 2 or 4
//   THREADS        of a CTA

#include "common/reduce.cuh"
#include "common/types.cuh"

constexpr int WARPS = THREADS / 32, EACH = SIZE / 32;
constexpr int AHEAD = SIZE >= 512 ? 2 : 4;  // slots that are loaded at once; bounds registers; not measured
// Values that are loaded at once, at most 16 bytes. Lane l holds values l * WIDE, ..., then those 32 * WIDE further.
constexpr int WIDE = EACH < 8 ? EACH : 8;

struct Row {
    float v[EACH];
};

__device__ __forceinline__ int value_index(int j, int lane) { return j / WIDE * 32 * WIDE + lane * WIDE + j % WIDE; }

__device__ __forceinline__ void load_row(Row& row, const u16* x, int lane) {
#pragma unroll
    for (int j = 0; j < EACH; j += WIDE) {
        __align__(16) u16 part[WIDE];
        const u16* at = x + value_index(j, lane);
        if constexpr (WIDE == 8) *(uint4*)part = *(const uint4*)at;
        if constexpr (WIDE == 4) *(uint2*)part = *(const uint2*)at;
        if constexpr (WIDE == 2) *(u32*)part = *(const u32*)at;
#pragma unroll
        for (int i = 0; i < WIDE; i++) row.v[j + i] = load_input(part, i);
    }
}

// query:         (rows, heads, SIZE), INPUT
// keys, values:  (rows, key_heads, slots, SIZE), INPUT; the first `length` slots are read
// mask:          (rows, length), INPUT, added to scores; or null
// splits:        float32 (rows, heads, number of splits, SIZE): sums of values, weighted by exp(score - maximum)
// sizes:         float32 (rows, heads, number of splits, 2): the maximum of the scores and the sum of the weights
// grid:          (splits, heads / GROUP, rows)
extern "C" __global__ __launch_bounds__(THREADS) void decode_attention(const u16* query, const u16* keys,
                                                                       const u16* values, i64 key_heads, i64 slots,
                                                                       i64 length, const void* mask, float scaling,
                                                                       float* splits, float* sizes) {
    griddepcontrol_launch_dependents();
    __shared__ float warp_max[WARPS][GROUP], warp_sum[WARPS][GROUP];
    __shared__ float row_of[WARPS][SIZE];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const i64 row = blockIdx.z, heads = (i64)gridDim.y * GROUP, first_head = (i64)blockIdx.y * GROUP;
    const i64 key_head = first_head / (heads / key_heads);
    const u16* k = keys + (row * key_heads + key_head) * slots * SIZE;
    const u16* v = values + (row * key_heads + key_head) * slots * SIZE;
    const i64 per_cta = (length + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_cta;
    const i64 end = begin + per_cta < length ? begin + per_cta : length;
    griddepcontrol_wait();  // the previous kernel writes queries and the new slot of the cache
    Row q[GROUP], sums[GROUP] = {};
    float row_max[GROUP], sum[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        load_row(q[g], query + (row * heads + first_head + g) * SIZE, lane);
#pragma unroll
        for (int j = 0; j < EACH; j++) q[g].v[j] *= scaling;
        row_max[g] = LOWEST, sum[g] = 0.0f;
    }
    for (i64 at = begin + warp * AHEAD; at < end; at += WARPS * AHEAD) {
        Row some[AHEAD];
        float score[AHEAD][GROUP];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) load_row(some[a], k + (at + a < end ? at + a : at) * SIZE, lane);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const float added = at + a < end ? (mask ? load_input(mask, row * length + at + a) : 0.0f) : 2 * LOWEST;
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float dot = 0.0f;
#pragma unroll
                for (int j = 0; j < EACH; j++) dot += q[g].v[j] * some[a].v[j];
                dot = warp_reduce_sum(dot);
                score[a][g] = fmaxf(dot + added, 2 * LOWEST);
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) load_row(some[a], v + (at + a < end ? at + a : at) * SIZE, lane);
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float new_max = row_max[g];
#pragma unroll
            for (int a = 0; a < AHEAD; a++) new_max = fmaxf(new_max, score[a][g]);
            const float rescale = __expf(row_max[g] - new_max);
            row_max[g] = new_max, sum[g] *= rescale;
#pragma unroll
            for (int j = 0; j < EACH; j++) sums[g].v[j] *= rescale;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const float p = __expf(score[a][g] - new_max);
                sum[g] += p;
#pragma unroll
                for (int j = 0; j < EACH; j++) sums[g].v[j] += p * some[a].v[j];
            }
        }
    }
    if (lane == 0)
        for (int g = 0; g < GROUP; g++) warp_max[warp][g] = row_max[g], warp_sum[warp][g] = sum[g];
    const i64 head = row * heads + first_head;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        __syncthreads();  // every warp's maxima and sums are written, and the previous head has been read
        float new_max = LOWEST;
        for (int w = 0; w < WARPS; w++) new_max = fmaxf(new_max, warp_max[w][g]);
        const float rescale = __expf(row_max[g] - new_max);
#pragma unroll
        for (int j = 0; j < EACH; j++) row_of[warp][value_index(j, lane)] = sums[g].v[j] * rescale;
        __syncthreads();  // every warp's row is written
        const i64 part = (head + g) * gridDim.x + blockIdx.x;
        for (int i = threadIdx.x; i < SIZE; i += THREADS) {
            float all = 0.0f;
            for (int w = 0; w < WARPS; w++) all += row_of[w][i];
            splits[part * SIZE + i] = all;
        }
        if (threadIdx.x == 0) {
            float all = 0.0f;
            for (int w = 0; w < WARPS; w++) all += warp_sum[w][g] * __expf(warp_max[w][g] - new_max);
            sizes[part * 2] = new_max, sizes[part * 2 + 1] = all;
        }
    }
}

// Adds the splits of a head. A CTA takes a head, a thread four of its values; it has at least 32 threads.
//
// splits, sizes:  as above
// count:          splits per head, at most 64
// y:              (rows, heads, SIZE), OUTPUT
extern "C" __global__ void combine_decode_splits(const float* splits, const float* sizes, i64 count, void* y) {
    griddepcontrol_launch_dependents();
    __shared__ float fractions[64];
    const i64 head = blockIdx.x;
    griddepcontrol_wait();  // the previous kernel writes the splits
    if (threadIdx.x < 32) {
        float row_max[2], sum[2], new_max = LOWEST, all = 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int p = j * 32 + threadIdx.x;
            row_max[j] = p < count ? sizes[(head * count + p) * 2] : LOWEST;
            sum[j] = p < count ? sizes[(head * count + p) * 2 + 1] : 0.0f;
            new_max = fmaxf(new_max, row_max[j]);
        }
        new_max = warp_reduce_max(new_max);
#pragma unroll
        for (int j = 0; j < 2; j++) all += sum[j] * __expf(row_max[j] - new_max);
        all = warp_reduce_sum(all);
#pragma unroll
        for (int j = 0; j < 2; j++) fractions[j * 32 + threadIdx.x] = __expf(row_max[j] - new_max) / all;
    }
    __syncthreads();  // the fractions of the splits are written
    for (int i = threadIdx.x * 4; i < SIZE; i += blockDim.x * 4) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8  // so many loads run at once; not measured
        for (int p = 0; p < count; p++) {
            const float4 v = *(const float4*)(splits + (head * count + p) * SIZE + i);
            const float fraction = fractions[p];
            sum.x += fraction * v.x, sum.y += fraction * v.y, sum.z += fraction * v.z, sum.w += fraction * v.w;
        }
        store(y, head * SIZE + i, sum.x), store(y, head * SIZE + i + 1, sum.y);
        store(y, head * SIZE + i + 2, sum.z), store(y, head * SIZE + i + 3, sum.w);
    }
}
