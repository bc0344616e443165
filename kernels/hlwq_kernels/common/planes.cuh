// The layout of codes in bit planes: see codes/planes.py.
//
// Macros: BITS of a code.

#include "common/ptx.cuh"

// Of codes of B bits.
template <int B>
struct Width {
    static constexpr bool PAIRS = B <= 6;
    static constexpr int ENTRIES = 1 << (PAIRS ? 2 * B : B);  // of a table
    static constexpr int PLANE_A = B >= 4 ? 4 : 2;            // widths of the planes, low bits first
    static constexpr int PLANE_B = B == 8 ? 4 : B == 6 || B == 7 ? 2 : B == 5 || B == 3 ? 1 : 0;
    static constexpr int PLANE_C = B == 7 ? 1 : 0;
};

constexpr bool PAIRS = Width<BITS>::PAIRS;
constexpr int ENTRIES = Width<BITS>::ENTRIES;
constexpr int PLANE_A = Width<BITS>::PLANE_A, PLANE_B = Width<BITS>::PLANE_B, PLANE_C = Width<BITS>::PLANE_C;

// 32 codes.
template <int B>
struct PlanesOf {
    u32 a[Width<B>::PLANE_A], b[Width<B>::PLANE_B ? Width<B>::PLANE_B : 1], c[1];
};

using Planes = PlanesOf<BITS>;
