// The work of one warp on coded tokens, tile by tile: see attention/attention.cu.

#include "common/hadamard.cuh"
#include "attention/kv_slices.cuh"
#include "attention/shape.cuh"
#include "common/reduce.cuh"

// Rotates the queries, divides each by its largest value, and stores them in the order of `mma_m16n8k16`: lane l of
// quad (t, c, x) has 8 values of query 8 t + l / 4, from c * CHUNK + l % 4 * LANE + 8 x on.
__device__ __forceinline__ void rotate_queries(u16* queries, float* sizes, const void* query, int rows) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int r = warp; r < ROWS; r += WARPS) {
        float v[K_STORED / N][VALUES], size = 0.0f;
#pragma unroll
        for (int b = 0; b < K_STORED / N; b++) {
            load_block(v[b], query, r < rows ? r : 0, K_DIM, b, lane);
            rotate_block(v[b], lane);
            size = fmaxf(size, largest_in_warp(v[b]));
        }
        const float inverse = r < rows && size > 0.0f ? 1.0f / size : 0.0f;
        if (lane == 0) sizes[r] = r < rows ? size * ROOT : 0.0f;
#pragma unroll
        for (int i = 0; i < CHUNKS * CHUNK / 32; i++) {
            const int d = i * 32 + lane;
            const int quad = (r / 8 * CHUNKS + d / CHUNK) * (LANE / 8) + d % LANE / 8,
                      to = r % 8 * 4 + d % CHUNK / LANE;
            const float value = i < K_STORED / 32 ? v[i * 32 % K_STORED / N][i % VALUES] * inverse : 0.0f;
            queries[(quad * 32 + to) * 8 + d % 8] = float_to_half(value);
        }
    }
}

// Loads a lane's values of its query in each tile.
__device__ __forceinline__ void load_queries(u32 (*q)[LANE / 2], const uint4* queries, int chunk) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int x = 0; x < LANE / 8; x++) {
            const uint4 v = queries[((t * CHUNKS + chunk) * (LANE / 8) + x) * 32 + threadIdx.x % 32];
            q[t][4 * x] = v.x, q[t][4 * x + 1] = v.y, q[t][4 * x + 2] = v.z, q[t][4 * x + 3] = v.w;
        }
}

template <int P>
__device__ __forceinline__ void score(float (*s)[4], const PlanesOf<BITS>* w, const u32 (*q)[LANE / 2], u32 copy) {
    const u32 a0 = along<P, COPIES>(w[0], copy), a1 = along<P, COPIES>(w[1], copy);
    const u32 a2 = along<P + 1, COPIES>(w[0], copy), a3 = along<P + 1, COPIES>(w[1], copy);
#pragma unroll
    for (int t = 0; t < TILES; t++) mma_m16n8k16(s[t], a0, a1, a2, a3, q[t][P], q[t][P + 1]);
    if constexpr (P + 2 < LANE / 2) score<P + 2>(s, w, q, copy);
}

template <int M>
__device__ __forceinline__ void gather(float (*sums)[TILES][4], const Crossed<V_BITS>* w, const u32 (*probs)[2],
                                       u32 copy) {
    const u32 a0 = across<2 * M, V_COPIES>(w[0], copy), a1 = across<2 * M + 1, V_COPIES>(w[0], copy);
    const u32 a2 = across<2 * M, V_COPIES>(w[1], copy), a3 = across<2 * M + 1, V_COPIES>(w[1], copy);
#pragma unroll
    for (int t = 0; t < TILES; t++) mma_m16n8k16(sums[M][t], a0, a1, a2, a3, probs[t][0], probs[t][1]);
    if constexpr (M + 1 < STEPS) gather<M + 1>(sums, w, probs, copy);
}

// What the warps of a team exchange in shared memory.
struct Exchange {
    float* raised;   // (TEAM,): whether a warp has tokens that exceed the reference
    float* highest;  // (TEAM, ROWS)
    uint2* probs;    // (TEAM, TILES, 32)
    int barrier;
};

// The state of one warp of a team.
struct Worker {
    Reader<BITS, LANE, K_STORED> keys;
    Reader<V_BITS, SLICE, V_STORED> values;
    PlanesOf<BITS> k[K_AHEAD][2];
    PlanesOf<V_BITS> v[V_AHEAD][4];
    u32 k_scale[2], v_scale[2];
    float sums[STEPS][TILES][4], reference[TILES][2], weight[TILES][2], factor[TILES][2];
    bool k_mine, v_mine;  // whether this lane's slices are within the head
    int lane, member;

    // Loads the warp's 16 keys of chunk `c`. `left` tokens of the cache's capacity follow from the warp's first.
    __device__ __forceinline__ void load_keys(int ahead, int c, int left) {
        const bool inside = K_STORED % CHUNK == 0 || c * CHUNK + lane % 4 * LANE < K_STORED;
        if (left >= 16 && K_STORED % CHUNK == 0) {
            keys.read(k[ahead][0], 0, c * CHUNK);
            keys.read(k[ahead][1], 8, c * CHUNK);
        } else {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                k[ahead][r] = {};
                if (inside && lane / 4 + 8 * r < left) keys.read(k[ahead][r], 8 * r, c * CHUNK);
            }
        }
    }

    // Loads 16 values of the team's tile, from block `block` on.
    __device__ __forceinline__ void load_values(int ahead, int block, int left) {
        if (left >= 16 * block + 16 && V_STORED % PART == 0) {
#pragma unroll
            for (int i = 0; i < 4; i++) values.read(v[ahead][i], 16 * block + i % 2 + i / 2 * 8, 0);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = 16 * block + i % 2 + i / 2 * 8;
                v[ahead][i] = {};
                if (v_mine && row + lane % 4 * 2 < left) values.read(v[ahead][i], row, 0);
            }
        }
    }

    __device__ __forceinline__ void load_scales(const Cache& c, int token) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const bool there = token + 8 * r < c.coded;
            const bool seen = there && visible(c, token + 8 * r);
            k_scale[r] = there ? __ldg(c.k_scales + token + 8 * r) : 0;
            v_scale[r] = seen ? __ldg(c.v_scales + token + 8 * r) : HIDDEN;
        }
    }

    // Turns products with keys into the probabilities that values are multiplied by.
    __device__ __forceinline__ void score_to_probs(float (*s)[4], u32 (*probs)[2], const Cache& c, const float* steps,
                                                   const Exchange& team) {
        float inverse[2];
        bool counted[2];
        bool raises = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const bool seen = v_scale[r] != HIDDEN;
            const u32 stored_scale = seen ? v_scale[r] : 128;
            const float scale = steps[k_scale[r]];
            const float size = stored_scale == 255 ? steps[255]
                               : stored_scale      ? (float)((int)stored_scale - 128) * 0.125f
                                                   : -16.0f;
            inverse[r] = ex2_approx(-size);
            counted[r] = stored_scale != 0;
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float l = logit(s[t][2 * r + h] * (factor[t][h] * scale), c.softcap) + size;
                    s[t][2 * r + h] = seen ? l : minus_infinity();
                    raises |= s[t][2 * r + h] > reference[t][h] + HEADROOM;
                }
        }
        raise(s, raises, team);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            float u[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u[i] = ex2_approx(s[t][i] - reference[t][i % 2]);
                weight[t][i % 2] += u[i] * inverse[i / 2];
                if (!counted[i / 2]) u[i] = 0.0f;
            }
            probs[t][0] = movmatrix(pack_half2(u[0], u[1]));
            probs[t][1] = movmatrix(pack_half2(u[2], u[3]));
        }
    }

    // Raises the references of the whole team to its largest logits, if any token exceeds one by HEADROOM.
    __device__ __forceinline__ void raise(const float (*s)[4], bool raises, const Exchange& team) {
        raises = __any_sync(0xffffffff, raises);
        float highest[TILES][2];
        if (raises)
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float top = fmaxf(s[t][h], s[t][2 + h]);
                    top = warp_reduce_max_up<4>(top);
                    highest[t][h] = top;
                }
        if constexpr (TEAM > 1) {
            if (lane == 0) team.raised[member] = raises ? 1.0f : 0.0f;
            if (raises && lane < 4)
#pragma unroll
                for (int t = 0; t < TILES; t++)
#pragma unroll
                    for (int h = 0; h < 2; h++) team.highest[member * ROWS + 8 * t + 2 * lane + h] = highest[t][h];
            // Every warp has written whether it raises, and to what. It has also read the last probabilities, which the
            // next ones overwrite.
            bar_sync(team.barrier, 32 * TEAM);
            raises = false;
#pragma unroll
            for (int m = 0; m < TEAM; m++) {
                const bool its = team.raised[m] != 0.0f;
                if (its)
#pragma unroll
                    for (int t = 0; t < TILES; t++)
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            const float top = team.highest[m * ROWS + 8 * t + lane % 4 * 2 + h];
                            highest[t][h] = raises ? fmaxf(highest[t][h], top) : top;
                        }
                raises |= its;
            }
        }
        if (!raises) return;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float top = fmaxf(reference[t][h], highest[t][h]), rescale = ex2_approx(reference[t][h] - top);
                reference[t][h] = top;
                weight[t][h] *= rescale;
#pragma unroll
                for (int m = 0; m < STEPS; m++) sums[m][t][h] *= rescale, sums[m][t][2 + h] *= rescale;
            }
    }
};
