"""Bit planes in Triton: a thread unpacks a whole block, word by word, in the order of `planes`."""

from __future__ import annotations

import triton
import triton.language as tl

from .blocks_triton import LANE


@triton.jit
def _load_words(at, inside, COUNT: tl.constexpr, PIECE: tl.constexpr):
    """Load COUNT words from `at` (blocks,) on, PIECE words per load: a tuple of int32 (blocks,)."""
    words = ()
    for first in tl.static_range(0, COUNT, PIECE):
        index = (at + first)[:, None] + tl.arange(0, PIECE)[None, :]
        words = words + _columns(tl.load(index, mask=inside[:, None], other=0), PIECE)
    return words


@triton.jit
def _columns(x, COUNT: tl.constexpr):
    """Return the columns of (blocks, COUNT), as a tuple."""
    if COUNT == 1:
        return (x.reshape(x.shape[0]),)
    else:
        low, high = tl.split(tl.permute(x.reshape(x.shape[0], 2, COUNT // 2), (0, 2, 1)))
        return _columns(low, COUNT // 2) + _columns(high, COUNT // 2)


@triton.jit
def _load_plane(
    row_start,
    blocks,
    inner,
    inside,
    BELOW: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Load the fields of one plane, shifted to their position in the code: a tuple of (blocks, 8)."""
    block_bytes: tl.constexpr = GROUPS * WIDTH
    start_bytes: tl.constexpr = GROUPS * BELOW
    either: tl.constexpr = 16 | ALIGN | block_bytes | start_bytes
    piece: tl.constexpr = (either & -either) // 4
    at = (row_start + blocks * start_bytes + inner * block_bytes).to(tl.pointer_type(tl.int32))
    words = _load_words(at, inside, block_bytes // 4, piece)
    i = tl.arange(0, LANE)
    shifts = ((i & 3) * WIDTH + (i >> 2) * 16)[None, :]
    fields = ()
    for g in tl.static_range(GROUPS):
        word = words[g * WIDTH // 4] >> (4 * (g % (4 // WIDTH)) * WIDTH)
        fields = fields + (((word[:, None] >> shifts) & ((1 << WIDTH) - 1)) << BELOW,)
    return fields


@triton.jit
def _either(a, b, GROUPS: tl.constexpr):
    joined = ()
    for g in tl.static_range(GROUPS):
        joined = joined + (a[g] | b[g],)
    return joined


@triton.jit
def load_codes(row_start, blocks, inner, inside, BITS: tl.constexpr, GROUPS: tl.constexpr, ALIGN: tl.constexpr):
    """Unpack one block per thread, as `planes.unpack_codes` does: a tuple of int32 (blocks, 8)."""
    first: tl.constexpr = 4 if BITS >= 4 else 2
    codes = _load_plane(row_start, blocks, inner, inside, 0, first, GROUPS, ALIGN)
    if BITS == 8:
        codes = _either(codes, _load_plane(row_start, blocks, inner, inside, 4, 4, GROUPS, ALIGN), GROUPS)
    if BITS == 6 or BITS == 7:
        codes = _either(codes, _load_plane(row_start, blocks, inner, inside, 4, 2, GROUPS, ALIGN), GROUPS)
    if BITS & 1:
        codes = _either(codes, _load_plane(row_start, blocks, inner, inside, BITS - 1, 1, GROUPS, ALIGN), GROUPS)
    return codes
