// Codes one block of every row with error feedback. encode/feedback_reference.py defines it.
//
// Layout: a CTA has rows of one expert, a warp takes ROWS of them at a time, and each lane codes these rows' block with
// a scale of its own. The block of the factor lies in shared memory and is read by all lanes at once. The lane of least
// loss writes its codes and errors.
//
// Macros, in addition to those of encode/encode_block.cuh (encode/feedback_cuda.py computes them):
//   SEARCH             whether scales are searched; SEARCH_LOW: the first, in steps from the root mean square
//   STEPS              number of scales of the search, without the outermost and zero
//   HALF_STEP          see codes/tables.py
//   ROWS               rows that a warp holds; bounds the registers of a thread
//   ROWS_PER_CTA       rows of a CTA
//   THREADS, RESIDENT  threads of a CTA, CTAs per multiprocessor; they bound the registers of a thread

#include "common/reduce.cuh"
#include "encode/encode_block.cuh"

#define WARPS (THREADS / 32)
#define CODES (1 << BITS)

struct FeedbackTables {
    const float *upper, *cost, *steps;
    float* warp;  // this warp's rows: left and original, N each
    u32 pairs, centroids;
};

// table: inverse_outermost, 256 steps and an infinity, centroids, pairs; see encode/feedback_cuda.py.
__device__ inline FeedbackTables load_tables(float* to, const u32* table, const float* upper, i64 padded,
                                             const float* cost) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    FeedbackTables t;
    float* rows = to + N * N;
    float* costs = rows + WARPS * ROWS * 2 * N;
    float* pairs = costs + N;  // 8 bytes aligned
    float* steps = pairs + 2 * (SPAN + 1) * PAIR_COPIES;
    for (int i = threadIdx.x; i < N * N; i += THREADS) to[i] = upper[i / N * padded + i % N];
    for (int i = threadIdx.x; i < N; i += THREADS) costs[i] = cost[i];
    replicate((u32*)steps, table + 1, 257 + CODES, 1, 1);
    replicate((u32*)pairs, table + 1 + 257 + CODES, SPAN + 1, 2, PAIR_COPIES);
    __syncthreads();  // the tables are there
    t.upper = to;
    t.cost = costs;
    t.steps = steps;
    t.warp = rows + warp * ROWS * 2 * N;
    t.pairs = shared_address(pairs) + lane % PAIR_COPIES * 8 - MAGIC_BITS * (8u * PAIR_COPIES);
    t.centroids = shared_address(steps + 257);
    return t;
}

// The scale index that this lane tries; 0 drops the block.
__device__ inline int candidate(float energy, float outermost, float base, int lane, const float* steps) {
    const float rms = __fsqrt_rn(energy * (1.0f / N));
    if (base == 0.0f || lane > (SEARCH ? STEPS : 0)) return 0;
    if (!SEARCH) return max(step_below(steps, __fdiv_rn(rms * HALF_STEP, base)), 1);
    const int first = step_below(steps, __fdiv_rn(rms, base)) + SEARCH_LOW;
    const int k = lane == STEPS ? step_below(steps, __fdiv_rn(outermost, base)) : first + lane;
    return min(max(k, 1), 255);
}

// A row's block as one lane codes it.
struct Trial {
    float z[N];  // what is left to code; errors where it is coded
    u32 words[WORDS];
    int k;
    float inverse, step;  // from z to coarse cells and back
    float loss, square;
};

// Codes column J with the rest of its group of 8, then all later columns.
template <int G>
__device__ __forceinline__ void code_groups(Trial (&rows)[ROWS], const FeedbackTables& t) {
    u32 c[ROWS][8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int j = 8 * G + i;
        float e[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            Trial& trial = rows[r];
            const float x = trial.z[j], u = x * trial.inverse;
            c[r][i] = code_of(x, u, trial.inverse * (1.0f / SPAN), t.pairs);
            const float q = ld_shared_f32(c[r][i] * 4 + t.centroids) * trial.step;
            const float d = t.warp[r * 2 * N + N + j] - q;
            e[r] = x - q;
            trial.z[j] = e[r];
            trial.square += d * d;
            trial.loss += t.cost[j] * (e[r] * e[r]);
        }
#pragma unroll
        for (int quad = (j + 1) / 4; quad < N / 4; quad++) {
            const float4 u = ((const float4*)t.upper)[j * (N / 4) + quad];
            const float part[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
            for (int p = 0; p < 4; p++)
                if (4 * quad + p > j)
#pragma unroll
                    for (int r = 0; r < ROWS; r++) rows[r].z[4 * quad + p] -= e[r] * part[p];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) pack(rows[r].words, G, c[r]);
    if constexpr (G + 1 < N / 8) code_groups<G + 1>(rows, t);
}

// The first lane of least loss.
__device__ inline int best_lane(float loss, int lane) {
#pragma unroll
    for (int h = 16; h > 0; h /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, loss, h);
        const int from = __shfl_xor_sync(0xffffffffu, lane, h);
        if (other < loss || (other == loss && from < lane)) {
            loss = other;
            lane = from;
        }
    }
    return lane;
}

// original:  float32 (experts, rows, padded), the rotated weights
// left:      likewise, what feedback has left of them
// bases:     float32 (experts, rows)
// upper:     float32 (experts, padded, padded); cost: float32 (experts, padded)
// first:     column where the block begins
// table:     see load_tables
// codes:     u8 (experts, rows, row_bytes)
// scales:    u8 (experts, rows, padded / N)
// errors:    float32 (experts, rows, panel), of which column `at` begins the block's
// squares:   float64 (experts, rows), to which squared errors are added; losses: likewise
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    feedback(const float* original, const float* left, const float* bases, const float* upper, const float* cost,
             i64 all_rows, i64 padded, i64 first, const u32* table, u8* codes, i64 row_bytes, u8* scales, float* errors,
             i64 panel, i64 at, double* squares, double* losses) {
    extern __shared__ uint4 arena[];
    const int rows = (int)all_rows, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 expert = blockIdx.y, row_offset = expert * all_rows;
    const FeedbackTables t = load_tables((float*)arena, table, upper + expert * padded * padded + first * (padded + 1),
                                         padded, cost + expert * padded + first);
    const float inverse_outermost = __uint_as_float(table[0]);
    const int start = blockIdx.x * ROWS_PER_CTA, end = min(start + ROWS_PER_CTA, rows);

    for (int row = start + warp * ROWS; row < end; row += WARPS * ROWS) {
        Trial trials[ROWS];
        __syncwarp();  // every lane has read the rows before
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const i64 mine = row_offset + min(row + r, end - 1);
            float energy = 0.0f, largest = 0.0f;
#pragma unroll
            for (int i = lane; i < N; i += 32) {
                const float x = left[mine * padded + first + i];
                t.warp[r * 2 * N + i] = x;
                t.warp[r * 2 * N + N + i] = original[mine * padded + first + i];
                energy += x * x;
                largest = fmaxf(largest, fabsf(x));
            }
            energy = warp_reduce_sum(energy);
            largest = warp_reduce_max(largest);
            const float base = bases[mine];
            const int k = candidate(energy, largest * inverse_outermost, base, lane, t.steps);
            const float s = base * t.steps[k];
            trials[r].k = k;
            trials[r].inverse = s > 0.0f ? __fdiv_rn(COARSE, s) : 0.0f;
            trials[r].step = s * (1.0f / COARSE);
            trials[r].loss = trials[r].square = 0.0f;
        }
        __syncwarp();  // the rows are there
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < N; i++) trials[r].z[i] = t.warp[r * 2 * N + i];
        code_groups<0>(trials, t);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            Trial& trial = trials[r];
            const int winner = best_lane(trial.loss, lane);
            if (lane != winner || row + r >= end) continue;
            const i64 mine = row_offset + row + r;
#pragma unroll
            for (int i = 0; i < WORDS; i++) trial.words[i] = trial.k ? trial.words[i] : 0;
            store_codes(codes + mine * row_bytes, padded / N, first / N, trial.words);
            scales[mine * (padded / N) + first / N] = (u8)trial.k;
            float4* to = (float4*)(errors + mine * panel + at);
#pragma unroll
            for (int i = 0; i < N; i += 4) to[i / 4] = {trial.z[i], trial.z[i + 1], trial.z[i + 2], trial.z[i + 3]};
            squares[mine] += trial.square;
            losses[mine] += trial.loss;
        }
    }
}
