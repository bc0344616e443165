"""Attention of one new token over a dense cache, for transformers' attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ..transformers_private import attention_of, implementations, sdpa_attention_forward, sdpa_mask

NAME = "hlwq_step"


def step_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with the query heads of a key head as queries of that head, so that no key is copied.

    With a mask, transformers 5.17 would repeat the whole cache for each query head. Its own function handles everything
    but one token of plain attention.
    """
    special = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    batch, heads, queries, size = query.shape
    if queries != 1 or special:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, step_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def stepping(config: Any, experts: str | None = None) -> Iterator[None]:
    """Run decode steps with this attention, and with `experts` as experts implementation, inside this context."""
    with implementations(config, NAME if attention_of(config) == "sdpa" else None, experts):
        yield
