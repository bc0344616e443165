"""Attention of a decode step over a dense cache, and the launch before it: norms of heads, RoPE, appending."""

from __future__ import annotations

import ctypes

import torch

from ..codes import ceil_div
from ..common import CudaKernel, Scratch, dtype_macros
from .norms import supports_decode_step
from .reference import decode_attention_reference, qk_norm_rope_append_reference, qk_norm_rope_reference
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
    rows, size = len(cache.keys), cache.keys.shape[-1]
    heads = queries.shape[1] // size
    if not supports_decode_step(queries) or size % 64:
        return qk_norm_rope_append_reference(queries, keys, values, of_queries, of_keys, cosines, sines, cache)
    out = queries.new_empty(rows, heads, size)
    _launch_qk_norm_rope(
        (queries, keys, values), of_queries, of_keys, (cosines, sines), cache.slot, (out, cache.keys, cache.values)
    )
    return out


def qk_norm_rope(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    of_queries: Norm,
    of_keys: Norm,
    table: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Apply the norms of heads, and rotate queries and keys by their positions.

    Args:
        queries: (rows, heads * size); the stride of rows is free.
        keys: (rows, key heads * size), likewise.
        values: likewise; their norm has no weight.
        of_queries: the norm of queries.
        of_keys: the norm of keys, with the same eps.
        table: (positions, size): the cosines of size / 2 angles, then their sines, of the dtype of `queries`.
        positions: int64 (rows,).

    Returns:
        (rows, heads, size) and twice (rows, key heads, size).
    """
    size = table.shape[1]
    heads, key_heads = queries.shape[1] // size, keys.shape[1] // size
    if not supports_decode_step(queries) or size % 64:
        return qk_norm_rope_reference(queries, keys, values, of_queries, of_keys, table, positions)
    out = queries.new_empty(len(queries), heads, size)
    k, v = (queries.new_empty(len(queries), key_heads, 1, size) for _ in range(2))
    _launch_qk_norm_rope((queries, keys, values), of_queries, of_keys, (table, None), positions, (out, k, v))
    return out, k.squeeze(2), v.squeeze(2)


def _launch_qk_norm_rope(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    of_queries: Norm,
    of_keys: Norm,
    angles: tuple[torch.Tensor, torch.Tensor | None],
    slot: torch.Tensor,
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Launch the kernel; with one table of angles, `slot` holds the positions of the rows."""
    (out, key_cache, value_cache), queries = outputs, heads[0]
    if not out.numel():
        return
    rows, count, size = out.shape
    key_heads, slots = key_cache.shape[1:3]
    macros = (
        *dtype_macros(queries), ("THREADS", 32), ("SIZE", size), ("QUERIES", count), ("KEYS", key_heads),
        ("TABLE", int(angles[1] is None)),
    )  # fmt: skip
    _QK_NORM_ROPE.launch(
        queries.device,
        macros,
        (count + 2 * key_heads, rows),
        32,
        *(each for t in heads for each in (t, t.stride(0))),
        of_queries.weight,
        of_keys.weight,
        *angles,
        slot,
        ctypes.c_float(of_keys.eps),
        out,
        key_cache,
        value_cache,
        slots,
        overlap=True,
    )


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
