"""The choice of experts for a few tokens: moe/router.cu and its reference."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from ..common import CudaKernel, Scratch, dtype_macros
from ..decode_step import supports_decode_step

_ROUTE = CudaKernel("moe/router.cu", name="route_topk")
_THREADS = 128
_MAX_ROUTED_TOKENS = 16


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
    macros = (*dtype_macros(x), ("THREADS", _THREADS), ("EXPERTS", experts), ("TOP_K", k))
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
