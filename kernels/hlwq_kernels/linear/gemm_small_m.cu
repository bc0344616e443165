// y = x W^T for a few tokens, straight from packed codes: W is read once, at its true width, and never decoded to
// memory.
//
// A warp takes 16 rows of W. Each lane reads 32 codes of two of them, takes pairs of weights from the table
// (common/dequant.cuh), multiplies them by the block's scale as a share of the row's base, and hands them to the tensor
// cores as they are: they are the first operand of an MMA whose second are the rotated activations of up to 8 * TILES
// tokens. Sums are float32. SPLIT warps share the columns of a row group; the other 8 / SPLIT of a CTA take other rows.
// A CTA makes its tables once and goes through the groups: what it reads first of the next ones is on its way while the
// last ones are summed up.
//
// Macros, beside those of common/dequant.cuh: N, the block size; LOG8, whether scales are steps below a row's base,
// else fp16 norms; SPLIT; TILES.

#include "common/dequant.cuh"
#include "common/reduce.cuh"

constexpr int WARPS = 8, ROWS = 16, CHUNK = 128;
constexpr float ROOT = N == 32 ? 0.17677669529663687f : N == 64 ? 0.125f : N == 128 ? 0.08838834764831845f : 0.0625f;

struct RowPair {
    Planes row[2];
    u32 scale[2];
};

// Where a lane's two rows lie, which are 8 apart; what lies beyond the last row is computed of another and dropped.
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

// The words of 32 codes of both rows from column k on, and the scales of the blocks that they are in.
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

// `x` points at the lane's next 32 activations, in each tile those of its token.
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

// The bases of both rows, as they are stored.
__device__ __forceinline__ void fetch_bases(u32* bases, const u16* base, i64 row, i64 rows) {
#pragma unroll
    for (int r = 0; r < 2; r++) bases[r] = LOG8 && row + 8 * r < rows ? base[row + 8 * r] : 0;
}

// The largest norm of a row: each of its four lanes looks at every fourth.
__device__ __forceinline__ float largest_norm(const u8* scales, i64 blocks, int quarter) {
    float largest = 0.0f;
    for (i64 b = quarter; b < blocks; b += 4) largest = fmaxf(largest, half_to_float(((const u16*)scales)[b]));
    return warp_reduce_max_up<1, 4>(largest);
}

// x fp16 (tokens, columns) and units float32 (tokens,), as rotate_rows leaves them; codes, scales, base of W; centroids
// float32 (2^BITS,); steps float32 (256,); bias of y's type or null; y (tokens, rows).
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
    // Through a shuffle, so that the compiler does not know its bits: it would mask them anew for every pair.
    const u32 copy = __shfl_sync(0xffffffff, threadIdx.x % COPIES * 4, lane);
    const i64 rows_at_once = WAYS * ROWS, step_rows = gridDim.x * rows_at_once;
    const int first = part * CHUNK + quarter * LANE_CODES, end = (int)columns;
    const float own = own_centroid(centroids);
    i64 first_row = blockIdx.x * rows_at_once, row = first_row + way * ROWS + lane / 4;
    RowPtrs at = row_ptrs(codes, scales, row, rows, end);
    RowPair now = {}, next = {};
    u32 bases[2];
    fetch(now, at, first, end, row - lane / 4 < rows && first < end);  // on its way while the tables are made
    fetch_bases(bases, base, row, rows);
    build_lut(table, centroids, own);
    if (LOG8)
        for (int k = threadIdx.x; k < 256; k += THREADS) step_table[k] = float_to_half(steps[k]) * 0x10001;
    __syncthreads();        // the tables are there
    griddepcontrol_wait();  // the rotated activations are there
    const u16* lane_x[TILES];
    float unit[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            unit[t][i] = 2 * quarter + i + 8 * t < tokens ? units[2 * quarter + i + 8 * t] : 0.0f;
        const i64 token =
            lane / 4 + 8 * t;  // a lane without a token takes the last one's: what it makes of it is dropped
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
            // A lane beyond the end has scales of zero; it reads activations that are there.
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
        __syncthreads();  // every warp's sums are there
        for (int i = threadIdx.x; i < WAYS * TILES * 8 * ROWS; i += THREADS) {
            const int row_in = i % ROWS, column = i / ROWS % (8 * TILES), which = i / ROWS / (8 * TILES);
            const i64 out = first_row + which * ROWS + row_in;
            if (out >= rows || column >= tokens) continue;
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < SPLIT; w++) sum += sums_of[which * SPLIT + w][column / 8][row_in][column % 8];
            store(y, column * rows + out, bias ? sum + load_output(bias, out) : sum);
        }
        __syncthreads();  // everybody has read the sums, which the next rows overwrite
    }
}
