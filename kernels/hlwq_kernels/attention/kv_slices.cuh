// Slices of coded heads of tokens: 8, 16 or 32 neighbouring codes in a lane's registers, and pairs across two tokens.
// LutPair here begin at multiples of their size, so that the bits of an index need only be added
// to those of `copy`, which are a table's beginning and the lane's copy.

#include "common/dequant.cuh"

// A plane's part of a slice. A part of a word comes to its lower end: see codes/planes.py for what lies where in a
// word.
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
    static constexpr int ROW = DIM / 8 * B, A = Width<B>::PLANE_A, SECOND = Width<B>::PLANE_B,
                         THIRD = Width<B>::PLANE_C;
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
        const u32 left = y[i] << WIDTH, right = x[i] >> WIDTH;
        even[i] = left ^ ((x[i] ^ left) & mask);  // one instruction, which (x & mask) | (left & ~mask) is not
        odd[i] = y[i] ^ ((right ^ y[i]) & mask);
    }
}

// Codes of 8 bits to a byte each: those at even places in a, the others in b. Other widths stay as they are.
template <int CODES, int B>
__device__ __forceinline__ void join(PlanesOf<B>& w) {
    if constexpr (B == 8) {
        const PlanesOf<B> planes = w;
        cross_plane<4, CODES>(w.a, w.b, planes.a, planes.b);
    }
}

template <int CODES, int B>
__device__ __forceinline__ void cross(Crossed<B>& out, const PlanesOf<B>& x, const PlanesOf<B>& y) {
    if constexpr (Width<B>::PAIRS) {
        cross_plane<Width<B>::PLANE_A, CODES>(out.even.a, out.odd.a, x.a, y.a);
        if constexpr (Width<B>::PLANE_B != 0) cross_plane<Width<B>::PLANE_B, CODES>(out.even.b, out.odd.b, x.b, y.b);
    } else {  // codes are looked up one by one
        out.even = x, out.odd = y;
        join<CODES>(out.even), join<CODES>(out.odd);
    }
}

// A joined code, as fp16, from a table that begins at the bits of `copy`, twice over.
template <int CODE, int C, int B>
__device__ __forceinline__ u32 one(const PlanesOf<B>& w, u32 copy) {
    if constexpr (B != 8) return weight<CODE, C>(w, 0, copy);
    constexpr int byte = CODE / 2, from = byte % 4 * 8, to = LOW<C>;
    const u32 word = CODE % 2 ? w.b[byte / 4] : w.a[byte / 4];
    const u32 moved = from > to ? word >> (from > to ? from - to : 0) : word << (from > to ? 0 : to - from);
    return ld_shared(0, (moved & 0xFF << to) | copy);
}

// Codes 2 P and 2 P + 1 of a joined slice, as fp16.
template <int P, int C, int B>
__device__ __forceinline__ u32 along(const PlanesOf<B>& w, u32 copy) {
    if constexpr (Width<B>::PAIRS)
        return weights<P, C>(w, 0, copy);
    else
        return __byte_perm(one<2 * P, C>(w, copy), one<2 * P + 1, C>(w, copy), 0x5410);
}

// Code CODE of both tokens, as fp16.
template <int CODE, int C, int B>
__device__ __forceinline__ u32 across(const Crossed<B>& w, u32 copy) {
    if constexpr (Width<B>::PAIRS)
        return weights<CODE / 2, C>(CODE % 2 ? w.odd : w.even, 0, copy);
    else
        return __byte_perm(one<CODE, C>(w.even, copy), one<CODE, C>(w.odd, copy), 0x5410);
}
