"""Blocks in Triton: the parts of the decoder.

A thread holds a whole block. Its n weights are a tuple of n / 8 tensors of shape (blocks, 8), so butterflies move no
data between threads. Between the tensors of the tuple they are plain additions; within a tensor `reshape` and `split`
only rename registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANE = tl.constexpr(8)
"""Weights in one tensor of a tuple: the content of a word of the 4-bit plane."""


@triton.jit
def rotate(x, GROUPS: tl.constexpr):
    """Rotate each block, as `hadamard.hadamard` does."""
    inner = ()
    for g in tl.static_range(GROUPS):
        inner = inner + (_butterflies(_butterflies(_butterflies(x[g], 1), 2), 4),)
    return _outward(inner, 1, GROUPS)


@triton.jit
def _outward(x, H: tl.constexpr, GROUPS: tl.constexpr):
    """Compute the stages between the tensors of a tuple, from H apart to GROUPS / 2."""
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
    """Compute one stage within tensors of (blocks, 8)."""
    rows: tl.constexpr = x.shape[0]
    pairs = x.reshape(rows, LANE // (2 * H), 2, H)
    a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    return tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)).reshape(rows, LANE)
