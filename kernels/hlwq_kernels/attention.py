"""Attention over a cache of codes."""

from __future__ import annotations

import torch

from .attention_torch import Rule, attend_torch
from .cached import CachedTokens

__all__ = ["CachedTokens", "Rule", "attend"]


def attend(
    query: torch.Tensor, keys: CachedTokens, values: CachedTokens, seen: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """Attention of the newest tokens over coded and exact ones; see `attend_torch`."""
    return attend_torch(query, keys, values, seen, rule)
