"""RMS norms as one kernel each, for decode steps.

transformers computes an RMS norm in up to nine operations. With one token, each costs a launch, whatever it computes,
and the 26B Gemma 4 has 11 norms in each of 30 layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import rms_norm

from ..transformers_private import replaced_forwards

ULPS = 2
"""Roundings by which a fused norm may differ. A norm that rounds before it multiplies by its weight differs by one."""


@torch.no_grad()
def fusible_norms(model: nn.Module) -> list[nn.Module]:
    """Return the norms that torch's `rms_norm` computes the same way. Each is tried on numbers of its own dtype."""
    return [m for m in model.modules() if _looks_like_one(m) and _is_computed_alike(m)]


@contextmanager
def fused_norms(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Run these norms as one kernel each inside this context."""
    with replaced_forwards({norm: partial(_normed, norm) for norm in norms}):
        yield


def _looks_like_one(module: nn.Module) -> bool:
    named = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    return named and isinstance(_epsilon(module), float)


def _is_computed_alike(norm: nn.Module) -> bool:
    """Return whether a norm multiplies by its weight, and not by 1 + weight as Gemma 3 does."""
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
