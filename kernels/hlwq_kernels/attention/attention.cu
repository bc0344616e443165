// Attention of one token per sequence over a quantized cache. Codes are read once and never decoded to memory.
// attention/reference.py defines the result.
//
// Layout: a CTA takes one split of the tokens of a key/value head, and up to 16 of the query heads that share it. The
// first splits hold exact tokens, the others coded tokens. The CTA rotates the queries, so keys stay rotated. Teams of
// warps take 16 coded tokens per warp at a time:
//
//     scores:  MMA(keys of 16 tokens, queries)
//     sums:    MMA(values of two tokens at once, probabilities); each warp of a team has its own dimensions
//
// Sums of coded tokens stay rotated. combine.cu adds all splits and rotates the sums back.
//
// The softmax is computed online: a probability is 2^(logit + log2(scale of the value) - reference). The reference of a
// query rises only if a token exceeds it by HEADROOM, so sums are rarely rescaled, and fp16 holds the probabilities.
//
// Macros, in addition to those of common/dequant.cuh (BITS and COPIES are those of keys) and common/hadamard.cuh (N is
// that of keys):
//   V_BITS, V_COPIES    of values
//   ONE_TABLE           1: keys and values have the same table
//   K_DIM, V_DIM        values of a head, at most 512
//   K_STORED, V_STORED  the same, padded as stored; they bound registers and shared memory
//   GROUP               query heads per key/value head
//   MASKED, CAPPED      whether there is a mask, and a softcap of logits
//   CTAS                CTAs per multiprocessor; bounds the registers of a thread
//   SHARED              bytes of shared memory; attention/shape.cuh checks them

#include "attention/codes.cuh"
#include "attention/exact.cuh"

// query:               (sequences, heads * GROUP, K_DIM), INPUT
// k_codes, v_codes:    u8 (sequences * heads, capacity, bytes of a head)
// k_scales, v_scales:  u8 (sequences * heads, capacity)
// k_centroids:         float32 (2^BITS,); v_centroids: float32 (2^V_BITS,)
// steps:               float32 (256,), the scale of each scale byte
// k_exact, v_exact:    (sequences * heads, tokens, dim), INPUT, heads k_stride and v_stride values apart; exact token e
//                      is at e, or with a ring at (coded + e) % ring
// mask:                u8 (sequences, mask_stride), 0 where hidden; or null
// lengths:             (2,), coded and exact tokens, in place of the arguments `coded` and `exact`; or null
// exact_splits:        splits of exact tokens, which come first
// sums:                float32 (query heads, splits, V_STORED); not written for a split without tokens
// row_max, row_sum:    float32 (query heads, splits), the reference and the sum of probabilities of each split
// grid:                (splits, sequences * heads, chunks of query heads)
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
    griddepcontrol_wait();  // the previous kernel may write queries and the cache; it does not write tables
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
