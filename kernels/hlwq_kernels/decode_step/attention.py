"""Attention of a decode step over a dense cache, and what comes before it: norms of heads, RoPE, the append."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..codes import ceil_div
from ..common import CudaKernel, Scratch, dtype_macros
from .norms import Norm, supports_decode_step

_QK_NORM_ROPE = CudaKernel("decode_step/qk_norm_rope.cu", name="qk_norm_rope_append")
_ATTEND = CudaKernel("decode_step/decode_attention.cu", name="decode_attention")
_COMBINE = CudaKernel("decode_step/decode_attention.cu", name="combine_decode_splits")
_THREADS = 128
_SLOTS_A_ROUND = 32
_MAX_SPLITS = 64
"""Splits of a head at most: `combine_decode_splits` has room for so many."""


class DecodeCache(NamedTuple):
    """Keys and values (rows, key heads, slots, size), and the slot int64 (1,) of the new token."""

    keys: torch.Tensor
    values: torch.Tensor
    slot: torch.Tensor


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
    """Norm heads, turn queries and keys by their position, and put keys and values into the cache.

    Args:
        queries: (rows, heads * size); rows may lie apart.
        keys: (rows, key heads * size), likewise.
        values: likewise; their norm has no weight.
        of_queries: the norm.
        of_keys: likewise, of the same eps.
        cosines: (rows, size).
        sines: (rows, size).
        cache: to write to.

    Returns:
        (rows, heads, size).
    """
    rows, key_heads, slots, size = cache.keys.shape
    heads = queries.shape[1] // size
    if not supports_decode_step(queries) or size % 64:
        q, k = of_queries.torch(queries.unflatten(1, (heads, size))), of_keys.torch(keys.unflatten(1, (-1, size)))
        v = Norm(None, of_keys.eps).torch(values.unflatten(1, (-1, size)))
        cache.keys.index_copy_(2, cache.slot, apply_rope(k, cosines, sines)[:, :, None])
        cache.values.index_copy_(2, cache.slot, v[:, :, None])
        return apply_rope(q, cosines, sines)
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


def apply_rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Return heads (rows, heads, size) rotated by their position; cosines and sines (rows, size)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines[:, None] + torch.cat([-second, first], dim=-1) * sines[:, None]


def decode_attention(
    query: torch.Tensor, cache: DecodeCache, mask: torch.Tensor, scaling: float, scratch: Scratch
) -> torch.Tensor:
    """Attention of one new token over the first slots of a cache.

    Args:
        query: (rows, heads, size).
        cache: of as many rows.
        mask: (rows, length), added to the scores of as many slots.
        scaling: of scores.
        scratch: of this stream.

    Returns:
        (rows, heads * size).
    """
    rows, heads, size = query.shape
    key_heads, length = cache.keys.shape[1], mask.shape[1]
    group_size = heads // key_heads
    if query.dtype == torch.float32 or size % 64 or size > 512 or not supports_decode_step(query):
        grouped = query.reshape(rows, key_heads, group_size, size)
        k, v = cache.keys[:, :, :length], cache.values[:, :, :length]
        return scaled_dot_product_attention(grouped, k, v, mask[:, None, None], scale=scaling).reshape(rows, -1)
    group = max(g for g in (1, 2, 4) if group_size % g == 0)
    splits = max(1, min(ceil_div(length, _SLOTS_A_ROUND), _MAX_SPLITS, 528 * group // (heads * rows)))
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
