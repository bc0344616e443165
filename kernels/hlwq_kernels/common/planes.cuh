// The layout of codes in bit planes, as codes/planes.py defines it.
//
// Macros:
//   BITS  of a code, 2 to 8; bounds the words that a lane holds for 32 codes

#include "common/ptx.cuh"

// Constants of codes of B bits.
template <int B>
struct Width {
    static constexpr bool PAIRS = B <= 6;
    static constexpr int ENTRIES = 1 << (PAIRS ? 2 * B : B);  // of a lookup table
    static constexpr int PLANE_A = B >= 4 ? 4 : 2;            // widths of the planes, low bits first
    static constexpr int PLANE_B = B == 8 ? 4 : B == 6 || B == 7 ? 2 : B == 5 || B == 3 ? 1 : 0;
    static constexpr int PLANE_C = B == 7 ? 1 : 0;
};

constexpr bool PAIRS = Width<BITS>::PAIRS;
constexpr int ENTRIES = Width<BITS>::ENTRIES;
constexpr int PLANE_A = Width<BITS>::PLANE_A, PLANE_B = Width<BITS>::PLANE_B, PLANE_C = Width<BITS>::PLANE_C;

// The words of 32 codes, one array per plane.
template <int B>
struct PlanesOf {
    u32 a[Width<B>::PLANE_A], b[Width<B>::PLANE_B ? Width<B>::PLANE_B : 1], c[1];
};

using Planes = PlanesOf<BITS>;
