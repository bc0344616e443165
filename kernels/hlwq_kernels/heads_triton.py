"""Heads of tokens under Triton: their rotation, and codes of any width to be stored.

A head lies in a row of WIDTH values, the next power of two; those beyond its own hold zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_heads(x, inverse_root, BLOCK: tl.constexpr):
    """Rotate each row of (rows, WIDTH) in blocks of BLOCK; the twin's additions in the twin's order."""
    return _butterflies(x, 1, BLOCK) * inverse_root


@triton.jit
def _butterflies(x, H: tl.constexpr, BLOCK: tl.constexpr):
    if H == BLOCK:
        return x
    else:
        rows: tl.constexpr = x.shape[0]
        width: tl.constexpr = x.shape[1]
        pairs = x.reshape(rows, width // (2 * H), 2, H)
        a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        joined = tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)).reshape(rows, width)
        return _butterflies(joined, 2 * H, BLOCK)


@triton.jit
def field_places(WIDTH: tl.constexpr):
    """Where in a 32-bit word of a plane of WIDTH bits its fields begin: see `planes`."""
    i = tl.arange(0, 32 // WIDTH)
    return ((i >> 2) & 1) * 16 + (i >> 3) * (4 * WIDTH) + (i & 3) * WIDTH


@triton.jit
def _store_plane(at, found, inside, SHIFT: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    per: tl.constexpr = 32 // WIDTH
    rows: tl.constexpr = found.shape[0]
    padded: tl.constexpr = found.shape[1]
    fields = ((found >> SHIFT) & ((1 << WIDTH) - 1)).reshape(rows, padded // per, per)
    words = tl.sum(fields << field_places(WIDTH)[None, None, :], axis=2)
    word = tl.arange(0, padded // per)
    tl.store(at[:, None] + word[None, :], words, mask=inside[:, None] & (word < DIM // per)[None, :])


@triton.jit
def store_head_codes(codes, row, found, inside, BITS: tl.constexpr, DIM: tl.constexpr):
    """`planes.pack_codes` of rows, as int32 words."""
    at = codes + row * (DIM * BITS // 32)
    first: tl.constexpr = 4 if BITS >= 4 else 2
    _store_plane(at, found, inside, 0, first, DIM)
    if BITS == 8:
        _store_plane(at + DIM // 8, found, inside, 4, 4, DIM)
    if BITS == 6 or BITS == 7:
        _store_plane(at + DIM // 8, found, inside, 4, 2, DIM)
    if BITS & 1:
        _store_plane(at + DIM * (BITS - 1) // 32, found, inside, BITS - 1, 1, DIM)
