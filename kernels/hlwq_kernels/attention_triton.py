"""Attention of one token a sequence over its coded cache, for CUDA devices, in Triton.

Three kernels. The first rotates the queries. The second reads the cache once: a program takes all query heads of one
key/value head and a stretch of tokens, so codes are read once however many query heads share them; the last program
of a head takes the exact tokens. The third merges what they found, and rotates sums of values back, once.

Dot products are in float16, whose mantissa is three bits longer than bfloat16's: centroids fit it, queries are
divided by their largest value, and weights by the largest scale of their tile of values. Sums are float32.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl

from .cached import CachedTokens
from .device import current_device
from .heads_triton import load_centroids, rotate_heads
from .tokens import padded_dim, rotation_block

_ROWS = 16
TILE_VALUES, STAGES, _EXACT_TILE_VALUES = 16384, 3, 4096
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rotate_kernel(
    query, rotated, sizes, inverse_root, DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, PADDED)[None, :]
    x = tl.load(query + head * DIM + i, mask=i < DIM, other=0.0).to(tl.float32)
    z = rotate_heads(x, inverse_root, BLOCK)
    size = tl.max(tl.abs(z), axis=1)
    size = tl.where(size == 0.0, 1.0, size)
    tl.store(rotated + head * PADDED + i, (z / size[:, None]).to(tl.float16))
    tl.store(sizes + head + tl.arange(0, 1), size)


@triton.jit
def _logits(s, allowed, softcap, CAPPED: tl.constexpr):
    """Logits in units of ln 2, minus infinity where not allowed."""
    if CAPPED:
        s = softcap * (1.0 - 2.0 / (tl.exp(2.0 / softcap * s) + 1.0))
    return tl.where(allowed[None, :], s * _LOG2E, float("-inf"))


@triton.jit
def _advance(s, highest):
    """The running softmax's new maximum, the weights of a tile and what earlier sums fade by."""
    top = tl.maximum(highest, tl.max(s, axis=1))
    base = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.exp2(s - base[:, None]), tl.exp2(highest - base)


@triton.jit
def _allowed(mask, head, t, offset, inside, mask_stride, HEADS: tl.constexpr, MASKED: tl.constexpr):
    """Which tokens may be seen, those beyond the end among them not."""
    if MASKED:
        seen = tl.load(mask + (head // HEADS) * mask_stride + offset + t, mask=inside, other=0)
        return inside & (seen != 0)
    else:
        return inside


@triton.jit
def _read_codes(
    q, factor, k_codes, k_scales, v_codes, v_scales, k_table, v_table, steps, mask,
    head, begin, end, capacity, mask_stride, softcap,
    HEADS: tl.constexpr, TILE: tl.constexpr, K_BITS: tl.constexpr, K_STORED: tl.constexpr,
    V_BITS: tl.constexpr, V_STORED: tl.constexpr, V_PADDED: tl.constexpr, MASKED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """The running softmax over coded tokens `begin` .. `end` - 1; sums of values stay rotated."""
    highest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    weight = tl.zeros((q.shape[0],), tl.float32)
    total = tl.zeros((q.shape[0], V_PADDED), tl.float32)
    for start in range(begin, end, TILE):
        t = start + tl.arange(0, TILE)
        inside = t < end
        at = head * capacity + t
        allowed = _allowed(mask, head, t, 0, inside, mask_stride, HEADS, MASKED)
        k = load_centroids(k_codes, at, inside, k_table, K_BITS, K_STORED, q.shape[1])
        k_scale = tl.load(steps + tl.load(k_scales + at, mask=inside, other=0).to(tl.int32))
        s = tl.dot(q, tl.trans(k)) * factor[:, None] * k_scale[None, :]
        top, p, fade = _advance(_logits(s, allowed, softcap, CAPPED), highest)
        weight, highest = weight * fade + tl.sum(p, axis=1), top
        v = load_centroids(v_codes, at, inside, v_table, V_BITS, V_STORED, V_PADDED)
        v_scale = tl.load(steps + tl.load(v_scales + at, mask=allowed, other=0).to(tl.int32))
        largest = tl.max(v_scale, axis=0)
        largest = tl.where(largest == 0.0, 1.0, largest)
        shares = (p * (v_scale / largest)[None, :]).to(tl.float16)
        total = total * fade[:, None] + tl.dot(shares, v) * largest
    return highest, weight, total


@triton.jit
def _read_exact(
    q, k_exact, v_exact, mask, head, coded, exact, k_stride, v_stride, mask_stride, scaling, softcap,
    HEADS: tl.constexpr, TILE: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr, V_PADDED: tl.constexpr,
    MASKED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """The running softmax over the exact tokens."""
    d, e = tl.arange(0, q.shape[1]), tl.arange(0, V_PADDED)
    highest = tl.full((q.shape[0],), float("-inf"), tl.float32)
    weight = tl.zeros((q.shape[0],), tl.float32)
    total = tl.zeros((q.shape[0], V_PADDED), tl.float32)
    for start in range(0, exact, TILE):
        t = start + tl.arange(0, TILE)
        inside = t < exact
        allowed = _allowed(mask, head, t, coded, inside, mask_stride, HEADS, MASKED)
        place = k_exact + head * k_stride + t[:, None] * K_DIM + d[None, :]
        k = tl.load(place, mask=inside[:, None] & (d < K_DIM)[None, :], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        top, p, fade = _advance(_logits(s, allowed, softcap, CAPPED), highest)
        weight, highest = weight * fade + tl.sum(p, axis=1), top
        place = v_exact + head * v_stride + t[:, None] * V_DIM + e[None, :]
        v = tl.load(place, mask=inside[:, None] & (e < V_DIM)[None, :], other=0.0)
        total = total * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return highest, weight, total


@triton.jit(do_not_specialize=["coded", "exact", "stretch", "mask_stride"])  # they change as a text grows
def _attend_kernel(
    query, rotated, sizes, k_codes, k_scales, v_codes, v_scales, k_table, v_table, steps, k_exact, v_exact, mask,
    sums, highests, weights,
    coded, exact, stretch, capacity, k_stride, v_stride, mask_stride, scaling, softcap,
    GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EXACT_TILE: tl.constexpr,
    K_BITS: tl.constexpr, K_DIM: tl.constexpr, K_STORED: tl.constexpr, K_PADDED: tl.constexpr,
    V_BITS: tl.constexpr, V_DIM: tl.constexpr, V_STORED: tl.constexpr, V_PADDED: tl.constexpr,
    MASKED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    split, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    splits = tl.num_programs(0)
    r = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = (r < GROUP)[:, None]
    row = (head * GROUP + r)[:, None]
    d = tl.arange(0, K_PADDED)[None, :]
    if split < splits - 1:
        turned = tl.load(rotated + row * K_PADDED + d, mask=real & (d < K_STORED), other=0.0)
        factor = tl.load(sizes + head * GROUP + r, mask=r < GROUP, other=0.0) * scaling
        highest, weight, total = _read_codes(
            turned, factor, k_codes, k_scales, v_codes, v_scales, k_table, v_table, steps, mask,
            head, split * stretch, tl.minimum(split * stretch + stretch, coded), capacity, mask_stride, softcap,
            HEADS, TILE, K_BITS, K_STORED, V_BITS, V_STORED, V_PADDED, MASKED, CAPPED,
        )  # fmt: skip
    else:
        q = tl.load(query + row * K_DIM + d, mask=real & (d < K_DIM), other=0.0)
        highest, weight, total = _read_exact(
            q, k_exact, v_exact, mask, head, coded, exact, k_stride, v_stride, mask_stride, scaling, softcap,
            HEADS, EXACT_TILE, K_DIM, V_DIM, V_PADDED, MASKED, CAPPED,
        )  # fmt: skip
    part = (head * GROUP + r) * splits + split
    tl.store(highests + part, highest, mask=r < GROUP)
    tl.store(weights + part, weight, mask=r < GROUP)
    tl.store(sums + part[:, None] * V_PADDED + tl.arange(0, V_PADDED)[None, :], total, mask=real)


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    sums, highests, weights, out, splits, inverse_root,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, PADDED)
    highest = tl.full((1,), float("-inf"), tl.float32)
    weight = tl.zeros((1,), tl.float32)
    total = tl.zeros((1, PADDED), tl.float32)
    for start in range(0, splits - 1, AT_ONCE):
        i = start + tl.arange(0, AT_ONCE)
        part, there = row * splits + i, i < splits - 1
        top, share, fade = _advance(tl.load(highests + part, mask=there, other=float("-inf"))[None, :], highest)
        highest = top
        weight = weight * fade + tl.sum(share * tl.load(weights + part, mask=there, other=0.0)[None, :], axis=1)
        found = tl.load(sums + part[:, None] * PADDED + e[None, :], mask=there[:, None], other=0.0)
        share = share.reshape(AT_ONCE, 1)
        total = total * fade[:, None] + tl.sum(found * share, axis=0)[None, :]
    total = rotate_heads(total, inverse_root, BLOCK)
    last = row * splits + splits - 1 + tl.arange(0, 1)
    top, share, fade = _advance(tl.load(highests + last)[None, :], highest)
    share = share.reshape(1)
    weight = weight * fade + tl.load(weights + last) * share
    exact = tl.load(sums + last[:, None] * PADDED + e[None, :])
    total = total * fade[:, None] + exact * share[:, None]
    found = tl.where(weight[:, None] == 0.0, 0.0, total / weight[:, None])
    tl.store(out + row * DIM + e[None, :], found.to(out.dtype.element_ty), mask=(e < DIM)[None, :])


@lru_cache(maxsize=None)
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _stretch(coded: int, programs: int, resident: int, tile: int) -> int:
    """Tokens a program takes, in whole tiles: so many that all programs fit the device at once.

    Args:
        coded: tokens in codes.
        programs: what one stretch of every sequence and head takes; the exact tokens take as many.
        resident: programs that the device runs at once.
        tile: tokens read at once.
    """
    splits = max(1, resident // programs - 1)
    return max(tile, -(-coded // (splits * tile)) * tile)


def attend_triton(
    query: torch.Tensor,
    keys: CachedTokens,
    values: CachedTokens,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """Attention of one query a sequence; see `attend`.

    Args:
        query: (batch, query heads, dim).
        keys: with `first` = `coded`.
        values: likewise.
        mask: boolean (batch or 1, tokens), true where allowed; or None.
        scaling: of logits.
        softcap: of logits; 0 is none.

    Returns:
        (batch, query heads, dim of values), of the query's dtype.
    """
    batch, query_heads, dim = query.shape
    heads = keys.codes.shape[1]
    k_padded, v_padded = (triton.next_power_of_2(padded_dim(side.dim)) for side in (keys, values))
    widest = max(k_padded, v_padded)
    tile = _tile(widest, max(keys.tables.bits, values.tables.bits))
    exact_tile = min(64, max(16, _EXACT_TILE_VALUES // widest))
    chunks = triton.cdiv(query_heads // heads, _ROWS)
    resident = _processors(query.device) * (3 if widest <= 128 else 2)  # by the registers they take on sm_90
    stretch = _stretch(keys.coded, batch * heads * chunks, resident, tile)
    splits = triton.cdiv(keys.coded, stretch) + 1
    new = query.new_empty
    rotated = new(batch * query_heads, k_padded, dtype=torch.float16)
    sizes = new(batch * query_heads, dtype=torch.float32)
    sums = new(batch * query_heads, splits, v_padded, dtype=torch.float32)
    highests, weights = new(2, batch * query_heads, splits, dtype=torch.float32)
    out = new(batch, query_heads, values.dim)
    query, k_exact, v_exact = query.contiguous(), _by_head(keys.exact), _by_head(values.exact)
    if mask is not None:
        mask = mask.expand(batch, -1).contiguous().view(torch.uint8)
    with current_device(query.device):
        _rotate_kernel[(batch * query_heads,)](
            query, rotated, sizes, _inverse_root(dim),
            DIM=dim, PADDED=k_padded, BLOCK=rotation_block(dim), num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
        _attend_kernel[(splits, batch * heads, chunks)](
            query, rotated, sizes, keys.codes.view(torch.int32), keys.scales, values.codes.view(torch.int32),
            values.scales, _table(keys), _table(values), keys.tables.scales, k_exact, v_exact, mask,
            sums, highests, weights,
            keys.coded, k_exact.shape[2], stretch, keys.scales.shape[-1], k_exact.stride(1), v_exact.stride(1),
            0 if mask is None else mask.stride(0), scaling, softcap,
            GROUP=query_heads // heads, HEADS=heads, ROWS=_ROWS, TILE=tile, EXACT_TILE=exact_tile,
            K_BITS=keys.tables.bits, K_DIM=dim, K_STORED=padded_dim(dim), K_PADDED=k_padded,
            V_BITS=values.tables.bits, V_DIM=values.dim, V_STORED=padded_dim(values.dim), V_PADDED=v_padded,
            MASKED=mask is not None, CAPPED=softcap != 0.0,
            num_warps=4, num_stages=STAGES if query.dtype.itemsize == 2 else 1, enable_fp_fusion=True,
        )  # fmt: skip
        _merge_kernel[(batch * query_heads,)](
            sums, highests, weights, out, splits, _inverse_root(values.dim),
            DIM=values.dim, PADDED=v_padded, BLOCK=rotation_block(values.dim), AT_ONCE=16,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _tile(widest: int, bits: int) -> int:
    """Coded tokens read at once; wider codes, which are looked up in memory, take more registers."""
    return max(16, min(128, TILE_VALUES // widest // (1 if bits <= 4 else 2)))


def _table(side: CachedTokens) -> torch.Tensor:
    return side.tables.magnitudes if side.tables.bits <= 4 else side.tables.short


def _inverse_root(dim: int) -> float:
    return float(np.float32(rotation_block(dim) ** -0.5))


def _by_head(exact: torch.Tensor) -> torch.Tensor:
    """(batch, heads, tokens, dim) whose heads lie evenly apart, each of them without gaps."""
    _, heads, _, dim = exact.shape
    even = exact.stride()[2:] == (dim, 1) and exact.stride(0) == heads * exact.stride(1)
    return exact if even else exact.contiguous()
