// One token times its experts, in bf16: linear/gemv.cu fed bf16 instead of codes, as its peer in benchmarks.
//
// Loop order: a thread keeps the activations of its columns and walks through rows, with AHEAD rows being loaded. A CTA
// takes TEAMS rows at a time, with one barrier per BATCH of them. The two launches overlap, as there. What only codes
// need is left out: table, rotation, scales. The second launch loads its expert ids and first rows before the first
// one ends, which the kernels for codes do not do. Products and sums are float32. The columns of a thread are LANE / 8
// runs of eight; the runs of neighbouring threads are adjacent. Types come from common/types.cuh, gates from
// common/hadamard.cuh.
//
// Macros, in addition to theirs: COLUMNS; LANE, columns per thread; AHEAD, rows being loaded; BATCH; TEAMS; THREADS;
// CTAS per multiprocessor; TOP_K, experts per token; EXPERTS and NAME as in linear/gemv.cu.

#include "common/hadamard.cuh"
#include "common/reduce.cuh"

constexpr int RUNS = LANE / 8, PER_EXPERT = COLUMNS / LANE, SLICES = PER_EXPERT * (EXPERTS == 2 ? TOP_K : 1);
constexpr int WARPS = THREADS / 32;

struct Piece {
    uint4 run[RUNS];
};

__device__ __forceinline__ float of_two(u32 pair, const float* x) {
    return __uint_as_float(pair << 16) * x[0] + __uint_as_float(pair & 0xffff0000u) * x[1];
}

__device__ __forceinline__ float of_eight(const uint4& w, const float* x) {
    return of_two(w.x, x) + of_two(w.y, x + 2) + of_two(w.z, x + 4) + of_two(w.w, x + 6);
}

// x: with EXPERTS 1 a row of COLUMNS a token, with EXPERTS 2 TOP_K rows, of gates and values; weights bf16 (experts,
// rows, COLUMNS); topk_ids, topk_weights (tokens, TOP_K); y with EXPERTS 1 (tokens, TOP_K, rows), else (tokens, rows).
extern "C" __global__ __launch_bounds__(THREADS, CTAS) void NAME(const void* x, const u16* weights, i64 rows,
                                                                 const i64* topk_ids, const float* topk_weights,
                                                                 void* y) {
    __shared__ float parts[2][BATCH][THREADS];
    const int t = threadIdx.x, warp = t / 32, lane = t % 32, team = t / SLICES, slice = t % SLICES;
    const i64 token = EXPERTS == 1 ? blockIdx.z : blockIdx.y, slot = EXPERTS == 1 ? blockIdx.y : slice / PER_EXPERT;
    if (EXPERTS == 1) griddepcontrol_wait();  // x and the expert ids are complete
    griddepcontrol_launch_dependents();
    const int start = blockIdx.x * TEAMS, stride = gridDim.x * TEAMS, end = (int)rows, within = slice % PER_EXPERT;
    const i64 first_row = topk_ids[token * TOP_K + slot] * rows + start + team % TEAMS;
    const uint4* at = (const uint4*)(weights + first_row * COLUMNS) + within;
    Piece ring[AHEAD];
    auto fetch = [&](Piece& p, int row) {
        if (row < end) {
#pragma unroll
            for (int r = 0; r < RUNS; r++) p.run[r] = __ldcs(at + r * PER_EXPERT);
        }
        at += (i64)stride * COLUMNS / 8;
    };
#pragma unroll
    for (int d = 0; d < AHEAD; d++) fetch(ring[d], start + team % TEAMS + d * stride);
    const float weight = EXPERTS == 2 ? topk_weights[token * TOP_K + slot] : 1.0f;
    if (EXPERTS == 2) griddepcontrol_wait();  // the first launch writes x
    float values[LANE];
#pragma unroll
    for (int r = 0; r < RUNS; r++)
        load_columns8(values + 8 * r, x, EXPERTS == 2 ? token * TOP_K + slot : token, COLUMNS,
                      (r * PER_EXPERT + within) * 8);
    int buffer = 0, turn = 0;
    for (int group = start; group < end; group += BATCH * stride, buffer ^= 1) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int row = group + i * stride;
            if (row < end) {
                float sum = 0.0f;
#pragma unroll
                for (int r = 0; r < RUNS; r++) sum += of_eight(ring[i % AHEAD].run[r], values + 8 * r);
                parts[buffer][i][t] = sum * weight;
                fetch(ring[i % AHEAD], row + team % TEAMS + AHEAD * stride);
            }
        }
        __syncthreads();  // the partial sums of this batch are in parts[buffer]; the next batch writes the other buffer
        for (int four_rows = (warp + turn) % WARPS; four_rows * 4 < BATCH * TEAMS; four_rows += WARPS) {
            const int r = four_rows * 4 + lane / 8, row = group + r / TEAMS * stride + r % TEAMS;
            float sum = 0.0f;
            if (r < BATCH * TEAMS && row < end)
                for (int s = lane % 8; s < SLICES; s += 8) sum += parts[buffer][r / TEAMS][r % TEAMS * SLICES + s];
            sum = warp_reduce_sum<8>(sum);
            if (r < BATCH * TEAMS && row < end && lane % 8 == 0)
                store(y, (EXPERTS == 1 ? token * TOP_K + slot : token) * rows + row, sum);
        }
        turn += WARPS - (BATCH * TEAMS + 3) / 4 % WARPS;
    }
}
