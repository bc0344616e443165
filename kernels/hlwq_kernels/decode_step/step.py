"""What a step of one new token a sequence does between products of weights, in few launches; each with its torch twin.

At one token a launch costs more than what it computes: the 26B Gemma 4 takes 53 launches a layer as transformers writes
it, of which 9 multiply by weights. Whatever torch would round in between is rounded here as there.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from ..common.cuda_kernel import CudaKernel, Macros, supports_nvrtc
from ..common.device import DTYPE_IDS

_BETWEEN = CudaKernel("decode_step/norms.cu", name="fused_add_rmsnorm_pre_ffn")
_AFTER = CudaKernel("decode_step/norms.cu", name="fused_add_rmsnorm_post_ffn")
_HEADS = CudaKernel("decode_step/qk_norm_rope.cu", name="qk_norm_rope_append")
_ROUTE = CudaKernel("moe/router.cu", name="route_topk")
_ATTEND = CudaKernel("decode_step/decode_attention.cu", name="decode_attention")
_JOIN = CudaKernel("decode_step/decode_attention.cu", name="combine_decode_splits")
_THREADS = 128
_SLOTS_A_ROUND = 32
_MAX_SPLITS = 64
_MAX_ROUTED_TOKENS = 16


class Norm(NamedTuple):
    """An RMS norm: weight (columns,) or None, and what is added to the mean square."""

    weight: torch.Tensor | None
    eps: float

    def torch(self, x: torch.Tensor) -> torch.Tensor:
        """As torch has it."""
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


def supports_decode_step(x: torch.Tensor) -> bool:
    """Whether rows like `x` (rows, columns) are computed by these kernels, and not by their twins."""
    return x.shape[-1] % 8 == 0 and x.shape[-1] <= 8192 and x.dtype in DTYPE_IDS and supports_nvrtc(x.device)


class Scratch:
    """Device memory that kernels on one stream share between launches.

    Outgrown buffers are kept, because CUDA graphs may point to them.
    """

    def __init__(self) -> None:
        self._floats: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []
        self._side: torch.cuda.Stream | None = None
        self._beside: Scratch | None = None

    def beside(self) -> Scratch:
        """Room for what runs on another stream."""
        self._beside = self._beside or Scratch()
        return self._beside

    def side(self, device: torch.device) -> torch.cuda.Stream:
        """A stream for what does not depend on the rest of a step."""
        self._side = self._side or torch.cuda.Stream(device)
        return self._side

    def floats(self, count: int, device: torch.device) -> torch.Tensor:
        """At least so many."""
        if not self._floats or self._floats[-1].numel() < count:
            self._floats.append(torch.empty(count, dtype=torch.float32, device=device))
        return self._floats[-1]

    def counts(self, count: int, device: torch.device) -> torch.Tensor:
        """At least so many zeros; a kernel leaves them zero."""
        if not self._counts or self._counts[-1].numel() < count:
            self._counts.append(torch.zeros(count, dtype=torch.int32, device=device))
        return self._counts[-1]


def fused_add_rmsnorm_pre_ffn(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: Norm,
    for_dense: Norm,
    for_experts: Norm | None,
    router_scale: torch.Tensor | None,
    router_root: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Between attention and what follows: sum = residual + norm(x), and norms of it.

    Args:
        x: (rows, columns).
        residual: (rows, columns).
        norm: of x.
        for_dense: of the sum.
        for_experts: of the sum, or None where there are no experts.
        router_scale: (columns,), by which a norm of the sum without weight is multiplied, or None likewise.
        router_root: a factor of that, too.

    Returns:
        The sum, its norm for the dense layer, for the experts, for their router; (rows, columns) each.
    """
    if not supports_decode_step(x):
        total = residual + norm.torch(x)
        if for_experts is None or router_scale is None:
            return total, for_dense.torch(total), None, None
        router_input = Norm(None, norm.eps).torch(total) * router_scale * router_root
        return total, for_dense.torch(total), for_experts.torch(total), router_input
    routes = for_experts is not None
    total, dense = torch.empty_like(x), torch.empty_like(x)
    experts, router = (torch.empty_like(x), torch.empty_like(x)) if routes else (None, None)
    _BETWEEN.launch(
        x.device,
        _macros(x),
        (len(x),),
        _threads(x),
        x,
        residual,
        norm.weight,
        for_dense.weight,
        None if for_experts is None else for_experts.weight,
        router_scale,
        ctypes.c_float(router_root),
        ctypes.c_float(norm.eps),
        total,
        dense,
        experts,
        router,
        overlap=True,
    )
    return total, dense, experts, router


def fused_add_rmsnorm_post_ffn(
    dense: torch.Tensor,
    experts: torch.Tensor | None,
    residual: torch.Tensor,
    of_dense: Norm | None,
    of_experts: Norm | None,
    norm: Norm,
    scalar: torch.Tensor,
    following: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Behind a layer: (residual + norm(norm(dense) + norm(experts))) * scalar, and the next layer's norm of that.

    Args:
        dense: (rows, columns).
        experts: (rows, columns), or None where there are none; then the norm is of `dense` as it is.
        residual: (rows, columns).
        of_dense: of `dense`, where there are experts.
        of_experts: of `experts`, where there are.
        norm: of the sum.
        scalar: (1,).
        following: or None.

    Returns:
        (rows, columns) each, the second None without `following`.
    """
    if not supports_decode_step(dense):
        y = dense
        if experts is not None and of_dense is not None and of_experts is not None:
            y = of_dense.torch(dense) + of_experts.torch(experts)
        out = (residual + norm.torch(y)) * scalar
        return out, None if following is None else following.torch(out)
    out, follows = torch.empty_like(dense), None if following is None else torch.empty_like(dense)
    weights = [None if n is None else n.weight for n in (of_dense, of_experts, norm)]
    _AFTER.launch(
        dense.device,
        _macros(dense),
        (len(dense),),
        _threads(dense),
        dense,
        experts,
        residual,
        *weights,
        scalar,
        None if following is None else following.weight,
        ctypes.c_float(norm.eps),
        out,
        follows,
        overlap=True,
    )
    return out, follows


class Cache(NamedTuple):
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
    cache: Cache,
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
    macros = (*_types(queries), ("THREADS", 32), ("SIZE", size), ("QUERIES", heads), ("KEYS", key_heads))
    _HEADS.launch(
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
    query: torch.Tensor, cache: Cache, mask: torch.Tensor, scaling: float, scratch: Scratch
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
    splits = max(1, min(-(-length // _SLOTS_A_ROUND), _MAX_SPLITS, 528 * group // (heads * rows)))
    y = torch.empty_like(query)
    room = scratch.floats(rows * heads * splits * (size + 2), query.device)
    sums, sizes = room, room[rows * heads * splits * size :]
    macros = (*_types(query), ("THREADS", _THREADS), ("SIZE", size), ("GROUP", group))
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
    _JOIN.launch(query.device, macros, (rows * heads,), max(32, size // 4), sums, sizes, splits, y, overlap=True)
    return y.view(rows, -1)


def route_topk(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, k: int, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k experts of largest softmax(x weight^T), and their probabilities times their scales.

    Probabilities are normalized to a sum of 1 first.

    Args:
        x: (tokens, columns).
        weight: (experts, columns).
        scale: (experts,).
        k: how many.
        scratch: of this stream.

    Returns:
        int64 and float32 (tokens, k), the largest first.
    """
    experts = len(weight)
    if not supports_decode_step(x) or len(x) > _MAX_ROUTED_TOKENS or experts > 1024:
        probs, topk_ids = linear(x, weight).softmax(-1, dtype=torch.float32).topk(k, dim=-1)
        return topk_ids, probs / probs.sum(-1, keepdim=True) * scale[topk_ids]
    topk_ids = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    topk_weights = torch.empty(len(x), k, dtype=torch.float32, device=x.device)
    macros = (*_types(x), ("THREADS", _THREADS), ("EXPERTS", experts), ("TOP_K", k))
    _ROUTE.launch(
        x.device,
        macros,
        (experts, len(x)),
        _THREADS,
        x,
        x.shape[1],
        weight,
        scale,
        scratch.floats(len(x) * experts, x.device),
        scratch.counts(len(x), x.device),
        topk_ids,
        topk_weights,
        overlap=True,
    )
    return topk_ids, topk_weights


def _types(x: torch.Tensor) -> Macros:
    return ("INPUT", DTYPE_IDS[x.dtype]), ("OUTPUT", DTYPE_IDS[x.dtype])


def _threads(x: torch.Tensor) -> int:
    return -(-x.shape[-1] // 256) * 32


def _macros(x: torch.Tensor) -> Macros:
    return (*_types(x), ("THREADS", _threads(x)), ("COLUMNS", x.shape[-1]))
