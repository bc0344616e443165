// What the files of attention/attention.cu share: the layout of a CTA, the layout of its shared memory, and the cache.

#include "common/dequant.cuh"
#include "common/types.cuh"

// An MMA takes 16 tokens and 8 queries. The other sizes bound the registers of a thread: docs/log.md, 2026-11-25,
// "Attention over codes in CUDA C++", counts them in the machine code for sm_90. Other sizes were not measured.
constexpr int TILES = GROUP <= 8 ? 1 : 2, ROWS = 8 * TILES;  // queries per CTA
constexpr int LANE = K_STORED % 128 == 64 ? 16 : 32, CHUNK = 4 * LANE, CHUNKS = (K_STORED + CHUNK - 1) / CHUNK;
constexpr int SLICE = V_STORED <= 64 ? 8 : 16, PART = 8 * SLICE, TEAM = (V_STORED + PART - 1) / PART;
constexpr int WARPS = THREADS / 32, TEAMS = WARPS / TEAM, TILE = 16 * TEAM, STEPS = SLICE / 2;
constexpr int K_AHEAD = CHUNKS % 2 ? 1 : 2, V_AHEAD = TEAM % 2 ? 1 : 2;  // blocks that are being loaded
constexpr bool HELD = CHUNKS == 1 && LANE * TILES <= 32;                 // whether queries stay in registers
constexpr int EXACT = K_DIM > 256 || V_DIM > 256 ? 16 : 32;              // exact tokens per CTA
constexpr int SUMS = PART + 4;  // floats per row of sums; the 4 avoid bank conflicts
constexpr float LOG2E = 1.4426950408889634f;
constexpr float HEADROOM = 8.0f;  // probabilities stay below 2^8, where fp16 ends at 2^16; not measured
constexpr u32 HIDDEN = 256;       // the scale byte of a value that is masked

static_assert(WARPS % TEAM == 0, "whole teams");

// Offsets in shared memory, in bytes. Tables come first, the larger one at a multiple of its size. Sums overwrite them.
constexpr int K_TABLE_BYTES = 4 * ENTRIES * COPIES, V_TABLE_BYTES = 4 * Width<V_BITS>::ENTRIES * V_COPIES;
constexpr int LARGER_TABLE = K_TABLE_BYTES > V_TABLE_BYTES ? K_TABLE_BYTES : V_TABLE_BYTES;
constexpr int SUMS_BYTES = 4 * WARPS * 8 * SUMS;
constexpr int FIRST_BYTES = LARGER_TABLE + K_TABLE_BYTES + (ONE_TABLE ? 0 : V_TABLE_BYTES);
constexpr int STEPS_AT = FIRST_BYTES > SUMS_BYTES ? FIRST_BYTES : SUMS_BYTES, SIZES_AT = STEPS_AT + 1024;
constexpr int REFERENCES_AT = SIZES_AT + 64, ROW_SUMS_AT = REFERENCES_AT + 4 * WARPS * ROWS;
constexpr int RAISED_AT = ROW_SUMS_AT + 4 * WARPS * ROWS, PROBS_AT = RAISED_AT + 16 * WARPS;
constexpr int QUERIES_AT = PROBS_AT + (TEAM > 1 ? WARPS * TILES * 256 : 0);

static_assert(SHARED >= QUERIES_AT + ROWS * CHUNKS * CHUNK * 2 && SHARED >= 4 * ROWS * (K_DIM + EXACT), "room");

struct LutPair {
    u32 *keys, *values;
};

__device__ __forceinline__ LutPair luts_in(u8* shared) {
    u8* first = shared + (LARGER_TABLE - shared_address(shared) % LARGER_TABLE) % LARGER_TABLE;
    u8* second = first + (ONE_TABLE ? 0 : LARGER_TABLE);
    return {(u32*)(K_TABLE_BYTES == LARGER_TABLE ? first : second),
            (u32*)(K_TABLE_BYTES == LARGER_TABLE ? second : first)};
}

struct Cache {  // of one key/value head; dtypes and shapes are those of attention/attention.cu
    const void *query, *k_exact, *v_exact;
    const u8 *k_codes, *k_scales, *v_codes, *v_scales, *mask;
    int coded, exact, ring, capacity;
    float scaling, softcap;
};

__device__ __forceinline__ bool visible(const Cache& c, int token) { return !MASKED || c.mask[token] != 0; }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// In units of ln 2.
__device__ __forceinline__ float logit(float s, float softcap) {
    if (CAPPED) return softcap * LOG2E * (1.0f - 2.0f / (ex2_approx(2.0f * LOG2E / softcap * s) + 1.0f));
    return s * LOG2E;
}
