"""Heads of tokens under Triton: their rotation, and codes of any width as centroids.

A head lies in a row of WIDTH values, the next power of two; those beyond its own hold zeros.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


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
def _load_plane(at, inside, WIDTH: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Fields of one plane of rows that begin at `at`: int32 (rows, PADDED), zeros beyond DIM."""
    per: tl.constexpr = 32 // WIDTH
    word = tl.arange(0, PADDED // per)
    words = tl.load(at[:, None] + word[None, :], mask=inside[:, None] & (word < DIM // per)[None, :], other=0)
    fields = (words[:, :, None] >> field_places(WIDTH)[None, None, :]) & ((1 << WIDTH) - 1)
    return fields.reshape(at.shape[0], PADDED)


@triton.jit
def load_head_codes(codes, row, inside, BITS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Codes of rows of int32 words: int32 (rows, PADDED)."""
    at = codes + row * (DIM * BITS // 32)
    first: tl.constexpr = 4 if BITS >= 4 else 2
    found = _load_plane(at, inside, first, DIM, PADDED)
    if BITS == 8:
        found |= _load_plane(at + DIM // 8, inside, 4, DIM, PADDED) << 4
    if BITS == 6 or BITS == 7:
        found |= _load_plane(at + DIM // 8, inside, 2, DIM, PADDED) << 4
    if BITS & 1:
        found |= _load_plane(at + DIM * (BITS - 1) // 32, inside, 1, DIM, PADDED) << (BITS - 1)
    return found


@triton.jit
def load_centroids(codes, row, inside, table, BITS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Centroids of rows, not yet scaled: float16 (rows, PADDED); beyond DIM, those of code 0.

    Of 4 bits and fewer, `table` is `TokenTables.magnitudes` and no code costs a load of its own; else it is `short`.
    """
    if BITS <= 4:
        return _look_up(_load_nibbles(codes, row, inside, BITS, DIM, PADDED), table)
    else:
        return tl.load(table + load_head_codes(codes, row, inside, BITS, DIM, PADDED))


@triton.jit
def _load_nibbles(codes, row, inside, BITS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Codes of up to 4 bits, each in the upper bits of its nibble, eight in order in a word: (rows, PADDED / 8)."""
    at = codes + row * (DIM * BITS // 32)
    if BITS == 4:
        word = tl.arange(0, PADDED // 8)
        return tl.load(at[:, None] + word[None, :], mask=inside[:, None] & (word < DIM // 8)[None, :], other=0)
    else:
        pairs = _load_groups(at, inside, 2, DIM, PADDED) & 0x00FF00FF
        pairs = (pairs | (pairs << 4)) & 0x0F0F0F0F
        nibbles = ((pairs | (pairs << 2)) & 0x33333333) << (4 - BITS)
        if BITS == 3:
            ones = _load_groups(at + DIM // 16, inside, 1, DIM, PADDED) & 0x000F000F
            ones = (ones | (ones << 6)) & 0x03030303
            nibbles |= ((ones | (ones << 3)) & 0x11111111) << 3
        return nibbles


@triton.jit
def _load_groups(at, inside, WIDTH: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """A plane's words, shifted so that eight codes begin at the lowest bits of each half: (rows, PADDED / 8)."""
    groups: tl.constexpr = 4 // WIDTH
    word = tl.arange(0, PADDED // (8 * groups))
    words = tl.load(at[:, None] + word[None, :], mask=inside[:, None] & (word < DIM // (8 * groups))[None, :], other=0)
    shifted = words[:, :, None] >> (tl.arange(0, groups) * (4 * WIDTH))[None, None, :]
    return shifted.reshape(at.shape[0], PADDED // 8)


@triton.jit
def _look_up(nibbles, magnitudes):
    """Centroids of eight codes a word, float16 (rows, 8 * words), by permuting the bytes of a table in registers.

    A symmetric codebook is eight magnitudes: the upper bit of a nibble is set where the centroid is positive, and the
    others count from the smallest magnitude up; where it is negative they count down.
    """
    negative = ((nibbles >> 3) & 0x11111111) ^ 0x11111111
    index = (nibbles & 0x77777777) ^ (negative * 7)
    a, b = _four(nibbles, index, magnitudes)
    c, d = _four(nibbles >> 16, index >> 16, magnitudes)
    pairs = tl.join(tl.join(a, c), tl.join(b, d))
    low = (pairs & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    high = ((pairs >> 16) & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True)
    return tl.join(low, high).reshape(nibbles.shape[0], 8 * nibbles.shape[1])


@triton.jit
def _four(nibbles, index, magnitudes):
    """The four codes of the lower half of a word, as two words of two float16 each."""
    zero = tl.zeros(nibbles.shape, tl.int32)
    low = permute_bytes(zero + tl.load(magnitudes), zero + tl.load(magnitudes + 1), index)
    high = permute_bytes(zero + tl.load(magnitudes + 2), zero + tl.load(magnitudes + 3), index)
    sign = permute_bytes(zero + 0x7F7F7F7F, zero, nibbles & 0x8888)  # 0 where positive, else 0x7F
    high |= (sign + 0x01010101) & -0x7F7F7F80
    return permute_bytes(low, high, zero + 0x5140), permute_bytes(low, high, zero + 0x7362)


@triton.jit
def permute_bytes(a, b, selector):
    """PTX's prmt: each nibble of the selector names a byte of b:a, or with its upper bit set, that byte's sign."""
    if _INTERPRETED:
        return _permute_slowly(a, b, selector)
    else:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, selector], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def _permute_slowly(a, b, selector):
    """What prmt does, for the interpreter, which has no assembler."""
    found = tl.zeros(a.shape, tl.int32)
    for i in tl.static_range(4):
        name = selector >> (4 * i)
        byte = (tl.where(name & 4 == 0, a, b) >> ((name & 3) * 8)) & 0xFF
        byte = tl.where(name & 8 == 0, byte, tl.where(byte & 0x80 == 0, 0, 0xFF))
        found |= byte << (8 * i)
    return found


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
