"""The constant tables that decide codes and scales. Every device reads the same float32 values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

Float32Array = npt.NDArray[np.float32]

# 2^(j/32): the only source of fractional powers of two, so that no device's exp2 can decide a scale.
OCTAVE = np.array([2.0 ** (j / 32) for j in range(32)], dtype=np.float32)
HALF_STEP = float(np.float32(2.0 ** (0.5 / 32)))

LARGEST = 2.0**120
"""Weights must stay below this, so that nothing decoded can overflow float32."""
SMALLEST = 2.0**-110
"""A row whose largest weight is below this is coded as zeros."""
ERROR_UNIT = 2.0**36
"""Errors and energies of blocks are in units of the square of the power of two of their row's largest weight. They are
cut to multiples of 1 / ERROR_UNIT and summed over the row as integers: exact in any order, for rows of up to 2^24
weights."""


def _scale_steps() -> Float32Array:
    steps = np.zeros(256, dtype=np.float32)
    for k in range(1, 256):
        octaves_down = -((k - 255) // 32)
        steps[k] = math.ldexp(float(OCTAVE[(k - 255) % 32]), -octaves_down)
    return steps


SCALE_STEPS = _scale_steps()
"""float32 (256,): the `log8` scale k as a fraction of its row's base: 0 for k = 0, else 2^((k - 255) / 32)."""

SEARCH_LOW, SEARCH_HIGH = -16, 12
"""The range of the scale search, in steps of 1/32 octave from the block's root mean square."""

SEARCH_FACTORS = np.array(
    [math.ldexp(float(OCTAVE[j % 32]), j // 32) for j in range(SEARCH_LOW, SEARCH_HIGH + 1)], dtype=np.float32
)
"""float32 (29,): 2^(j/32) for j = -16 .. 12."""


def bits_of(centroids: torch.Tensor | Float32Array) -> int:
    """Return the width of the codes of a codebook of 2^bits centroids."""
    return len(centroids).bit_length() - 1


@dataclass(frozen=True)
class CodeTables:
    """A codebook, and tables derived from it that find the nearest centroid fast.

    Attributes:
        bits: width of a code.
        centroids: float32 (2^bits,), ascending.
        boundaries: float32 (2^bits,): the midpoints between neighbours, then +inf. A value belongs to the first
            code whose boundary is not below it.
        cells_per_unit: a power of two; cells are so narrow that none holds two boundaries.
        cell_codes: int32 (2 * cells,): the code at the lower end of each cell of [-cells, cells) / cells_per_unit.
        cell_values: float32 (cells,): the positive centroid at each cell's middle, times cells_per_unit. The scale
            search reads this: it ranks scales by an error whose boundaries are rounded to cells.
    """

    bits: int
    centroids: Float32Array
    boundaries: Float32Array
    cells_per_unit: float
    cell_codes: npt.NDArray[np.int32]
    cell_values: Float32Array

    @property
    def cells(self) -> int:
        """Number of cells on the positive side."""
        return len(self.cell_values)

    @property
    def inverse_outermost(self) -> float:
        """1 / the largest centroid, rounded to float32: multiplied, because devices divide by constants differently."""
        return float(np.float32(1.0) / self.centroids[-1])

    @classmethod
    def from_centroids(cls, centroids: npt.ArrayLike) -> CodeTables:
        """Derive the tables from a symmetric codebook of 2^bits ascending values."""
        c = np.asarray(centroids, dtype=np.float32)
        bits = bits_of(c)
        middles = ((c[1:].astype(np.float64) + c[:-1]) / 2).astype(np.float32)
        per_unit = 2.0 ** (bits + 1)
        cells = math.ceil(float(c[-1]) * per_unit) + 1
        lower_ends = (np.arange(2 * cells) - cells) / per_unit
        cell_middles = (np.arange(cells) + 0.5) / per_unit
        return cls(
            bits=bits,
            centroids=c,
            boundaries=np.append(middles, np.float32(np.inf)),
            cells_per_unit=per_unit,
            cell_codes=np.searchsorted(middles, lower_ends, side="left").astype(np.int32),
            cell_values=c[np.searchsorted(middles, cell_middles)] * np.float32(per_unit),
        )


@lru_cache(maxsize=32)
def scale_steps_on(device: torch.device) -> torch.Tensor:
    """Return SCALE_STEPS followed by an infinity, on a device; copied there once."""
    return torch.from_numpy(np.append(SCALE_STEPS, np.float32(np.inf))).to(device)
