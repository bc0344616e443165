// Encodes rows of weights to codes, scales, bases, errors and energies, in one pass. encode/reference.py defines them.
//
// Layout: a thread holds a block. A CTA holds as many whole rows as its threads have blocks, then takes the next rows.
// The blocks of a row exchange exponent, base and sums through shared memory.
//
// Where the exponent allows (see NEAR_LOW), a row is not scaled: with powers of two it makes no difference whether z or
// its factors are scaled. Every row is first computed this way, and again if its exponent does not allow it. So z below
// is the rotated block, and z times `unscale`, a power of two, is that of the definition.
//
// Macros, in addition to those of encode/encode_block.cuh (encode/cuda_config.py computes them):
//   INPUT              dtype of the weights
//   LOG8, SEARCH       kind of scale; whether scales are searched
//   STAGED             the next rows are copied to shared memory while these are coded
//   LOOP               a row has more blocks than a CTA has threads; it is read twice instead
//   FACTORS            candidates of the search; REST: words of the tables with one copy
//   THREADS, RESIDENT  threads of a CTA, CTAs per multiprocessor; they bound the registers of a thread

#include "common/types.cuh"
#include "encode/encode_block.cuh"

#define QUADS (N * (INPUT == FLOAT32 ? 4 : 2) / 16)  // of 16 bytes in a block
#define NOT_FINITE 0x7FFFFFFFu

// Exponents of rows that are rotated without scaling, from NEAR_LOW to NEAR_HIGH. Below, squares that underflow could
// belong to blocks that are large enough to be coded. Above, the smallest weight of the type (2^-133, 2^-24 or 2^-149),
// divided by 2^exponent, by sqrt(N) and by the largest scale, could leave float32 and lose its sign. Where sqrt(N) is
// not a power of two, the smallest float32 weights lose their sign when they are multiplied by its inverse. So no row of
// float32 weights is near then.
#define EVEN (N == 64 || N == 256)
#define ROOT_BITS (N == 64 ? 3 : N == 256 ? 4 : 0)
#define NEAR_LOW -30
#define NEAR_HIGH (INPUT != FLOAT32 ? 6 : EVEN ? -10 : -31)

struct Row {
    bool finite, coded, near;
    int exponent;
    float up, down, unscale;
};

struct EncodeTables {
    const float *steps, *factors;
    float inverse_outermost, top, reach;  // the last cell with a centroid of its own, and where the table ends
    u32 pairs, values, centroids;
};

struct Scale {
    float stored_scale, s;  // as stored, and as decoded in units of 2^exponent
};

__device__ inline Row describe(u32 largest) {
    Row row;
    const float size = __uint_as_float(largest);
    row.finite = size < LARGEST;
    row.coded = row.finite && size >= SMALLEST;
    row.exponent = row.coded ? (int)(largest >> 23) - 127 : 0;
    row.near = row.exponent >= NEAR_LOW && row.exponent <= NEAR_HIGH;
    row.up = power_of_two(row.exponent);
    row.down = power_of_two(-row.exponent);
    row.unscale = row.near ? power_of_two(-row.exponent - ROOT_BITS) : 1.0f;
    return row;
}

__device__ inline void widen(const uint4* raw, float (&z)[N]) {
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const uint4 quad = raw[q];
        const u32 word[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (INPUT == FLOAT32) {
                z[4 * q + i] = __uint_as_float(word[i]);
            } else {
                float* pair = z + (INPUT == FLOAT32 ? 0 : 8 * q + 2 * i);
                pair[0] = INPUT == FLOAT16 ? half_to_float(word[i] & 0xFFFFu) : __uint_as_float(word[i] << 16);
                pair[1] = INPUT == FLOAT16 ? half_to_float(word[i] >> 16) : __uint_as_float(word[i] & 0xFFFF0000u);
            }
        }
    }
}

struct Measure {
    float energy, largest;  // of z
};

__device__ inline Measure measure(const float (&z)[N]) {
    return {tree_sum([&](int i) { return z[i] * z[i]; }), magnitude(z)};
}

__device__ inline void transform_near(float (&z)[N]) {
    rotate(z);
    if (!EVEN) scale_block(z, INVERSE_ROOT);
}

__device__ inline void transform_far(float (&z)[N], float down) {
    scale_block(z, down);
    rotate(z);
    scale_block(z, INVERSE_ROOT);
}

// The base that a block needs, in units of z, as the bits of a float. Without LOG8 infinity if its norm, which is that
// of z times `scale`, is too large for float16, else 0. NOT_FINITE for a block that is not finite.
__device__ inline u32 needed_base(float first, const Measure& m, float scale, float inverse_outermost) {
    if (first != first) return NOT_FINITE;  // the sum of all weights
    if (!LOG8) return float_to_half(__fsqrt_rn(m.energy) * scale) == 0x7C00 ? 0x7F800000u : 0;
    return __float_as_uint(fmaxf(__fsqrt_rn(m.energy * (1.0f / N)) * HEADROOM, m.largest * inverse_outermost));
}

// Where candidates start, and the one at which the largest coefficient meets the outermost centroid: steps for LOG8,
// else norms to be rounded. Without SEARCH the start is the only candidate.
struct SearchRange {
    float first, last;
};

__device__ inline SearchRange search_range(float energy, float outermost, float base, const EncodeTables& tables) {
    if (!LOG8) return {__fsqrt_rn(energy), outermost * ROOT};
    const float rms = __fsqrt_rn(energy * (1.0f / N)), divisor = base > 0.0f ? base : 1.0f;
    if (!SEARCH) return {(float)step_below(tables.steps, __fdiv_rn(rms * HALF_STEP, divisor)), 0.0f};
    return {(float)(step_below(tables.steps, __fdiv_rn(rms, divisor)) + SEARCH_LOW),
            (float)step_below(tables.steps, __fdiv_rn(outermost, divisor))};
}

__device__ inline Scale candidate(int j, const SearchRange& w, float base, const Row& row, const EncodeTables& tables) {
    const bool last = j == FACTORS;
    if (LOG8) {
        const float k = fminf(fmaxf(last ? w.last : w.first + (float)j, 1.0f), 255.0f);
        return {k, base * tables.steps[(int)k]};
    }
    const float norm = !SEARCH ? w.first : last ? w.last : w.first * tables.factors[j];
    const float stored_scale = half_to_float(float_to_half(norm * row.up));
    return {stored_scale, stored_scale * row.down * INVERSE_ROOT};
}

// `largest` is that of z.
__device__ inline Scale search(const float (&z)[N], float largest, const SearchRange& w, float base, const Row& row,
                               const EncodeTables& tables) {
    Scale best = candidate(0, w, base, row, tables);
    float least = INFINITY_;
#pragma unroll 1  // the body has two copies of N look-ups already; other counts were not measured
    for (int j = 0; j <= FACTORS; j++) {
        const Scale other = candidate(j, w, base, row, tables);
        const float inverse = other.s > 0.0f ? __fdiv_rn(PER_UNIT, other.s) * row.unscale : 0.0f;
        float cells;
        if (any_active(!(largest * inverse < tables.reach)))
            cells = error_by_cells<true>(z, inverse, tables.top, tables.values);
        else
            cells = error_by_cells<false>(z, inverse, tables.top, tables.values);
        const float error = cells * (other.s * other.s);
        if (error < least && other.s > 0.0f) {
            least = error;
            best = other;
        }
    }
    return best;
}

struct Largest {
    u32 weight, base;  // bits of floats that are not negative
};

struct Sums {
    u64 error, energy;
};

__device__ inline Largest combine(Largest a, Largest b) { return {max(a.weight, b.weight), max(a.base, b.base)}; }
__device__ inline Sums combine(Sums a, Sums b) { return {a.error + b.error, a.energy + b.energy}; }

__device__ inline Largest from_lane(Largest x, int mask) {
    return {__shfl_xor_sync(0xFFFFFFFFu, x.weight, mask), __shfl_xor_sync(0xFFFFFFFFu, x.base, mask)};
}
__device__ inline Sums from_lane(Sums x, int mask) {
    return {__shfl_xor_sync(0xFFFFFFFFu, x.error, mask), __shfl_xor_sync(0xFFFFFFFFu, x.energy, mask)};
}

// Combines what the threads of a row have, for every thread of it. All threads of the CTA call it.
template <class T>
__device__ inline T over_row(T value, uint4* scratch, int rows, int width, int mine) {
    T *values = (T*)scratch, *results = (T*)(scratch + blockDim.x);
    values[threadIdx.x] = value;
    __syncthreads();  // every thread's value is there
#pragma unroll 1      // rolled, because blocks fill the registers meanwhile; not measured
    for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
        T x = {};
#pragma unroll 1
        for (int i = threadIdx.x % 32; i < width; i += 32) x = combine(x, values[r * width + i]);
#pragma unroll
        for (int h = 16; h > 0; h /= 2) x = combine(x, from_lane(x, h));
        if (threadIdx.x % 32 == 0) results[r] = x;
    }
    __syncthreads();  // every row's result is there; the next call overwrites it after its first barrier
    return results[mine];
}

// Copies the tables, as encode/cuda_gpu.py lays them out, to where they are read from.
__device__ inline EncodeTables load_tables(u32* to, const u32* from, int cells) {
    constexpr int codes = 1 << BITS;
    const int lane = threadIdx.x % 32;
    u32 *pairs = to, *values = pairs + 2 * (SPAN + 1) * PAIR_COPIES;
    u32* rest = values + (SEARCH ? cells * VALUE_COPIES : 0);
    replicate(rest, from, REST, 1, 1);
    replicate(pairs, from + REST, SPAN + 1, 2, PAIR_COPIES);
    if (SEARCH) replicate(values, from + REST + 2 * (SPAN + 1), cells, 1, VALUE_COPIES);
    __syncthreads();  // the tables are there
    EncodeTables t;
    t.inverse_outermost = __uint_as_float(rest[0]);
    t.top = __uint_as_float(rest[1]);
    t.reach = (float)cells;
    t.steps = (const float*)rest + 2;
    t.factors = t.steps + 257;
    t.centroids = shared_address(t.factors + FACTORS);
    t.pairs = shared_address(pairs) + lane % PAIR_COPIES * 8 - MAGIC_BITS * (8u * PAIR_COPIES);
    t.values = shared_address(values) + lane % VALUE_COPIES * 4 - MAGIC_BITS * (4u * VALUE_COPIES);
    return t;
}

#if LOOP
#define EACH_BLOCK for (int inner = first; inner < blocks; inner += blockDim.x)
#else
#define EACH_BLOCK if (const int inner = first; active)
#endif

// weight:            (all_rows, all_blocks * N), INPUT; 16 bytes aligned
// rows_held:         rows that a CTA holds at once
// table:             kernel_table of encode/cuda_config.py; cells: values of the search at its end
// codes:             u8 (all_rows, row_bytes)
// scales:            u8 (all_rows, all_blocks) with LOG8, else fp16
// bases:             bf16 (all_rows,), with LOG8
// errors, energies:  float64 (all_rows,)
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    encode(const uint4* weight, i64 all_rows, i64 all_blocks, i64 rows_held, const u32* table, i64 cells, u8* codes,
           i64 row_bytes, void* scales, u16* bases, double* errors, double* energies) {
    extern __shared__ uint4 arena[];
    uint4* scratch = arena + (STAGED ? blockDim.x * (QUADS + 1) : 0);
    const EncodeTables tables = load_tables((u32*)(scratch + 2 * blockDim.x), table, (int)cells);
    const int rows = (int)all_rows, blocks = (int)all_blocks;  // below 2^31; their products need not be
    const int held = LOOP ? 1 : (int)rows_held, width = LOOP ? blockDim.x : blocks;
    const int mine = LOOP ? 0 : threadIdx.x / width, first = threadIdx.x - mine * width;
    const int groups = (rows + held - 1) / held;

    auto stage = [&](int group) {  // quads go to shared memory with a gap after each block: no bank conflicts
        const uint4* from = weight + (i64)group * held * blocks * QUADS + threadIdx.x;
        uint4* to = arena + threadIdx.x + threadIdx.x / QUADS;
        const int count = min(held, rows - group * held) * blocks * QUADS, step = blockDim.x;  // a multiple of QUADS
        for (int i = threadIdx.x; i < count; i += step, from += step, to += step + step / QUADS) cp_async_16(to, from);
    };
    if (STAGED && blockIdx.x < groups) stage(blockIdx.x);

    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
        const int row_index = group * held + mine;
        const i64 wide_row = row_index;
        const bool active = mine < held && row_index < rows;
        float z[N];
        Measure m = {0.0f, 0.0f};
        auto load_block = [&](int inner) {
            widen(STAGED ? arena + threadIdx.x * (QUADS + 1) : weight + (wide_row * blocks + inner) * QUADS, z);
        };
        auto reload_block = [&](int inner, const Row& row) {
            widen(weight + (wide_row * blocks + inner) * QUADS, z);
            if (row.near)
                transform_near(z);
            else
                transform_far(z, row.down);
            m = measure(z);
        };

        // The largest weight and the base.
        if (STAGED) {
            cp_async_wait_all();
            __syncthreads();  // the rows that every thread copied are there
        }
        Largest largest = {0, 0};
        EACH_BLOCK {
            load_block(inner);
            const u32 weight_bits = __float_as_uint(magnitude(z));
            transform_near(z);
            m = measure(z);
            const u32 base = needed_base(z[0], m, power_of_two(-ROOT_BITS), tables.inverse_outermost);
            largest = combine(largest, {weight_bits, base});
        }
        largest = over_row(largest, scratch, held, width, mine);
        // After the barriers of over_row every thread has read its block, so the next rows may overwrite it.
        if (STAGED && group + gridDim.x < groups) stage(group + gridDim.x);
        if (!active) largest = {0, 0};
        Row row = describe(largest.weight);
        if (largest.base == NOT_FINITE) row.finite = row.coded = false;
        const bool far = row.coded && !row.near;
        if (__syncthreads_or(far)) {  // the whole CTA goes there, because over_row has barriers
            Largest again = {0, 0};
            EACH_BLOCK {
                if (far) {
                    reload_block(inner, row);
                    again = combine(again, {0, needed_base(z[0], m, row.up, tables.inverse_outermost)});
                }
            }
            again = over_row(again, scratch, held, width, mine);
            if (far) largest = again;
        }
        const float rounded = __uint_as_float((largest.base + 0xFFFFu) & 0xFFFF0000u);  // up to bfloat16
        const float base = LOG8 && row.coded ? rounded * row.unscale : 0.0f;
        const bool too_large = !LOG8 && row.coded && largest.base != 0;

        // Scales and codes.
        Sums sums = {0, 0};
        EACH_BLOCK {
            Scale scale = {0.0f, 0.0f};
            u32 words[WORDS];
            bool kept = false;
            if (row.coded) {
                if (LOOP) reload_block(inner, row);
                const float energy = m.energy * (row.unscale * row.unscale);
                const SearchRange w =
                    search_range(energy, m.largest * row.unscale * tables.inverse_outermost, base, tables);
                scale = SEARCH ? search(z, m.largest, w, base, row, tables) : candidate(0, w, base, row, tables);
                float inverse = scale.s > 0.0f ? __fdiv_rn(1.0f, scale.s) * row.unscale : 0.0f;
                if (!row.near) {  // to lose the signs that the definition loses
                    scale_block(z, inverse);
                    inverse = 1.0f;
                }
                const float squares = code(z, inverse * COARSE, tables.pairs, tables.centroids, words);
                const float error = squares * (1.0f / (COARSE * COARSE)) * (scale.s * scale.s);
                kept = error < energy && scale.s > 0.0f;
                sums.error += (u64)((kept ? error : energy) * ERROR_UNIT);
                sums.energy += (u64)(energy * ERROR_UNIT);
            }
#pragma unroll
            for (int i = 0; i < WORDS; i++) words[i] = kept ? words[i] : 0;
            store_codes(codes + wide_row * row_bytes, blocks, inner, words);
            const float stored_scale = kept ? scale.stored_scale : 0.0f;
            if (LOG8)
                ((u8*)scales)[wide_row * blocks + inner] = (u8)(int)stored_scale;
            else
                ((u16*)scales)[wide_row * blocks + inner] = float_to_half(stored_scale);
        }

        // The row's sums.
        sums = over_row(sums, scratch, held, width, mine);
        if (active && first == 0) {
            const double unit = (double)row.up * (double)row.up * (1.0 / (double)ERROR_UNIT);
            errors[wide_row] = too_large ? (double)INFINITY_ : (double)sums.error * unit;
            energies[wide_row] = row.finite ? (double)sums.energy * unit : (double)__uint_as_float(0x7FC00000u);
            if (LOG8) bases[wide_row] = (u16)(__float_as_uint(base * row.up) >> 16);
        }
    }
}
