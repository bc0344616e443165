// y = x W^T for a few tokens, straight from packed codes: W is read once, at its true width, and never decoded to memory.
//
// A warp takes 16 rows of W. Each lane reads 32 codes of two of them, a word at a time, looks two codes up at once in a
// table of pairs in shared memory (several copies, so that few lanes meet at a bank), multiplies by the block's scale as a
// share of the row's base, and hands the pair to the tensor cores as it is: it is the first operand of an MMA whose second
// are the rotated activations of up to 8 * TILES tokens. Sums are float32. Which warp takes what:
//
//   SPLIT warps share the columns of a row group; the other 8 / SPLIT of a CTA take other rows or, with SUMMED, other
//   experts of the same token, whose results are added with the router's weights.
//
// Macros: BITS; N, the block size; LOG8, whether scales are steps below a row's base, else fp16 norms; SPLIT; TILES;
// ALIGN, what the bytes of a row are a multiple of, 4, 8 or 16; OUTPUT, 0 float32, 1 bfloat16, 2 float16; EXPERTS, 0 none,
// 1 each row of x goes to one expert, 2 those of a token are summed; COPIES of the table.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef long long i64;

constexpr int WARPS = 8, ROWS = 16, CHUNK = 128, LANE_CODES = 32;
constexpr bool PAIRS = BITS <= 6;
constexpr int INDEX_BITS = PAIRS ? 2 * BITS : BITS;
constexpr int ENTRIES = 1 << INDEX_BITS, STRIDE = 4 * COPIES;
constexpr int PLANE_A = BITS >= 4 ? 4 : 2;                                   // widths of the planes, low bits first
constexpr int PLANE_B = BITS == 8 ? 4 : BITS == 6 || BITS == 7 ? 2 : BITS == 5 || BITS == 3 ? 1 : 0;
constexpr int PLANE_C = BITS == 7 ? 1 : 0;

struct Planes {
  u32 a[PLANE_A], b[PLANE_B ? PLANE_B : 1], c[1];
};
struct Piece {
  Planes row[2];
  u32 scale[2];
};

template <int WORDS>
__device__ __forceinline__ void load_words(u32* out, const u8* at) {
  if constexpr (ALIGN >= 16 && WORDS == 4) {
    uint4 v = __ldcs((const uint4*)at);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  } else if constexpr (ALIGN >= 8 && WORDS >= 2) {
#pragma unroll
    for (int w = 0; w < WORDS; w += 2) {
      uint2 v = __ldcs((const uint2*)(at + 4 * w));
      out[w] = v.x, out[w + 1] = v.y;
    }
  } else {
#pragma unroll
    for (int w = 0; w < WORDS; w++) out[w] = __ldcs((const u32*)(at + 4 * w));
  }
}

// The field pair (2p, 2p + 1) of a plane, p = 0 .. 15 within a lane's 32 codes, moved to bit TO. In a word the codes with
// bit 2 of their index clear fill the low half: see planes.py.
template <int WIDTH, int P, int TO>
__device__ __forceinline__ u32 fields(const u32* words) {
  constexpr int code = 2 * P, per_word = 32 / WIDTH, word = code / per_word, i = code % per_word;
  constexpr int from = (i & 4 ? 16 : 0) + (i / 8 * 4 + i % 4) * WIDTH;
  constexpr u32 mask = ((1u << 2 * WIDTH) - 1) << TO;
  return (from > TO ? words[word] >> (from > TO ? from - TO : 0) : words[word] << (from > TO ? 0 : TO - from)) & mask;
}

// As fields, one code of the pair.
template <int WIDTH, int CODE, int TO>
__device__ __forceinline__ u32 field(const u32* words) {
  constexpr int per_word = 32 / WIDTH, word = CODE / per_word, i = CODE % per_word;
  constexpr int from = (i & 4 ? 16 : 0) + (i / 8 * 4 + i % 4) * WIDTH;
  constexpr u32 mask = ((1u << WIDTH) - 1) << TO;
  return (from > TO ? words[word] >> (from > TO ? from - TO : 0) : words[word] << (from > TO ? 0 : TO - from)) & mask;
}

constexpr int LOW = STRIDE == 4 ? 2 : STRIDE == 8 ? 3 : STRIDE == 16 ? 4 : STRIDE == 32 ? 5 : STRIDE == 64 ? 6 : 7;

__device__ __forceinline__ u32 looked_up(u32 table, u32 at) {
  u32 value;
  asm("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(table + at));
  return value;
}

// Two weights as fp16, from the table.
template <int P>
__device__ __forceinline__ u32 weights(const Planes& w, u32 table, u32 copy) {
  if constexpr (PAIRS) {
    u32 at = copy | fields<PLANE_A, P, LOW>(w.a);
    if constexpr (PLANE_B != 0) at |= fields<PLANE_B, P, LOW + 2 * PLANE_A>(w.b);
    return looked_up(table, at);
  } else {
    u32 low = copy | field<4, 2 * P, LOW>(w.a) | field<PLANE_B, 2 * P, LOW + 4>(w.b);
    u32 high = copy | field<4, 2 * P + 1, LOW>(w.a) | field<PLANE_B, 2 * P + 1, LOW + 4>(w.b);
    if constexpr (PLANE_C != 0) {
      low |= field<1, 2 * P, LOW + 6>(w.c);
      high |= field<1, 2 * P + 1, LOW + 6>(w.c);
    }
    return __byte_perm(looked_up(table, low), looked_up(table, high), 0x5410);
  }
}

// Which code stands at which place of a table's index: the bits of `fields` in their order.
__device__ __forceinline__ void codes_of(u32 index, u32& low, u32& high) {
  low = index & ((1 << PLANE_A) - 1);
  high = index >> PLANE_A & ((1 << PLANE_A) - 1);
  if (PLANE_B) {
    u32 rest = index >> 2 * PLANE_A;
    low |= (rest & ((1 << PLANE_B) - 1)) << PLANE_A;
    high |= (rest >> PLANE_B & ((1 << PLANE_B) - 1)) << PLANE_A;
  }
}

__device__ __forceinline__ u32 as_half(float x) {
  u16 half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

__device__ __forceinline__ u32 times(u32 a, u32 b) {
  u32 product;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

__device__ __forceinline__ float from_bf16(u16 x) { return __uint_as_float((u32)x << 16); }

__device__ __forceinline__ float from_half(u16 x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
  return value;
}

__device__ __forceinline__ void multiply(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// Where a lane's next codes and scales lie, in each of its two rows.
struct Place {
  const u8 *a[2], *b[2], *c[2], *scale[2];
};

__device__ __forceinline__ Place place(const u8* codes, const u8* scales, i64 row, i64 rows, i64 columns, i64 first) {
  Place p;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    i64 at = row + 8 * r < rows ? row + 8 * r : row < rows ? row : 0;  // what is beyond the end is computed and dropped
    p.a[r] = codes + at * (columns / 8 * BITS) + first / 8 * PLANE_A;
    p.b[r] = codes + at * (columns / 8 * BITS) + columns / 8 * PLANE_A + first / 8 * PLANE_B;
    p.c[r] = codes + at * (columns / 8 * BITS) + columns / 8 * (PLANE_A + PLANE_B) + first / 8;
    p.scale[r] = scales + (at * (columns / N) + first / N) * (LOG8 ? 1 : 2);
  }
  return p;
}

// The words of a lane's 32 codes of both rows, and the scales of the blocks that they are in; then go on by SPLIT chunks.
__device__ __forceinline__ void fetch(Piece& piece, Place& p, bool inside) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (inside) {
      load_words<PLANE_A>(piece.row[r].a, p.a[r]);
      if constexpr (PLANE_B != 0) load_words<PLANE_B>(piece.row[r].b, p.b[r]);
      if constexpr (PLANE_C != 0) load_words<1>(piece.row[r].c, p.c[r]);
      piece.scale[r] = LOG8 ? (u32)*p.scale[r] : (u32)*(const u16*)p.scale[r];
    } else {
      piece.scale[r] = 0;
    }
    p.a[r] += SPLIT * CHUNK / 8 * PLANE_A;
    if (PLANE_B) p.b[r] += SPLIT * CHUNK / 8 * PLANE_B;
    if (PLANE_C) p.c[r] += SPLIT * CHUNK / 8;
    if (SPLIT * CHUNK % N == 0) p.scale[r] += SPLIT * CHUNK / N * (LOG8 ? 1 : 2);
  }
}

template <int P>
__device__ __forceinline__ void step(
    float (*sums)[4], const Piece& p, const u32* scales, const u32 (*x)[16], u32 table, u32 copy) {
  u32 a0 = times(weights<P>(p.row[0], table, copy), scales[0]), a1 = times(weights<P>(p.row[1], table, copy), scales[1]);
  u32 a2 = times(weights<P + 1>(p.row[0], table, copy), scales[0]);
  u32 a3 = times(weights<P + 1>(p.row[1], table, copy), scales[1]);
#pragma unroll
  for (int t = 0; t < TILES; t++) multiply(sums[t], a0, a1, a2, a3, x[t][P], x[t][P + 1]);
  if constexpr (P + 2 < 16) step<P + 2>(sums, p, scales, x, table, copy);
}

// `x` points at the lane's next 32 activations, in each tile those of its token.
__device__ __forceinline__ void consume(
    float (*sums)[4], const Piece& piece, const u16* const* x, int k, const float* inverse, u32 table, const u32* steps,
    u32 copy) {
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
  for (int r = 0; r < 2; r++) scales[r] = LOG8 ? steps[piece.scale[r]] : as_half(from_half(piece.scale[r]) * inverse[r]) * 0x10001;
  step<0>(sums, piece, scales, values, table, copy);
}

__device__ __forceinline__ void store(void* y, i64 at, float value) {
#if OUTPUT == 0
  ((float*)y)[at] = value;
#elif OUTPUT == 1
  u32 bits = __float_as_uint(value);
  ((u16*)y)[at] = value != value ? 0x7fff : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
  ((u16*)y)[at] = (u16)as_half(value);
#endif
}

__device__ __forceinline__ float load_bias(const void* bias, i64 at) {
#if OUTPUT == 0
  return ((const float*)bias)[at];
#elif OUTPUT == 1
  return from_bf16(((const u16*)bias)[at]);
#else
  return from_half(((const u16*)bias)[at]);
#endif
}

// The largest norm of a row: each of its four lanes looks at every fourth.
__device__ __forceinline__ float largest_norm(const u8* scales, i64 blocks, int quarter) {
  float largest = 0.0f;
  for (i64 b = quarter; b < blocks; b += 4) largest = fmaxf(largest, from_half(((const u16*)scales)[b]));
  largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 1));
  return fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, 2));
}

__device__ __forceinline__ void make_tables(u32* table, u32* step_table, const float* centroids, const float* steps) {
  for (int entry = threadIdx.x; entry < ENTRIES; entry += 32 * WARPS) {
    u32 low = entry, high = entry;
    if (PAIRS) codes_of(entry, low, high);
    u32 value = as_half(centroids[low]) | as_half(centroids[high]) << 16;
#pragma unroll
    for (int c = 0; c < COPIES; c++) table[entry * COPIES + c] = value;
  }
  if (LOG8)
    for (int k = threadIdx.x; k < 256; k += 32 * WARPS) step_table[k] = as_half(steps[k]) * 0x10001;
}

// x fp16 (tokens, columns) and units float32 (tokens,), as rotate_rows leaves them; codes, scales, base of (experts,) rows;
// centroids float32 (2^BITS,); steps float32 (256,); bias of y's type or null; y (tokens, rows).
// EXPERTS 1: row i of y is row i / share of x times expert chosen[i].
// EXPERTS 2: row i of y is the sum over j of row i * share + j of x times expert chosen[i * share + j], each weighed by
// routed, float32, at the same place. An expert that is not there counts as zeros.
extern "C" __global__ __launch_bounds__(32 * WARPS, TILES == 1 ? 3 : 2) void multiply_codes(
    const u16* x, const float* units, i64 tokens, const u8* codes, const u8* scales, const u16* base,
    const float* centroids, const float* steps, const void* bias, i64 rows, i64 columns, const i64* chosen,
    const float* routed, i64 share, i64 experts, void* y) {
  __shared__ u32 table[ENTRIES * COPIES];
  __shared__ u32 step_table[256];
  __shared__ float sums_of[WARPS][TILES][ROWS][8];
  constexpr int WAYS = WARPS / SPLIT;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quarter = lane % 4, part = warp % SPLIT, way = warp / SPLIT;
  const u32 table_at = (u32)__cvta_generic_to_shared(table);
  // Through a shuffle, so that the compiler does not know its bits: it would mask them anew for every pair.
  const u32 copy = __shfl_sync(0xffffffff, threadIdx.x % COPIES * 4, threadIdx.x % 32);
  const i64 row = (EXPERTS == 2 ? (i64)blockIdx.x : (i64)blockIdx.x * WAYS + way) * ROWS + lane / 4;
  const i64 first = part * CHUNK + quarter * LANE_CODES;
  const i64 jobs = EXPERTS == 2 ? share : 1, step_of_jobs = EXPERTS == 2 ? WAYS : 1;
  const bool mine = row - lane / 4 < rows;
  const float root = N == 32 ? 0.17677669529663687f : N == 64 ? 0.125f : N == 128 ? 0.08838834764831845f : 0.0625f;
  float total[TILES][4] = {};
  bool tables = false;
  for (i64 job = EXPERTS == 2 ? way : 0;; job += step_of_jobs) {
    const bool any = mine && job < jobs;
    i64 expert = 0, token = 0;
    if (EXPERTS == 1) token = blockIdx.y / share;
    if (EXPERTS == 2) token = blockIdx.y * share + job;
    if (EXPERTS && any) expert = chosen[EXPERTS == 1 ? (i64)blockIdx.y : token];
    const bool known = any && expert >= 0 && expert < experts;
    Place at = place(codes + (known ? expert : 0) * rows * (columns / 8 * BITS),
                     scales + (known ? expert : 0) * rows * (columns / N) * (LOG8 ? 1 : 2), row, rows, columns, first);
    const Place start = at;
    Piece now = {}, next = {};
    fetch(now, at, known && first < columns);  // on its way while the tables are made
    float size[2] = {};
#pragma unroll
    for (int r = 0; r < 2; r++)
      if (LOG8 && known && row + 8 * r < rows) size[r] = from_bf16(base[expert * rows + row + 8 * r]);
    if (!tables) {
      make_tables(table, step_table, centroids, steps);
      __syncthreads();
#if __CUDA_ARCH__ >= 900
      asm volatile("griddepcontrol.wait;");
#endif
      tables = true;
    }
    if (job >= jobs || !mine) break;
    if (!known) continue;
    float inverse[2] = {};
    if (!LOG8)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        size[r] = largest_norm(start.scale[r] - first / N * 2, columns / N, quarter);
        inverse[r] = size[r] > 0.0f ? 1.0f / size[r] : 0.0f;
        size[r] *= root;
      }
    const i64 wide = EXPERTS ? 1 : tokens;
    const u16* lane_x[TILES];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      i64 mine_of_tile = lane / 4 + 8 * t;  // a lane without a token takes the last one's: what it makes of it is dropped
      lane_x[t] = x + (token + (mine_of_tile < wide ? mine_of_tile : wide - 1)) * columns;
    }
    float sums[TILES][4] = {};
    const int end = (int)columns, stride = SPLIT * CHUNK;
    for (int k = (int)first; k - quarter * LANE_CODES < end; k += stride) {
      if constexpr (SPLIT * CHUNK % N != 0)
#pragma unroll
        for (int r = 0; r < 2; r++) at.scale[r] = start.scale[r] + ((k + stride) / N - (int)first / N) * (LOG8 ? 1 : 2);
      fetch(next, at, k + stride < end);
      // A lane beyond the end has scales of zero; it reads activations that are there.
      consume(sums, now, lane_x, k < end ? k : 0, inverse, table_at, step_table, copy);
      now = next;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float weight = EXPERTS == 2 ? size[r] * routed[token] : size[r];
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const i64 column = 2 * quarter + i + 8 * t;
          if (column < wide) total[t][2 * r + i] += sums[t][2 * r + i] * weight * units[token + column];
        }
    }
  }
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums_of[warp][t][lane / 4 + i / 2 * 8][2 * quarter + i % 2] = total[t][i];
  __syncthreads();
  constexpr int SHARED_BY = EXPERTS == 2 ? WARPS : SPLIT, GROUPS = WARPS / SHARED_BY;
  for (int i = threadIdx.x; i < GROUPS * TILES * 8 * ROWS; i += 32 * WARPS) {
    const int row_in = i % ROWS, column = i / ROWS % (8 * TILES), which = i / ROWS / (8 * TILES);
    const i64 out = ((i64)blockIdx.x * GROUPS + which) * ROWS + row_in;
    if (out >= rows || column >= (EXPERTS ? 1 : tokens)) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < SHARED_BY; w++) sum += sums_of[which * SHARED_BY + w][column / 8][row_in][column % 8];
    if (!EXPERTS && bias) sum += load_bias(bias, out);
    store(y, (EXPERTS ? (i64)blockIdx.y : column) * rows + out, sum);
  }
}
