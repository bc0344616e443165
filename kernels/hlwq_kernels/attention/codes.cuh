// The coded tokens of a split, and the sum over the warps of a CTA: see attention/attention.cu.

#include "attention/worker.cuh"
#include "common/reduce.cuh"

// Attention over the coded tokens from `begin` to `end`. Warps exchange sums in shared memory, 8 queries at a time.
__device__ __forceinline__ void read_codes(u8* shared, const Cache& c, int begin, int end, int rows, float* sums,
                                           float* row_max, float* row_sum, i64 stride) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, member = warp % TEAM, team = warp / TEAM;
    const float* steps = (const float*)(shared + STEPS_AT);
    float* sizes = (float*)(shared + SIZES_AT);
    uint4* queries = (uint4*)(shared + QUERIES_AT);
    const Exchange exchange = {(float*)(shared + RAISED_AT) + team * TEAM,
                               (float*)(shared + REFERENCES_AT) + team * TEAM * ROWS,
                               (uint2*)(shared + PROBS_AT) + team * TEAM * TILES * 32, 1 + team};
    // The shuffle hides the value's range from the compiler, which would otherwise mask the bits for every pair.
    const u32 spread = __shfl_sync(0xffffffff, lane, lane);
    const LutPair tables = luts_in(shared);
    const u32 k_copy = shared_address(tables.keys) + spread % COPIES * 4;
    const u32 v_copy = shared_address(tables.values) + spread % V_COPIES * 4;
    const int slice = member * PART + lane / 4 * SLICE, first = begin + team * TILE;
    const bool v_mine = slice < V_STORED;
    const i64 own = first + 16 * member + lane / 4, theirs = first + lane % 4 * 2;
    Worker w = {{c.k_codes + own * Reader<BITS, LANE, K_STORED>::ROW, lane % 4 * LANE},
                {c.v_codes + theirs * Reader<V_BITS, SLICE, V_STORED>::ROW, v_mine ? slice : 0}};
    w.lane = lane, w.member = member, w.v_mine = v_mine;
    int start = first;  // the first token of the team's tile
    if (start < end) {
#pragma unroll
        for (int i = 0; i < K_AHEAD; i++) w.load_keys(i, i, c.capacity - start - 16 * member);
#pragma unroll
        for (int i = 0; i < V_AHEAD; i++) w.load_values(i, i, c.capacity - start);
        w.load_scales(c, start + 16 * member + lane / 4);
    }
    rotate_queries((u16*)queries, sizes, c.query, rows);  // while the first codes are being loaded
    __syncthreads();                                      // tables, scale steps and rotated queries are written
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            w.reference[t][h] = LOWEST, w.weight[t][h] = 0.0f;
            w.factor[t][h] = sizes[8 * t + lane % 4 * 2 + h] * c.scaling;
#pragma unroll
            for (int m = 0; m < STEPS; m++) w.sums[m][t][h] = w.sums[m][t][2 + h] = 0.0f;
        }
    u32 q[TILES][LANE / 2];
    if (HELD) load_queries(q, queries, 0);
    for (; start < end; start += TEAMS * TILE) {
        const int next = start + TEAMS * TILE;
        float s[TILES][4] = {};
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            if (!HELD) load_queries(q, queries, i);
#pragma unroll
            for (int r = 0; r < 2; r++) join<LANE>(w.k[i % K_AHEAD][r]);
            score<0>(s, w.k[i % K_AHEAD], q, k_copy);
            if (i + K_AHEAD < CHUNKS) {
                w.load_keys(i % K_AHEAD, i + K_AHEAD, c.capacity - start - 16 * member);
            } else {
                if (i + K_AHEAD == CHUNKS) w.keys.advance(TEAMS * TILE);
                if (next < end) w.load_keys(i % K_AHEAD, i + K_AHEAD - CHUNKS, c.capacity - next - 16 * member);
            }
        }
        u32 probs[TILES][2];
        w.score_to_probs(s, probs, c, steps, exchange);
        if (next < end) w.load_scales(c, next + 16 * member + lane / 4);
        if constexpr (TEAM > 1) {
#pragma unroll
            for (int t = 0; t < TILES; t++)
                exchange.probs[(member * TILES + t) * 32 + lane] = make_uint2(probs[t][0], probs[t][1]);
            // The team's probabilities are written. Every warp has also read `raised`, which the next tile overwrites.
            bar_sync(exchange.barrier, 32 * TEAM);
        }
#pragma unroll
        for (int i = 0; i < TEAM; i++) {
            if constexpr (TEAM > 1)
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    const uint2 its = exchange.probs[(i * TILES + t) * 32 + lane];
                    probs[t][0] = its.x, probs[t][1] = its.y;
                }
            Crossed<V_BITS> pairs[2];
            cross<SLICE>(pairs[0], w.v[i % V_AHEAD][0], w.v[i % V_AHEAD][1]);
            cross<SLICE>(pairs[1], w.v[i % V_AHEAD][2], w.v[i % V_AHEAD][3]);
            gather<0>(w.sums, pairs, probs, v_copy);
            if (i + V_AHEAD < TEAM) {
                w.load_values(i % V_AHEAD, i + V_AHEAD, c.capacity - start);
            } else {
                if (i + V_AHEAD == TEAM) w.values.advance(TEAMS * TILE);
                if (next < end) w.load_values(i % V_AHEAD, i + V_AHEAD - TEAM, c.capacity - next);
            }
        }
    }
    float *references = (float*)(shared + REFERENCES_AT), *row_sums = (float*)(shared + ROW_SUMS_AT);
    __syncthreads();  // no warp reads the tables any more; sums take their place
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float weight = w.weight[t][h];
            weight = warp_reduce_sum_up<4>(weight);
            if (lane < 4) {
                references[warp * ROWS + 8 * t + 2 * lane + h] = w.reference[t][h];
                row_sums[warp * ROWS + 8 * t + 2 * lane + h] = weight;
            }
        }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        float* mine = (float*)shared + (warp * 8 + lane % 4 * 2) * SUMS + lane / 4 * 2;
#pragma unroll
        for (int m = 0; m < STEPS; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {  // dimensions 2 m and 2 m + 1 of the lane's slice
                mine[h * SUMS + m * 16] = w.sums[m][t][h];
                mine[h * SUMS + m * 16 + 1] = w.sums[m][t][2 + h];
            }
        __syncthreads();  // the sums of all warps are written
        const int here = min(8, rows - 8 * t);
        for (int i = threadIdx.x; i < here * V_STORED; i += THREADS) {
            const int r = i / V_STORED, d = i % V_STORED, part = d / PART,
                      at = d % SLICE / 2 * 16 + d % PART / SLICE * 2 + d % 2;
            float top = LOWEST, sum = 0.0f;
#pragma unroll
            for (int k = 0; k < TEAMS; k++) top = fmaxf(top, references[k * TEAM * ROWS + 8 * t + r]);
#pragma unroll
            for (int k = 0; k < TEAMS; k++)
                sum += ex2_approx(references[k * TEAM * ROWS + 8 * t + r] - top) *
                       ((float*)shared)[((k * TEAM + part) * 8 + r) * SUMS + at];
            sums[(8 * t + r) * stride * V_STORED + d] = sum;
            if (d == 0) {
                float weight = 0.0f;
                for (int k = 0; k < WARPS; k++)
                    weight += ex2_approx(references[k * ROWS + 8 * t + r] - top) * row_sums[k * ROWS + 8 * t + r];
                row_max[(8 * t + r) * stride] = top;
                row_sum[(8 * t + r) * stride] = weight;
            }
        }
        __syncthreads();  // every thread has read the sums; the next tile overwrites them
    }
}
