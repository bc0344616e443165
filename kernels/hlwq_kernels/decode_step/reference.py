"""The references of a decode step: what its kernels compute, in plain torch, on any device."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from .types import DecodeCache, Norm


def fused_add_rmsnorm_pre_ffn_reference(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm: Norm,
    for_dense: Norm,
    for_experts: Norm | None,
    router_scale: torch.Tensor | None,
    router_root: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Compute `fused_add_rmsnorm_pre_ffn` in plain torch."""
    total = residual + norm.torch(x)
    if for_experts is None or router_scale is None:
        return total, for_dense.torch(total), None, None
    router_input = Norm(None, norm.eps).torch(total) * router_scale * router_root
    return total, for_dense.torch(total), for_experts.torch(total), router_input


def fused_add_rmsnorm_post_ffn_reference(
    dense: torch.Tensor,
    experts: torch.Tensor | None,
    residual: torch.Tensor,
    of_dense: Norm | None,
    of_experts: Norm | None,
    norm: Norm,
    scalar: torch.Tensor,
    following: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `fused_add_rmsnorm_post_ffn` in plain torch."""
    y = dense
    if experts is not None and of_dense is not None and of_experts is not None:
        y = of_dense.torch(dense) + of_experts.torch(experts)
    out = (residual + norm.torch(y)) * scalar
    return out, None if following is None else following.torch(out)


def qk_norm_rope_append_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    of_queries: Norm,
    of_keys: Norm,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    cache: DecodeCache,
) -> torch.Tensor:
    """Compute `qk_norm_rope_append` in plain torch."""
    size = cache.keys.shape[-1]
    heads = queries.shape[1] // size
    q, k = of_queries.torch(queries.unflatten(1, (heads, size))), of_keys.torch(keys.unflatten(1, (-1, size)))
    v = Norm(None, of_keys.eps).torch(values.unflatten(1, (-1, size)))
    cache.keys.index_copy_(2, cache.slot, apply_rope(k, cosines, sines)[:, :, None])
    cache.values.index_copy_(2, cache.slot, v[:, :, None])
    return apply_rope(q, cosines, sines)


def qk_norm_rope_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    of_queries: Norm,
    of_keys: Norm,
    table: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute `qk_norm_rope` in plain torch."""
    size = table.shape[1]
    q, k = (norm.torch(x.unflatten(1, (-1, size))) for norm, x in ((of_queries, queries), (of_keys, keys)))
    v = Norm(None, of_keys.eps).torch(values.unflatten(1, (-1, size)))
    cosines, sines = (torch.cat([half, half], dim=-1) for half in table[positions].chunk(2, dim=-1))
    return apply_rope(q, cosines, sines), apply_rope(k, cosines, sines), v


def apply_rope(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Return heads (rows, heads, size) rotated by their position; cosines and sines (rows, size)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines[:, None] + torch.cat([-second, first], dim=-1) * sines[:, None]


def decode_attention_reference(
    query: torch.Tensor, cache: DecodeCache, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Compute `decode_attention` in plain torch."""
    rows, heads, size = query.shape
    key_heads, length = cache.keys.shape[1], mask.shape[1]
    grouped = query.reshape(rows, key_heads, heads // key_heads, size)
    k, v = cache.keys[:, :, :length], cache.values[:, :, :length]
    return scaled_dot_product_attention(grouped, k, v, mask[:, None, None], scale=scaling).reshape(rows, -1)
