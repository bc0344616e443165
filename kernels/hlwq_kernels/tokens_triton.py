"""The encoder of cached tokens for CUDA devices, in Triton: the bytes of the torch twin.

A program codes a few heads. Sums are the twin's trees, multiply-adds are not fused, and the scale is found by
comparing, so nothing a device rounds otherwise decides a code.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from .device import current_device
from .heads_triton import rotate_heads, store_head_codes
from .tokens import SEARCH, THRESHOLDS, TokenTables, padded_dim, rotation_block

_T0, _T1, _T2, _T3 = (tl.constexpr(t) for t in THRESHOLDS)
_FIRST, _LAST = tl.constexpr(SEARCH[0]), tl.constexpr(SEARCH[-1])


@triton.jit
def _tree_sum(x):
    """The sum of each row, by folding the upper half onto the lower: (rows,)."""
    if x.shape[1] == 1:
        return x.reshape(x.shape[0])
    else:
        halves = tl.permute(x.reshape(x.shape[0], 2, x.shape[1] // 2), (0, 2, 1))
        a, b = tl.split(halves)
        return _tree_sum(a + b)


@triton.jit
def _scale_index(mean_square):
    """`tokens._scale_index`, by the exponent and mantissa of a float32."""
    word = mean_square.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    mantissa = ((word & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    above = (mantissa >= _T0).to(tl.int32) + (mantissa >= _T1).to(tl.int32)
    above += (mantissa >= _T2).to(tl.int32) + (mantissa >= _T3).to(tl.int32)
    k = 128 + 4 * ((word >> 23) - 127) + above
    k = tl.where(k < 253, tl.maximum(k, 0), 255)  # infinities and what is no number have the largest exponent
    return tl.where(mean_square == 0.0, 0, k)


@triton.jit
def _nearest(z, boundaries, BITS: tl.constexpr):
    """How many boundaries lie below each value, by halving."""
    found = tl.zeros(z.shape, tl.int32)
    for i in tl.static_range(BITS):
        half = 1 << (BITS - 1 - i)
        found += tl.where(z > tl.load(boundaries + found + half - 1), half, 0)
    return found


@triton.jit(do_not_specialize=["total"])
def _encode_kernel(
    tokens, codes, scales, boundaries, centroids, steps, total, inverse_root, inverse_dim,
    BITS: tl.constexpr, DIM: tl.constexpr, STORED: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < total
    i = tl.arange(0, PADDED)
    x = tl.load(tokens + row[:, None] * DIM + i[None, :], mask=inside[:, None] & (i < DIM)[None, :], other=0.0)
    z = rotate_heads(x.to(tl.float32), inverse_root, BLOCK)
    middle = _scale_index(_tree_sum(z * z) * inverse_dim)
    stored = (i < STORED)[None, :]
    best = tl.full((ROWS,), float("inf"), tl.float32)
    found = tl.zeros((ROWS,), tl.int32)
    kept = tl.zeros((ROWS, PADDED), tl.int32)
    for step in range(_FIRST, _LAST + 1):
        k = tl.minimum(tl.maximum(middle + step, 1), 254)
        s = tl.load(steps + k)
        code = _nearest(z * tl.div_rn(1.0, s)[:, None], boundaries, BITS)
        off = tl.where(stored, z - tl.load(centroids + code) * s[:, None], 0.0)
        error = _tree_sum(off * off)
        better = error < best
        best, found = tl.where(better, error, best), tl.where(better, k, found)
        kept = tl.where(better[:, None], code, kept)
    k = tl.where(middle == 0, 0, tl.where(middle >= 255, 255, found))
    tl.store(scales + row, k.to(tl.uint8), mask=inside)
    store_head_codes(codes, row, kept, inside, BITS, STORED)


def encode_tokens_triton(x: torch.Tensor, tables: TokenTables) -> tuple[torch.Tensor, torch.Tensor]:
    """See `encode_tokens`."""
    dim, stored, block = x.shape[-1], padded_dim(x.shape[-1]), rotation_block(x.shape[-1])
    padded = triton.next_power_of_2(stored)
    codes = torch.empty(*x.shape[:-1], stored * tables.bits // 8, dtype=torch.uint8, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.uint8, device=x.device)
    rows = max(1, 1024 // padded)
    if scales.numel():
        with current_device(x.device):
            _encode_kernel[(triton.cdiv(scales.numel(), rows),)](
                x.contiguous(), codes.view(torch.int32), scales, tables.boundaries, tables.centroids, tables.scales,
                scales.numel(), float(np.float32(block**-0.5)), float(np.float32(1.0 / stored)),
                BITS=tables.bits, DIM=dim, STORED=stored, PADDED=padded, BLOCK=block, ROWS=rows,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return codes, scales
