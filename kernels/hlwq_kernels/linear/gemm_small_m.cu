// y = x W^T for up to 16 tokens, directly from packed codes. W is read once and never decoded to memory.
//
// Layout: a warp takes 16 rows of W, which are the first operand of an MMA. The second operand are the rotated
// activations of up to 8 * TILES tokens. Each lane reads 32 codes of two rows and looks up pairs of weights
// (common/dequant.cuh). It multiplies them by the block's scale relative to the row's base. Sums are float32.
//
//     CTA = 8 warps; SPLIT warps share the columns of 16 rows, the other 8 / SPLIT take other rows
//
// CTAs are persistent: a CTA builds its table once and loops over groups of rows. The first codes of the next group are
// loaded while the last sums are added.
//
// Macros, in addition to those of common/dequant.cuh:
//   N      weights per block
//   LOG8   1: a scale is a byte, a step below its row's base; 0: a scale is an fp16 norm
//   SPLIT  warps that share a row group: 1, 2, 4 or 8
//   TILES  groups of 8 tokens: 1 or 2; bounds the accumulators and the CTAs per multiprocessor

#include "common/dequant.cuh"
#include "common/reduce.cuh"

// ROWS are those of an MMA. CHUNK is what four lanes load at once, 32 codes each. WARPS was not measured against other
// numbers; linear/gemm_small_m.py has the same constants.
constexpr int WARPS = 8, ROWS = 16, CHUNK = 128;
constexpr float ROOT = N == 32 ? 0.17677669529663687f : N == 64 ? 0.125f : N == 128 ? 0.08838834764831845f : 0.0625f;

struct RowPair {
    Planes row[2];
    u32 scale[2];
};

// The pointers to a lane's two rows, which are 8 rows apart. A row beyond the last is computed from another row, and
// its result is dropped.
struct RowPtrs {
    const u8 *codes, *scales;
    int codes_apart, scales_apart;
};

constexpr int SCALE_BYTES = LOG8 ? 1 : 2;

__device__ __forceinline__ RowPtrs row_ptrs(const u8* codes, const u8* scales, i64 row, i64 rows, int columns) {
    const int row_bytes = columns / 8 * BITS, row_scales = columns / N * SCALE_BYTES;
    const i64 at = row < rows ? row : 0;
    const int apart = row + 8 < rows ? 8 : 0;
    return {codes + at * row_bytes, scales + at * row_scales, apart * row_bytes, apart * row_scales};
}

// Loads 32 codes of both rows from column k on, and the scales of their blocks.
__device__ __forceinline__ void fetch(RowPair& piece, const RowPtrs& p, int k, int columns, bool inside) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (inside) {
            const u8* row = p.codes + r * p.codes_apart;
            load_words<PLANE_A>(piece.row[r].a, row + k / 8 * PLANE_A);
            if constexpr (PLANE_B != 0)
                load_words<PLANE_B>(piece.row[r].b, row + columns / 8 * PLANE_A + k / 8 * PLANE_B);
            if constexpr (PLANE_C != 0) load_words<1>(piece.row[r].c, row + columns / 8 * (PLANE_A + PLANE_B) + k / 8);
            const u8* scale = p.scales + r * p.scales_apart + k / N * SCALE_BYTES;
            piece.scale[r] = LOG8 ? (u32)*scale : (u32) * (const u16*)scale;
        } else {
            piece.scale[r] = 0;
        }
    }
}

template <int P>
__device__ __forceinline__ void step(float (*sums)[4], const RowPair& p, const u32* scales, const u32 (*x)[16],
                                     u32 table, u32 copy) {
    u32 a0 = hmul2(weights<P>(p.row[0], table, copy), scales[0]),
        a1 = hmul2(weights<P>(p.row[1], table, copy), scales[1]);
    u32 a2 = hmul2(weights<P + 1>(p.row[0], table, copy), scales[0]);
    u32 a3 = hmul2(weights<P + 1>(p.row[1], table, copy), scales[1]);
#pragma unroll
    for (int t = 0; t < TILES; t++) mma_m16n8k16(sums[t], a0, a1, a2, a3, x[t][P], x[t][P + 1]);
    if constexpr (P + 2 < 16) step<P + 2>(sums, p, scales, x, table, copy);
}

// Multiplies a piece. `x` points to the activations of the lane's token in each tile, `k` is the lane's column.
__device__ __forceinline__ void consume(float (*sums)[4], const RowPair& piece, const u16* const* x, int k,
                                        const float* inverse, u32 table, const u32* steps, u32 copy) {
    u32 values[TILES][16];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 v = ((const uint4*)(x[t] + k))[i];
            values[t][4 * i] = v.x, values[t][4 * i + 1] = v.y, values[t][4 * i + 2] = v.z, values[t][4 * i + 3] = v.w;
        }
    u32 scales[2];
#pragma unroll
    for (int r = 0; r < 2; r++)
        scales[r] = LOG8 ? steps[piece.scale[r]] : float_to_half(half_to_float(piece.scale[r]) * inverse[r]) * 0x10001;
    step<0>(sums, piece, scales, values, table, copy);
}

// Loads the bases of both rows, bf16 as stored.
__device__ __forceinline__ void fetch_bases(u32* bases, const u16* base, i64 row, i64 rows) {
#pragma unroll
    for (int r = 0; r < 2; r++) bases[r] = LOG8 && row + 8 * r < rows ? base[row + 8 * r] : 0;
}

// The largest norm of a row. Each of its four lanes reads every fourth norm.
__device__ __forceinline__ float largest_norm(const u8* scales, i64 blocks, int quarter) {
    float largest = 0.0f;
    for (i64 b = quarter; b < blocks; b += 4) largest = fmaxf(largest, half_to_float(((const u16*)scales)[b]));
    return warp_reduce_max_up<1, 4>(largest);
}

// __launch_bounds__: 3 or 2 CTAs per multiprocessor bound the registers. On an H100 396 CTAs of one tile run at once
// (docs/log.md, "A few tokens: CTAs that stay"); other bounds were not measured.
//
// x:          fp16 (tokens, columns), written by rotate_rows; at most 8 * TILES tokens
// units:      float32 (tokens,), the factor of each row of x
// codes:      u8 (rows, columns * BITS / 8)
// scales:     u8 or fp16 (rows, columns / N)
// base:       bf16 (rows,); not read without LOG8
// centroids:  float32 (2^BITS,)
// steps:      float32 (256,), the factor of each scale byte
// bias:       (rows,), OUTPUT, or null
// y:          (tokens, rows), OUTPUT
extern "C" __global__ __launch_bounds__(THREADS, TILES == 1 ? 3 : 2) void gemm_small_m(
    const u16* x, const float* units, i64 tokens, const u8* codes, const u8* scales, const u16* base,
    const float* centroids, const float* steps, const void* bias, i64 rows, i64 columns, void* y) {
    __shared__ __align__(16) u32 table[ENTRIES * COPIES];
    __shared__ u32 step_table[256];
    __shared__ float sums_of[WARPS][TILES][ROWS][8];
    constexpr int WAYS = WARPS / SPLIT, STRIDE_K = SPLIT * CHUNK;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quarter = lane % 4, part = warp % SPLIT,
              way = warp / SPLIT;
    const u32 table_at = (u32)__cvta_generic_to_shared(table);
    // The shuffle hides the value's range from the compiler, which would otherwise mask the bits for every pair.
    const u32 copy = __shfl_sync(0xffffffff, threadIdx.x % COPIES * 4, lane);
    const i64 rows_at_once = WAYS * ROWS, step_rows = gridDim.x * rows_at_once;
    const int first = part * CHUNK + quarter * LANE_CODES, end = (int)columns;
    const float own = own_centroid(centroids);
    i64 first_row = blockIdx.x * rows_at_once, row = first_row + way * ROWS + lane / 4;
    RowPtrs at = row_ptrs(codes, scales, row, rows, end);
    RowPair now = {}, next = {};
    u32 bases[2];
    fetch(now, at, first, end, row - lane / 4 < rows && first < end);  // these loads run while the tables are built
    fetch_bases(bases, base, row, rows);
    build_lut(table, centroids, own);
    if (LOG8)
        for (int k = threadIdx.x; k < 256; k += THREADS) step_table[k] = float_to_half(steps[k]) * 0x10001;
    __syncthreads();        // the tables are complete
    griddepcontrol_wait();  // the previous kernel writes the rotated activations
    const u16* lane_x[TILES];
    float unit[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            unit[t][i] = 2 * quarter + i + 8 * t < tokens ? units[2 * quarter + i + 8 * t] : 0.0f;
        const i64 token = lane / 4 + 8 * t;  // a lane without a token reads the last token; its result is dropped
        lane_x[t] = x + (token < tokens ? token : tokens - 1) * columns;
    }
    for (; first_row < rows; first_row += step_rows, row += step_rows) {
        const bool mine = row - lane / 4 < rows;
        float size[2] = {}, inverse[2] = {};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (LOG8) {
                size[r] = bf16_to_float(bases[r]);
            } else {
                size[r] = largest_norm(at.scales + r * at.scales_apart, columns / N, quarter);
                inverse[r] = size[r] > 0.0f ? 1.0f / size[r] : 0.0f;
                size[r] *= ROOT;
            }
        }
        float sums[TILES][4] = {};
        for (int k = first; mine && k - quarter * LANE_CODES < end; k += STRIDE_K) {
            fetch(next, at, k + STRIDE_K, end, k + STRIDE_K < end);
            // A lane beyond the last column has scales of zero and reads valid activations.
            consume(sums, now, lane_x, k < end ? k : 0, inverse, table_at, step_table, copy);
            now = next;
        }
        at = row_ptrs(codes, scales, row + step_rows, rows, end);
        fetch(now, at, first, end, row + step_rows - lane / 4 < rows && first < end);
        fetch_bases(bases, base, row + step_rows, rows);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums_of[warp][t][lane / 4 + i / 2 * 8][2 * quarter + i % 2] = sums[t][i] * size[i / 2] * unit[t][i % 2];
        __syncthreads();  // every warp's sums are complete
        for (int i = threadIdx.x; i < WAYS * TILES * 8 * ROWS; i += THREADS) {
            const int row_in = i % ROWS, column = i / ROWS % (8 * TILES), which = i / ROWS / (8 * TILES);
            const i64 out = first_row + which * ROWS + row_in;
            if (out >= rows || column >= tokens) continue;
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < SPLIT; w++) sum += sums_of[which * SPLIT + w][column / 8][row_in][column % 8];
            store(y, column * rows + out, bias ? sum + load_output(bias, out) : sum);
        }
        __syncthreads();  // every thread has read the sums; the next rows overwrite them
    }
}
