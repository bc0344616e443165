"""Attention of a decode step over a dense cache, and the launch before it: norms of heads, RoPE, appending."""

from __future__ import annotations

import ctypes

import torch

from ..codes import ceil_div
from ..common import CudaKernel, Scratch, dtype_macros
from .norms import supports_decode_step
from .reference import decode_attention_reference, qk_norm_rope_append_reference
from .types import DecodeCache, Norm

_QK_NORM_ROPE = CudaKernel("decode_step/qk_norm_rope.cu", name="qk_norm_rope_append")
_ATTEND = CudaKernel("decode_step/decode_attention.cu", name="decode_attention")
_COMBINE = CudaKernel("decode_step/decode_attention.cu", name="combine_decode_splits")
_THREADS = 128
"""Threads of a CTA: four warps, each with slots of its own. Not measured against other numbers."""
_MIN_SPLIT_SLOTS = 32
"""A split takes at least so many slots of the cache, eight per warp. Not measured against other numbers."""
_MAX_SPLITS = 64
"""Splits per head: `combine_decode_splits` holds the fractions of so many in shared memory."""
_MAX_SPLIT_CTAS = 528
"""CTAs of a launch: 4 on each of an H100's 132 multiprocessors. Not measured against other numbers."""


def qk_norm_rope_append(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    of_queries: Norm,
    of_keys: Norm,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cache: DecodeCache,
) -> torch.Tensor:
    """Apply the norms of heads, rotate queries and keys by their position, and write keys and values to the cache.

    Args:
        queries: (rows, heads * size); the stride of rows is free.
        keys: (rows, key heads * size), likewise.
        values: likewise; their norm has no weight.
        of_queries: the norm of queries.
        of_keys: the norm of keys, with the same eps.
        cosines: (rows, size).
        sines: (rows, size).
        cache: to write to.

    Returns:
        (rows, heads, size).
    """
    rows, key_heads, slots, size = cache.keys.shape
    heads = queries.shape[1] // size
    if not supports_decode_step(queries) or size % 64:
        return qk_norm_rope_append_reference(queries, keys, values, of_queries, of_keys, cosines, sines, cache)
    out = queries.new_empty(rows, heads, size)
    macros = (*dtype_macros(queries), ("THREADS", 32), ("SIZE", size), ("QUERIES", heads), ("KEYS", key_heads))
    _QK_NORM_ROPE.launch(
        queries.device,
        macros,
        (heads + 2 * key_heads, rows),
        32,
        queries,
        queries.stride(0),
        keys,
        keys.stride(0),
        values,
        values.stride(0),
        of_queries.weight,
        of_keys.weight,
        cosines,
        sines,
        cache.slot,
        ctypes.c_float(of_keys.eps),
        out,
        cache.keys,
        cache.values,
        slots,
        overlap=True,
    )
    return out


def decode_attention(
    query: torch.Tensor, cache: DecodeCache, mask: torch.Tensor, scaling: float, scratch: Scratch
) -> torch.Tensor:
    """Compute attention of one new token per sequence over the first slots of a cache.

    Args:
        query: (rows, heads, size).
        cache: with as many rows.
        mask: (rows, length), added to the scores of the first `length` slots.
        scaling: of scores.
        scratch: of the current stream.

    Returns:
        (rows, heads * size).
    """
    rows, heads, size = query.shape
    key_heads, length = cache.keys.shape[1], mask.shape[1]
    group_size = heads // key_heads
    if query.dtype == torch.float32 or size % 64 or size > 512 or not supports_decode_step(query):
        return decode_attention_reference(query, cache, mask, scaling)
    group = max(g for g in (1, 2, 4) if group_size % g == 0)
    splits = max(1, min(ceil_div(length, _MIN_SPLIT_SLOTS), _MAX_SPLITS, _MAX_SPLIT_CTAS * group // (heads * rows)))
    y = torch.empty_like(query)
    room = scratch.floats(rows * heads * splits * (size + 2), query.device)
    sums, sizes = room, room[rows * heads * splits * size :]
    macros = (*dtype_macros(query), ("THREADS", _THREADS), ("SIZE", size), ("GROUP", group))
    _ATTEND.launch(
        query.device,
        macros,
        (splits, heads // group, rows),
        _THREADS,
        query,
        cache.keys,
        cache.values,
        key_heads,
        cache.keys.shape[2],
        length,
        mask,
        ctypes.c_float(scaling),
        sums,
        sizes,
        overlap=True,
    )
    _COMBINE.launch(query.device, macros, (rows * heads,), max(32, size // 4), sums, sizes, splits, y, overlap=True)
    return y.view(rows, -1)
