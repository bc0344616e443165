// Products of one token with a coded weight, or of each token with each of its experts. Every code is read once, and
// weights are never written to memory.
//
// Layout: a thread owns 32 neighbouring columns (a slice). It keeps their rotated activations in registers and goes
// through rows, so neighbouring threads read neighbouring bytes of a row.
//
//     CTA = TEAMS teams; a team = SLICES threads = one row at a time
//     row:  | slice 0 | slice 1 | ... |        a thread multiplies a slice, eight lanes add the sums of a row
//
// The CTA rotates the activations while its first codes are being loaded. Pairs of weights come from a table in shared
// memory (common/dequant.cuh). Four products are added in fp16, these sums in float32, and the scale of the block is
// applied to the float32 sum.
//
// Macros, in addition to those of common/dequant.cuh and common/hadamard.cuh:
//   LOG8     1: a scale is a byte, a step below its row's base; 0: a scale is an fp16 norm
//   COLUMNS  columns of W, padded to whole blocks; bounds the activations in shared memory
//   TEAMS    rows that a CTA takes at once
//   THREADS  TEAMS * SLICES, rounded up to warps; at least BATCH * TEAMS
//   CTAS     CTAs per multiprocessor; bounds the registers of a thread
//   EXPERTS  0: one weight; 1: each token times each of its TOP_K experts; 2: the TOP_K rows of a token times their
//            experts, summed with topk_weights
//   TOP_K    experts per token
//   NAME     the kernel's name; profiles show the three kinds apart

#include "common/dequant.cuh"
#include "common/hadamard.cuh"
#include "common/reduce.cuh"

// AHEAD rows of a thread are being loaded while it computes. With 352 threads 2, 4 and 6 rows took 233, 227 and 246 us
// for 262144 x 2816 (one H100, docs/log.md, 2026-11-25, "Products with codes, one token"). BATCH rows are summed per
// barrier. Six instead of four, for experts, were tried only with other changes and taken back (docs/log.md,
// 2026-11-28).
constexpr int PER_EXPERT = COLUMNS / LANE_CODES, SLICES = PER_EXPERT * (EXPERTS == 2 ? TOP_K : 1);
constexpr int ROW_BYTES = COLUMNS / 8 * BITS, BLOCKS = COLUMNS / N, SCALE_BYTES = BLOCKS * (LOG8 ? 1 : 2);
constexpr int X_BLOCKS = SLICES * LANE_CODES / N, AHEAD = 2, BATCH = 4, WARPS = THREADS / 32;

struct RowPiece {
    Planes codes;
    u32 scale, base;
};

template <int P>
__device__ __forceinline__ float four(const Planes& w, const u32* x, u32 table, u32 copy) {
    u32 sum = hmul2(weights<P>(w, table, copy), x[P]);
    sum = hfma2(weights<P + 1>(w, table, copy), x[P + 1], sum);
    sum = hfma2(weights<P + 2>(w, table, copy), x[P + 2], sum);
    sum = hfma2(weights<P + 3>(w, table, copy), x[P + 3], sum);
    return half_to_float((u16)sum) + half_to_float((u16)(sum >> 16));
}

// An id that is not an expert's gives zeros.
//
// x:             (tokens, in_columns), INPUT; (tokens * TOP_K, in_columns) with EXPERTS 2; twice as wide with GATE
// codes:         u8 (experts, rows, ROW_BYTES), experts codes_stride bytes apart
// scales:        u8 or fp16 (experts, rows, BLOCKS), experts scales_stride bytes apart
// base:          bf16 (experts, rows), experts base_stride bytes apart; not read without LOG8
// centroids:     float32 (2^BITS,)
// steps:         float32 (256,), the factor of each scale byte
// bias:          (rows,), OUTPUT, or null
// topk_ids:      (tokens, TOP_K), with EXPERTS 1 and 2
// topk_weights:  (tokens, TOP_K), with EXPERTS 2
// y:             (tokens, rows), OUTPUT; (tokens, TOP_K, rows) with EXPERTS 1
// grid:          x: CTAs along the rows; y: tokens, or TOP_K with EXPERTS 1; z: tokens with EXPERTS 1
extern "C" __global__ __launch_bounds__(THREADS,
                                        CTAS) void NAME(const void* x, i64 in_columns, const u8* codes,
                                                        const u8* scales, const u16* base, const float* centroids,
                                                        const float* steps, const void* bias, i64 rows,
                                                        const i64* topk_ids, const float* topk_weights, i64 experts,
                                                        i64 codes_stride, i64 scales_stride, i64 base_stride, void* y) {
    __shared__ __align__(16) u32 table[ENTRIES * COPIES];
    __shared__ float step_table[256], units[X_BLOCKS];
    __shared__ float sizes[2][BATCH * TEAMS], offsets[2][BATCH * TEAMS];
    __shared__ __align__(16) union {
        u16 x[SLICES * LANE_CODES];
        float parts[2][BATCH][THREADS];
    } shared;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32, team = t / SLICES, slice = t % SLICES;
    const i64 token = EXPERTS == 1 ? blockIdx.z : blockIdx.y, slot = EXPERTS == 1 ? blockIdx.y : slice / PER_EXPERT;
    const u32 first = slice % PER_EXPERT * LANE_CODES;
    griddepcontrol_launch_dependents();
    const float own = own_centroid(centroids), own_step = LOG8 && t < 256 ? steps[t] : 0.0f;
    auto build_luts = [&]() {
        build_lut(table, centroids, own);
        if (LOG8 && t < 256) step_table[t] = own_step;
        if (LOG8)
            for (int k = t + THREADS; k < 256; k += THREADS) step_table[k] = steps[k];
    };
    if (EXPERTS) build_luts();
    if (EXPERTS) griddepcontrol_wait();  // the previous kernel writes topk_ids
    const i64 expert = EXPERTS ? topk_ids[token * TOP_K + slot] : 0;
    const bool known = expert >= 0 && expert < experts;
    // A thread beyond the last team reads the rows of the first team; its sums are not used.
    const int start = blockIdx.x * TEAMS, stride = gridDim.x * TEAMS, end = (int)rows, mine = start + team % TEAMS;
    if (EXPERTS) {
        codes += (known ? expert : 0) * codes_stride;
        scales += (known ? expert : 0) * scales_stride;
        base += (known ? expert : 0) * (base_stride / 2);
    }
    const u8* a = codes + (i64)mine * ROW_BYTES + first / 8 * PLANE_A;
    const u8* b = codes + (i64)mine * ROW_BYTES + COLUMNS / 8 * PLANE_A + first / 8 * PLANE_B;
    const u8* c = codes + (i64)mine * ROW_BYTES + COLUMNS / 8 * (PLANE_A + PLANE_B) + first / 8;
    const u8* scale = scales + (i64)mine * SCALE_BYTES + first / N * (LOG8 ? 1 : 2);
    const u16* own_base = base + mine;
    RowPiece ring[AHEAD];
    auto fetch = [&](RowPiece& p, int row) {
        if (row < end) {
            load_words<PLANE_A>(p.codes.a, a);
            if constexpr (PLANE_B != 0) load_words<PLANE_B>(p.codes.b, b);
            if constexpr (PLANE_C != 0) load_words<1>(p.codes.c, c);
            p.scale = LOG8 ? (u32)*scale : (u32) * (const u16*)scale;
            if (EXPERTS == 2 && LOG8) p.base = *own_base;
        } else {
            p.scale = 0;
        }
        a += (i64)stride * ROW_BYTES;
        if (PLANE_B) b += (i64)stride * ROW_BYTES;
        if (PLANE_C) c += (i64)stride * ROW_BYTES;
        scale += (i64)stride * SCALE_BYTES;
        if (EXPERTS == 2 && LOG8) own_base += stride;
    };
#pragma unroll
    for (int d = 0; d < AHEAD; d++) fetch(ring[d], mine + d * stride);  // loads run during the preparation
    if (!EXPERTS) build_luts();
    if (!EXPERTS) griddepcontrol_wait();  // the previous kernel writes x
    for (int some = warp; some * TOGETHER < X_BLOCKS; some += WARPS) {
        const int block = some * TOGETHER + lane / LANES, within = lane % LANES * 8;
        float v[8];
        load_columns8(v, x, EXPERTS == 2 ? token * TOP_K + block / BLOCKS : token, in_columns,
                      block < X_BLOCKS ? block % BLOCKS * N + within : in_columns);
        rotate_eight(v, lane);
        // Scale the block's largest value to [2^9, 2^10): four products with the largest centroid stay below 2^15.
        const int exponent = exponent_of(largest_of_eights(v)) - 9;
        if (block >= X_BLOCKS) continue;
        if (lane % LANES == 0) units[block] = power_of_two(exponent) * ROOT * (LOG8 ? 1.0f : ROOT);
        const float unit = power_of_two(-exponent);
        ((uint4*)shared.x)[(block * N + within) / 8] =
            make_uint4(pack_half2(v[0] * unit, v[1] * unit), pack_half2(v[2] * unit, v[3] * unit),
                       pack_half2(v[4] * unit, v[5] * unit), pack_half2(v[6] * unit, v[7] * unit));
    }
    __syncthreads();  // tables and rotated activations are complete
    u32 values[16];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 v = ((const uint4*)(shared.x + slice * LANE_CODES))[i];
        values[4 * i] = v.x, values[4 * i + 1] = v.y, values[4 * i + 2] = v.z, values[4 * i + 3] = v.w;
    }
    const float unit = units[slice * LANE_CODES / N] * (!known         ? 0.0f
                                                        : EXPERTS == 2 ? topk_weights[token * TOP_K + slot]
                                                                       : 1.0f);
    const u32 table_at = (u32)__cvta_generic_to_shared(table);
    // The shuffle hides the value's range from the compiler, which would otherwise mask the bits for every pair.
    const u32 copy = __shfl_sync(0xffffffff, t % COPIES * 4, lane);
    __syncthreads();  // every thread has its activations; sums take their place
    int buffer = 0, turn = 0;
    for (int group = start; group < end; group += BATCH * stride, buffer ^= 1) {
        float size = 1.0f, offset = 0.0f;
        const int row_of_t = group + t / TEAMS * stride + t % TEAMS;
        if (t < BATCH * TEAMS && row_of_t < end) {
            if (LOG8 && EXPERTS != 2) size = bf16_to_float(base[row_of_t]);
            if (!EXPERTS && bias) offset = load_output(bias, row_of_t);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            RowPiece& p = ring[i % AHEAD];
            const int row = group + i * stride;
            if (row < end) {
                float sum = four<0>(p.codes, values, table_at, copy) + four<4>(p.codes, values, table_at, copy) +
                            four<8>(p.codes, values, table_at, copy) + four<12>(p.codes, values, table_at, copy);
                sum *= (LOG8 ? step_table[p.scale] : half_to_float((u16)p.scale)) * unit;
                if (EXPERTS == 2 && LOG8) sum *= bf16_to_float((u16)p.base);
                shared.parts[buffer][i][t] = sum;
                fetch(p, row + team % TEAMS + AHEAD * stride);
            }
        }
        if (t < BATCH * TEAMS) sizes[buffer][t] = size, offsets[buffer][t] = offset;
        __syncthreads();  // the batch's sums are complete; one barrier is enough, because `buffer` alternates
        // Eight lanes add the sums of a row. Each batch uses other warps; the remaining warps go on.
        for (int four_rows = (warp + turn) % WARPS; four_rows * 4 < BATCH * TEAMS; four_rows += WARPS) {
            const int r = four_rows * 4 + lane / 8, row = group + r / TEAMS * stride + r % TEAMS;
            float sum = 0.0f;
            if (r < BATCH * TEAMS && row < end)
                for (int s = lane % 8; s < SLICES; s += 8)
                    sum += shared.parts[buffer][r / TEAMS][r % TEAMS * SLICES + s];
            sum = warp_reduce_sum<8>(sum);
            if (r < BATCH * TEAMS && row < end && lane % 8 == 0)
                store(y, (EXPERTS == 1 ? token * TOP_K + slot : token) * rows + row,
                      sum * sizes[buffer][r] + offsets[buffer][r]);
        }
        turn += WARPS - (BATCH * TEAMS + 3) / 4 % WARPS;
    }
}
