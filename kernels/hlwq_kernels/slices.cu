// Slices of coded heads of tokens: 8, 16 or 32 neighbouring codes in a lane's registers, and pairs across two tokens.
// Joined behind lookup.cu.

// A plane's part of a slice. A part of a word comes to its lower end: see planes.py for what lies where in a word.
template <int WIDTH, int CODES>
__device__ __forceinline__ void load_plane(u32* out, const u8* at, int shift) {
  constexpr int WORDS = WIDTH * CODES / 32;
  if constexpr (WORDS >= 1)
    load_words<WORDS>(out, at);
  else
    out[0] = __ldcs((const u32*)at) >> shift;
}

// Reads slices of CODES codes of B bits, of heads of DIM values.
template <int B, int CODES, int DIM>
struct Reader {
  static constexpr int ROW = DIM / 8 * B, A = Width<B>::PLANE_A, SECOND = Width<B>::PLANE_B, THIRD = Width<B>::PLANE_C;
  const u8 *a, *b, *c;
  int shift_a, shift_b, shift_c;

  // From the slice that begins at code `first`, a multiple of CODES, of a row.
  __device__ __forceinline__ Reader(const u8* row, int first) {
    place<A>(a, shift_a, row, first);
    if constexpr (SECOND != 0) place<SECOND>(b, shift_b, row + DIM / 8 * A, first);
    if constexpr (THIRD != 0) place<THIRD>(c, shift_c, row + DIM / 8 * (A + SECOND), first);
  }

  template <int WIDTH>
  __device__ __forceinline__ static void place(const u8*& at, int& shift, const u8* plane, int first) {
    constexpr int per_word = 32 / WIDTH;
    at = plane + first / per_word * 4;
    shift = first % per_word / 8 * 4 * WIDTH;
  }

  // The slice `rows` rows and `codes` codes further on; of whole words.
  __device__ __forceinline__ void read(PlanesOf<B>& w, int rows, int codes) const {
    load_plane<A, CODES>(w.a, a + rows * ROW + codes / 8 * A, shift_a);
    if constexpr (SECOND != 0) load_plane<SECOND, CODES>(w.b, b + rows * ROW + codes / 8 * SECOND, shift_b);
    if constexpr (THIRD != 0) load_plane<THIRD, CODES>(w.c, c + rows * ROW + codes / 8 * THIRD, shift_c);
  }

  __device__ __forceinline__ void go_on(int rows) {
    const i64 bytes = (i64)rows * ROW;
    a += bytes;
    if (SECOND) b += bytes;
    if (THIRD) c += bytes;
  }
};

// The codes of two tokens in turns: `even` has those at even places, x's before y's, `odd` the others.
template <int B>
struct Crossed {
  PlanesOf<B> even, odd;
};

template <int WIDTH, int CODES>
__device__ __forceinline__ void cross_plane(u32* even, u32* odd, const u32* x, const u32* y) {
  constexpr u32 mask = WIDTH == 4 ? 0x0F0F0F0Fu : WIDTH == 2 ? 0x33333333u : 0x55555555u;
#pragma unroll
  for (int i = 0; i < (WIDTH * CODES + 31) / 32; i++) {
    even[i] = (x[i] & mask) | ((y[i] << WIDTH) & ~mask);
    odd[i] = ((x[i] >> WIDTH) & mask) | (y[i] & ~mask);
  }
}

template <int CODES, int B>
__device__ __forceinline__ void cross(Crossed<B>& out, const PlanesOf<B>& x, const PlanesOf<B>& y) {
  if constexpr (Width<B>::PAIRS) {
    cross_plane<Width<B>::PLANE_A, CODES>(out.even.a, out.odd.a, x.a, y.a);
    if constexpr (Width<B>::PLANE_B != 0) cross_plane<Width<B>::PLANE_B, CODES>(out.even.b, out.odd.b, x.b, y.b);
  } else {
    out.even = x, out.odd = y;  // codes are looked up one by one
  }
}

// Code CODE of both tokens, as fp16.
template <int CODE, int C, int B>
__device__ __forceinline__ u32 across(const Crossed<B>& w, u32 table, u32 copy) {
  if constexpr (Width<B>::PAIRS)
    return weights<CODE / 2, C>(CODE % 2 ? w.odd : w.even, table, copy);
  else
    return __byte_perm(weight<CODE, C>(w.even, table, copy), weight<CODE, C>(w.odd, table, copy), 0x5410);
}
