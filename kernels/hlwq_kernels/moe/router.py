"""The experts of each token, for a few tokens: launches of moe/router.cu."""

from __future__ import annotations

import torch

from ..common import CudaKernel, Scratch, dtype_macros
from ..decode_step import supports_decode_step
from .reference import route_topk_reference

_ROUTE = CudaKernel("moe/router.cu", name="route_topk")
_THREADS = 128
"""Threads of a CTA, which multiplies a row of the router's weight. Not measured against other numbers."""
_MAX_ROUTED_TOKENS = 16
"""Tokens of a launch. Each takes a CTA per expert, and each CTA reads a weight row again. Not measured."""
_MAX_EXPERTS = 1024
"""Experts: the last CTA of a token holds their logits in shared memory. tests/gpu/test_decode_step.py runs so many."""


def route_topk(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, k: int, scratch: Scratch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k experts with the largest softmax(x weight^T), and their probabilities times their scales.

    Before the scales are applied, the k probabilities are normalized to a sum of 1.

    Args:
        x: (tokens, columns).
        weight: (experts, columns).
        scale: (experts,).
        k: experts per token.
        scratch: of the current stream.

    Returns:
        int64 and float32 (tokens, k), the largest first.
    """
    experts = len(weight)
    if not supports_decode_step(x) or len(x) > _MAX_ROUTED_TOKENS or experts > _MAX_EXPERTS:
        return route_topk_reference(x, weight, scale, k)
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
