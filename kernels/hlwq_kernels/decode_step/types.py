"""Arguments that the operations of a decode step share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import rms_norm


class Norm(NamedTuple):
    """An RMS norm: weight (columns,) or None, and what is added to the mean square."""

    weight: torch.Tensor | None
    eps: float

    def torch(self, x: torch.Tensor) -> torch.Tensor:
        """Return the norm of `x` as torch computes it."""
        return rms_norm(x, x.shape[-1:], self.weight, self.eps)


class DecodeCache(NamedTuple):
    """Keys and values (rows, key heads, slots, size), and the slot int64 (1,) of the new token."""

    keys: torch.Tensor
    values: torch.Tensor
    slot: torch.Tensor
