// Attention of one token a sequence over its coded cache: codes are read once, at their true width, and never decoded
// to memory. See attention/reference.py for what comes out.
//
// A CTA takes a stretch of the tokens of a key/value head, and up to 16 of the query heads that share it. It rotates
// the queries itself, so that keys need not be. A team of warps takes 16 tokens a warp at a time: keys are the first
// operand of an MMA whose second are the queries, then values, two tokens at once, are the first of one whose second
// are the softmax's weights. Each warp of a team sums another split of the values' dimensions. The sums stay rotated; a
// second kernel (attention/combine.cu) adds those of all stretches and rotates them back. The first CTAs take the exact
// tokens.
//
// The softmax runs along: weights are 2^(logit + log2 of the value's scale - reference), and the reference of a query
// is raised only when a token passes it by 2^HEADROOM, so that sums are seldom faded. float16 holds such weights.
//
// Macros, beside those of common/dequant.cuh (BITS and COPIES are those of keys) and common/hadamard.cuh (N is the
// keys'): V_BITS; V_COPIES; ONE_TABLE, whether keys and values have the same; K_DIM and V_DIM, values of a head;
// K_STORED and V_STORED, as stored; GROUP, query heads a key/value head; MASKED; CAPPED; CTAS a multiprocessor; SHARED,
// its bytes.

#include "attention/codes.cuh"
#include "attention/exact.cuh"

// query (sequences, heads * GROUP, K_DIM); codes (sequences * heads, capacity, bytes), scales likewise; centroids
// float32; steps float32 (256,); exact tokens: heads `k_stride` and `v_stride` values apart, token e in place e, or
// with a ring in place (coded + e) % ring; mask u8 (sequences, mask_stride) or null; lengths null, or the numbers of
// coded and exact tokens, which then count and not the arguments. sums float32 (query heads, splits, V_STORED), row_max
// and row_sum (query heads, splits): of each split, a CTA's tokens; of one without tokens no sums.
extern "C" __global__ __launch_bounds__(THREADS, CTAS) void attend(
    const void* query, const u8* k_codes, const u8* k_scales, const u8* v_codes, const u8* v_scales,
    const float* k_centroids, const float* v_centroids, const float* steps, const void* k_exact, const void* v_exact,
    const u8* mask, const i64* lengths, i64 coded, i64 exact, i64 ring, i64 capacity, i64 heads, i64 k_stride,
    i64 v_stride, i64 mask_stride, i64 exact_splits, float scaling, float softcap, float* sums, float* row_max,
    float* row_sum) {
    extern __shared__ uint4 arena[];
    u8* shared = (u8*)arena;
    const i64 head = blockIdx.y, splits = gridDim.x, split = blockIdx.x, row = head * GROUP + blockIdx.z * ROWS;
    const int rows = min(ROWS, GROUP - (int)blockIdx.z * ROWS);
    constexpr int ITEM = INPUT == FLOAT32 ? 4 : 2;
    griddepcontrol_launch_dependents();
    const bool tabled = split >= exact_splits;
    if (tabled) {
        const float own = own_centroid<BITS>(k_centroids), step = steps[threadIdx.x % 256];
        const LutPair tables = luts_in(shared);
        build_lut<BITS, COPIES>(tables.keys, k_centroids, own);
        if (!ONE_TABLE) build_lut<V_BITS, V_COPIES>(tables.values, v_centroids, own_centroid<V_BITS>(v_centroids));
        ((float*)(shared + STEPS_AT))[threadIdx.x % 256] = step;
        for (int k = THREADS + threadIdx.x; k < 256; k += THREADS) ((float*)(shared + STEPS_AT))[k] = steps[k];
    }
    griddepcontrol_wait();  // queries and the cache may come from the kernel before; tables do not
    if (lengths) coded = lengths[0], exact = lengths[1];
    const Cache c = {(const u8*)query + row * K_DIM * ITEM,
                     (const u8*)k_exact + head * k_stride * ITEM,
                     (const u8*)v_exact + head * v_stride * ITEM,
                     k_codes + head * capacity * (K_STORED / 8 * BITS),
                     k_scales + head * capacity,
                     v_codes + head * capacity * (V_STORED / 8 * V_BITS),
                     v_scales + head * capacity,
                     mask + head / heads * mask_stride,
                     (int)coded,
                     (int)exact,
                     (int)ring,
                     (int)capacity,
                     scaling,
                     softcap};
    const i64 at = row * splits + split;
    sums += at * V_STORED, row_max += at, row_sum += at;
    int begin, end;
    if (tabled) {
        constexpr int STEP = TEAMS * TILE;
        const int all = (c.coded + STEP - 1) / STEP, coded_splits = (int)(splits - exact_splits),
                  each = (all + coded_splits - 1) / coded_splits;
        begin = (int)(split - exact_splits) * each * STEP, end = min(c.coded, begin + each * STEP);
    } else {
        begin = (int)split * EXACT, end = min(c.exact, begin + EXACT);
    }
    if (begin >= end) {
        for (int r = threadIdx.x; r < rows; r += THREADS) row_max[r * splits] = LOWEST, row_sum[r * splits] = 0.0f;
    } else if (tabled) {
        read_codes(shared, c, begin, end, rows, sums, row_max, row_sum, splits);
    } else {
        read_exact((float*)shared, c, begin, end - begin, rows, sums, row_max, row_sum, splits);
    }
}
