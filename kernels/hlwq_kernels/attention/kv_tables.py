"""Constants and tables of a quantized key/value cache.

A head of d values is padded with zeros to a multiple of 32; most sizes need no padding. It is rotated in blocks of the
largest power of two that divides the padded size, which is the whole head for 64, 128, 256 and 512. Its scale is one
byte k, which stands for 2^((k-128)/8), and for 0 where k = 0. A head whose root mean square is 2^15.5 or more, or not
finite, gets k = 255. That scale is NaN, so the head decodes to NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..codes import bits_of, ceil_div

STEPS_PER_OCTAVE = 8
UNIT_SCALE = 128
"""The scale byte of 1."""
NAN_SCALE = 255
"""The scale byte of a head that no scale can hold."""
SEARCH = (-3, -2, -1, 0, 1, 2)
"""Candidate scales, as steps from the root mean square. Fifteen steps of 1/16 octave would err 2 to 7 % less again."""


def _kv_scales() -> torch.Tensor:
    steps = [0.0] + [2.0 ** ((k - UNIT_SCALE) / STEPS_PER_OCTAVE) for k in range(1, NAN_SCALE)] + [float("nan")]
    return torch.tensor(steps, dtype=torch.float32)


KV_SCALES = _kv_scales()
"""float32 (256,): the scale of each scale byte."""

THRESHOLDS = tuple(float(np.float32(2.0 ** ((i + 0.5) / 4))) for i in range(4))
"""A mean square with mantissa m in [1, 2) lies as many quarter octaves up as there are thresholds at or below m."""


def padded_dim(dim: int) -> int:
    """Return how many values are stored of a head of `dim` values."""
    return ceil_div(dim, 32) * 32


def rotation_block(dim: int) -> int:
    """Return how many values of a head of `dim` values are rotated together."""
    padded = padded_dim(dim)
    return padded & -padded


class KVTables(NamedTuple):
    """A codebook on a device.

    Attributes:
        centroids: float32 (2^bits,), ascending.
        boundaries: float32 (2^bits - 1,), the midpoints between neighbours.
        scales: float32 (256,), `KV_SCALES`.
    """

    centroids: torch.Tensor
    boundaries: torch.Tensor
    scales: torch.Tensor

    @property
    def bits(self) -> int:
        """Width of a code."""
        return bits_of(self.centroids)

    @classmethod
    def of(cls, centroids: tuple[float, ...], device: torch.device) -> KVTables:
        """Return the tables of a codebook of 2^bits ascending values."""
        c = torch.tensor(centroids, dtype=torch.float64)
        middles = ((c[1:] + c[:-1]) / 2).to(torch.float32)
        return cls(*(t.to(device) for t in (c.to(torch.float32), middles, KV_SCALES)))
