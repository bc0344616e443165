// Slices of coded heads: 8, 16 or 32 neighbouring codes in a lane's registers, and pairs across two tokens.
//
// The tables of a LutPair begin at multiples of their size. So an address is the bits of an index or'ed with `copy`,
// which holds the table's address and the lane's copy.

#include "common/dequant.cuh"

// Loads a slice of one plane. Less than a word is shifted to the low bits. codes/planes.py defines the order in a word.
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

    // Starts at code `first` of a row, a multiple of CODES.
    __device__ __forceinline__ Reader(const u8* row, int first) {
        locate<A>(a, shift_a, row, first);
        if constexpr (SECOND != 0) locate<SECOND>(b, shift_b, row + DIM / 8 * A, first);
        if constexpr (THIRD != 0) locate<THIRD>(c, shift_c, row + DIM / 8 * (A + SECOND), first);
    }

    template <int WIDTH>
    __device__ __forceinline__ static void locate(const u8*& at, int& shift, const u8* plane, int first) {
        constexpr int per_word = 32 / WIDTH;
        at = plane + first / per_word * 4;
        shift = first % per_word / 8 * 4 * WIDTH;
    }

    // Loads the slice `rows` rows and `codes` codes further on. `codes` must fill whole words.
    __device__ __forceinline__ void read(PlanesOf<B>& w, int rows, int codes) const {
        load_plane<A, CODES>(w.a, a + rows * ROW + codes / 8 * A, shift_a);
        if constexpr (SECOND != 0) load_plane<SECOND, CODES>(w.b, b + rows * ROW + codes / 8 * SECOND, shift_b);
        if constexpr (THIRD != 0) load_plane<THIRD, CODES>(w.c, c + rows * ROW + codes / 8 * THIRD, shift_c);
    }

    __device__ __forceinline__ void advance(int rows) {
        const i64 bytes = (i64)rows * ROW;
        a += bytes;
        if (SECOND) b += bytes;
        if (THIRD) c += bytes;
    }
};

// The codes of two tokens x and y, interleaved: `even` holds codes 0, 2, ... of x and y in turn, `odd` the others.
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
        even[i] = left ^ ((x[i] ^ left) & mask);  // one instruction; (x & mask) | (left & ~mask) compiles to two
        odd[i] = y[i] ^ ((right ^ y[i]) & mask);
    }
}

// Joins the planes of 8-bit codes into bytes: even codes in a, odd codes in b. Does nothing for other widths.
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

// The weight of a joined code as fp16, in both halves. `copy` holds the table's address.
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
