"""The host side of encode/encode.cu: what it is compiled for, and the tables that it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..codes import (
    ERROR_UNIT,
    HALF_STEP,
    LARGEST,
    OCTAVE,
    SCALE_STEPS,
    SEARCH_FACTORS,
    SEARCH_HIGH,
    SEARCH_LOW,
    SMALLEST,
    CodeTables,
    Float32Array,
)
from ..common import DTYPE_IDS, Macros

SOURCE = "encode/encode.cu"
QUAD = 16
"""Bytes of the widest load."""
_SEARCHED_UNITS = 5
"""The search does not clamp values of up to this many scales; larger ones are rare in a Gaussian block."""
_STAGED_BYTES = 40 * 1024
"""Shared memory of a CTA for the next rows, at most: with the tables, two CTAs fit a multiprocessor. Not measured."""
_OVERLAP = 0.01
"""The fraction by which cells of `pairs` overlap: far more than rounding can err."""


@dataclass(frozen=True)
class EncodeKernelConfig:
    """What the kernel is compiled for.

    Attributes:
        bits: width of a code.
        block_size: n.
        log8: kind of scale.
        search: whether scales are searched.
        dtype: of the weights.
        loop: whether a row has more blocks than a CTA has threads.
        large_smem: whether two CTAs may have 100 KB of shared memory each.
    """

    bits: int
    block_size: int
    log8: bool
    search: bool
    dtype: torch.dtype
    loop: bool = False
    large_smem: bool = True

    @property
    def max_threads(self) -> int:
        """The most threads of a CTA: each needs registers for a block."""
        return 256 if self.block_size <= 64 else 16384 // self.block_size

    @property
    def span(self) -> int:
        """Cells of `pairs` minus one: enough for the outermost boundaries."""
        return 1 << (self.bits + (2 if self.bits < 8 else 3))

    @property
    def pair_copies(self) -> int:
        """Copies of the table of codes, so that the lanes of a warp read different banks; fewer of a large table."""
        copies = min(16, 2048 // self.span)
        return max(1, copies if self.large_smem else copies // 4)

    @property
    def value_copies(self) -> int:
        """Copies of the table of the search."""
        copies = min(32, 1024 >> self.bits)
        return copies if self.large_smem else copies // 4

    @property
    def staged(self) -> bool:
        """Whether the next rows are staged in shared memory."""
        return self.large_smem and not self.loop and self.max_threads * self.padded_block <= _STAGED_BYTES

    @property
    def padded_block(self) -> int:
        """Bytes of a staged block."""
        return self.block_size * int(self.dtype.itemsize) + QUAD

    @property
    def rest(self) -> int:
        """Words of the tables with one copy: two numbers, scale steps and an infinity, factors, centroids."""
        return 2 + len(SCALE_STEPS) + 1 + len(SEARCH_FACTORS) + (1 << self.bits)

    def shared_bytes(self, threads: int, cells: int) -> int:
        """Dynamic shared memory of a CTA."""
        tables = 2 * (self.span + 1) * self.pair_copies + (cells * self.value_copies if self.search else 0) + self.rest
        return threads * (2 * QUAD + (self.padded_block if self.staged else 0)) + 4 * tables

    @property
    def macros(self) -> Macros:
        """The macros that specialize encode/encode.cu."""
        n = self.block_size
        numbers = {
            "HALF_STEP": HALF_STEP, "HEADROOM": float(OCTAVE[SEARCH_HIGH]), "ERROR_UNIT": ERROR_UNIT,
            "LARGEST": LARGEST, "SMALLEST": SMALLEST, "ROOT": n**0.5, "INVERSE_ROOT": n**-0.5,
        }  # fmt: skip
        flags = {
            "N": n, "BITS": self.bits, "LOG8": self.log8, "SEARCH": self.search, "INPUT": DTYPE_IDS[self.dtype],
            "LOOP": self.loop, "STAGED": self.staged, "SPAN": self.span, "PAIR_COPIES": self.pair_copies,
            "VALUE_COPIES": self.value_copies, "FACTORS": len(SEARCH_FACTORS), "SEARCH_LOW": SEARCH_LOW,
            "REST": self.rest,
            "THREADS": self.max_threads, "RESIDENT": 2 if n <= 64 else 1,
        }  # fmt: skip
        exact = tuple((name, f"{float(np.float32(x)).hex()}f") for name, x in numbers.items())
        return tuple((name, int(value)) for name, value in flags.items()) + exact


def kernel_table(tables: CodeTables, config: EncodeKernelConfig) -> npt.NDArray[np.int32]:
    """Return all tables of the kernel, as 32-bit words in the order of `load_tables` in encode/encode.cu."""
    coarse = 2.0 ** (tables.bits - 1)
    head = np.array([tables.inverse_outermost, tables.cells - 1], np.float32)
    parts: list[npt.NDArray[np.float32]] = [
        head, SCALE_STEPS, np.array([np.inf], np.float32), SEARCH_FACTORS, tables.centroids * np.float32(coarse),
    ]  # fmt: skip
    pairs = boundary_pairs(tables.boundaries * np.float32(coarse), config.span)
    words = [*(p.view(np.int32) for p in parts), pairs.reshape(-1)]
    return np.concatenate([*words, searched_values(tables).view(np.int32)])


def boundary_pairs(boundaries: Float32Array, span: int) -> npt.NDArray[np.int32]:
    """Return for cells around -span / 2 .. span / 2 the boundary inside, or the next one, and the code below it."""
    middles = np.arange(span + 1) - span / 2
    lower, upper = middles - 0.5 - _OVERLAP, middles + 0.5 + _OVERLAP
    lower[0], upper[-1] = -np.inf, np.inf
    codes = np.searchsorted(boundaries[:-1], lower, side="left")
    if (np.searchsorted(boundaries[:-1], upper, side="right") - codes).max() > 1:
        raise ValueError("the boundaries of the codebook are too close to each other, or too far out")
    return np.stack([boundaries[codes].view(np.int32), codes.astype(np.int32)], axis=1)


def searched_values(tables: CodeTables) -> Float32Array:
    """Return `cell_values`, with the last one repeated for values that are not clamped."""
    cells = max(int(_SEARCHED_UNITS * tables.cells_per_unit), tables.cells)
    return np.pad(tables.cell_values, (0, cells - tables.cells), mode="edge")
