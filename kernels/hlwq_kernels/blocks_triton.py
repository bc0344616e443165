"""Blocks under Triton: what the CUDA encoder and decoder are made of.

A thread holds a whole block. Its n weights are a tuple of n / 8 tensors of shape (blocks, 8), each loaded as one
vector per thread, so that butterflies and the folds of the tree sum move no data between threads: between the tensors
of the tuple they are plain additions, within a tensor `reshape` and `split` only rename registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANE = tl.constexpr(8)
"""Weights in one tensor of a tuple: what a word of the 4-bit plane holds."""


@triton.jit
def load_block(weight, start, mask, GROUPS: tl.constexpr):
    """Load the blocks that begin at `start` (int64 (blocks,)), as float32; zeros where `mask` is false."""
    loaded = ()
    for g in tl.static_range(GROUPS):
        loaded = loaded + (_load_lane(weight + start + g * LANE, mask),)
    return loaded


@triton.jit
def _load_lane(at, mask):
    """One vector of 16 bytes a thread; for float32 two, since Triton would give the halves to different threads."""
    if at.dtype.element_ty == tl.float32:
        half: tl.constexpr = LANE // 2
        index = at[:, None] + tl.arange(0, half)[None, :]
        low = tl.load(index, mask=mask[:, None], other=0.0)
        high = tl.load(index + half, mask=mask[:, None], other=0.0)
        return tl.permute(tl.join(low, high), (0, 2, 1)).reshape(at.shape[0], LANE)
    index = at[:, None] + tl.arange(0, LANE)[None, :]
    return tl.load(index, mask=mask[:, None], other=0.0).to(tl.float32)


@triton.jit
def power_of_two(exponent):
    """2^exponent, exactly."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def rotate(x, GROUPS: tl.constexpr):
    """`hadamard.hadamard` of each block."""
    inner = ()
    for g in tl.static_range(GROUPS):
        inner = inner + (_butterflies(_butterflies(_butterflies(x[g], 1), 2), 4),)
    return _outward(inner, 1, GROUPS)


@triton.jit
def _outward(x, H: tl.constexpr, GROUPS: tl.constexpr):
    """The stages between the tensors of a tuple, from H apart to GROUPS / 2."""
    made = ()
    for g in tl.static_range(GROUPS):
        if g & H == 0:
            made = made + (x[g] + x[g + H],)
        else:
            made = made + (x[g - H] - x[g],)
    if 2 * H < GROUPS:
        return _outward(made, 2 * H, GROUPS)
    else:
        return made


@triton.jit
def _butterflies(x, H: tl.constexpr):
    """One stage within tensors of (blocks, 8)."""
    rows: tl.constexpr = x.shape[0]
    pairs = x.reshape(rows, LANE // (2 * H), 2, H)
    a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    return tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)).reshape(rows, LANE)


@triton.jit
def fold(e, GROUPS: tl.constexpr):
    """`hadamard.tree_sum` of each block: (blocks,)."""
    if GROUPS == 1:
        lane = e[0]
        half = _upper_on_lower(_upper_on_lower(lane, 8), 4)
        a, b = tl.split(half)
        return a + b
    else:
        half_groups: tl.constexpr = GROUPS // 2
        folded = ()
        for g in tl.static_range(half_groups):
            folded = folded + (e[g] + e[g + half_groups],)
        return fold(folded, half_groups)


@triton.jit
def _upper_on_lower(x, SIZE: tl.constexpr):
    a, b = tl.split(tl.permute(x.reshape(x.shape[0], 2, SIZE // 2), (0, 2, 1)))
    return a + b


@triton.jit
def normalized(x, down, inverse_root, GROUPS: tl.constexpr):
    """Rotated blocks of rows whose largest weight was scaled into [1, 2)."""
    scaled = ()
    for g in tl.static_range(GROUPS):
        scaled = scaled + (x[g] * down[:, None],)
    turned = rotate(scaled, GROUPS)
    z = ()
    for g in tl.static_range(GROUPS):
        z = z + (turned[g] * inverse_root,)
    return z


@triton.jit
def tree_energy(z, GROUPS: tl.constexpr):
    """Each block's sum of squares."""
    squares = ()
    for g in tl.static_range(GROUPS):
        squares = squares + (z[g] * z[g],)
    return fold(squares, GROUPS)


@triton.jit
def magnitude(z, GROUPS: tl.constexpr):
    """Each block's largest magnitude."""
    largest = tl.abs(z[0])
    for g in tl.static_range(1, GROUPS):
        largest = tl.maximum(largest, tl.abs(z[g]))
    return tl.max(largest, axis=1)
