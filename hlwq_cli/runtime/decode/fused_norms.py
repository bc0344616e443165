"""RMS norms as one kernel each, for steps of one token.

transformers writes an RMS norm out in as many as nine operations. At one token each costs a launch, whatever it
computes, and the 26B Gemma 4 has 11 norms in each of 30 layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import rms_norm

ULPS = 2
"""Roundings by which a fused norm may differ: a norm that rounds before it multiplies by its weight differs by one."""


@torch.no_grad()
def fusible_norms(model: nn.Module) -> list[nn.Module]:
    """Those norms of a model that one kernel computes as they do; each is tried, on numbers of its own dtype."""
    return [m for m in model.modules() if _looks_like_one(m) and _is_computed_alike(m)]


@contextmanager
def fused(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Within, these norms are one kernel each."""
    before = [norm.__dict__.get("forward") for norm in norms]
    for norm in norms:
        norm.forward = partial(_normed, norm)
    try:
        yield
    finally:
        for norm, forward in zip(norms, before, strict=True):
            if forward is None:
                del norm.__dict__["forward"]
            else:
                norm.forward = forward


def _looks_like_one(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    return named and isinstance(_epsilon(module), float)


def _is_computed_alike(norm: nn.Module) -> bool:
    """Whether it multiplies by its weight as it is, and not by 1 + weight, as Gemma 3 does."""
    weight = _weight(norm)
    size, like = (64, torch.ones(1)) if weight is None else (weight.shape[-1], weight)
    x = torch.linspace(-3, 3, 2 * size, device=like.device).reshape(2, size).to(like.dtype)
    expected, found = norm(x), _normed(norm, x)
    rounding = ULPS * torch.finfo(x.dtype).eps
    return expected.dtype == found.dtype and torch.allclose(found, expected, rtol=rounding, atol=rounding)


def _epsilon(norm: nn.Module) -> float | None:
    epsilon: float | None = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    return epsilon


def _weight(norm: nn.Module) -> torch.Tensor | None:
    return norm._parameters.get("weight")


def _normed(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, x.shape[-1:], _weight(norm), _epsilon(norm))
