// What the kernels that multiply by codes share: planes in, pairs of weights out.
//
// Two codes are looked up at once in a table of pairs in shared memory, of which several copies lie side by side, so that
// few lanes meet at a bank; from 7 bits on pairs are too many, and codes are looked up one by one.
//
// Macros: BITS; ALIGN, what the bytes of a row are a multiple of, 4, 8 or 16; COPIES of the table; INPUT and OUTPUT, the
// types of activations and results, 0 float32, 1 bfloat16, 2 float16; THREADS of a CTA.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef long long i64;

constexpr int LANE_CODES = 32;
constexpr bool PAIRS = BITS <= 6;
constexpr int ENTRIES = 1 << (PAIRS ? 2 * BITS : BITS), STRIDE = 4 * COPIES;
constexpr int PLANE_A = BITS >= 4 ? 4 : 2;                                   // widths of the planes, low bits first
constexpr int PLANE_B = BITS == 8 ? 4 : BITS == 6 || BITS == 7 ? 2 : BITS == 5 || BITS == 3 ? 1 : 0;
constexpr int PLANE_C = BITS == 7 ? 1 : 0;

struct Planes {
  u32 a[PLANE_A], b[PLANE_B ? PLANE_B : 1], c[1];
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
__device__ __forceinline__ void codes_of(const u32 index, u32& low, u32& high) {
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

__device__ __forceinline__ float from_bf16(u16 x) { return __uint_as_float((u32)x << 16); }

__device__ __forceinline__ float from_half(u16 x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
  return value;
}

__device__ __forceinline__ float load_input(const void* x, i64 at) {
#if INPUT == 0
  return ((const float*)x)[at];
#elif INPUT == 1
  return from_bf16(((const u16*)x)[at]);
#else
  return from_half(((const u16*)x)[at]);
#endif
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

// A lane's own centroid, to be asked for early.
__device__ __forceinline__ float own_centroid(const float* centroids) {
  return __ldg(centroids + threadIdx.x % 32 % (1 << BITS));
}

// Whole warps call this. Neighbouring threads write neighbouring words, so that no two meet at a bank.
__device__ __forceinline__ void make_table(u32* table, const float* centroids, float own) {
  constexpr int WIDE = COPIES >= 4 ? 4 : 1;
#pragma unroll 4
  for (int i = threadIdx.x; i < ENTRIES * COPIES / WIDE; i += THREADS) {
    u32 low = i * WIDE / COPIES, high = low;
    if (PAIRS) codes_of(low, low, high);
    const float a = BITS <= 5 ? __shfl_sync(0xffffffff, own, low) : __ldg(centroids + low);
    const float b = BITS <= 5 ? __shfl_sync(0xffffffff, own, high) : __ldg(centroids + high);
    const u32 value = as_half(a) | as_half(b) << 16;
    if constexpr (WIDE == 4)
      ((uint4*)table)[i] = make_uint4(value, value, value, value);
    else
      table[i] = value;
  }
}

// Where a launch overlaps with the kernel before: nothing that one wrote may be read before this.
__device__ __forceinline__ void wait_for_the_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the next kernel may start to prepare itself, where it is launched to overlap.
__device__ __forceinline__ void let_the_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
