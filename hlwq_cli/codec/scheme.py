"""The scheme that says how a weight is coded, and the container of a coded weight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hlwq_kernels import CodeTables
from hlwq_kernels.codes import SCALE_FORMATS, PartLayout, ScaleKind, layout, padded_columns

from ..errors import UsageError
from .codebook import MAX_BITS, MIN_BITS, lloyd_max

BLOCK_SIZES = (32, 64, 128, 256)


@dataclass(frozen=True)
class Scheme:
    """How a weight is coded.

    Attributes:
        bits: width of a code, 2 to 8.
        block_size: number of weights along the input dimension that are rotated together and share a scale.
        scale: `log8` stores one byte per block and a bfloat16 base per row; `fp16` stores the L2 norm of each block.
        search: whether the encoder tries 30 scales per block and keeps the best. A decoder does not need to know.
    """

    bits: int
    block_size: int = 64
    scale: ScaleKind = "log8"
    search: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(f"A code has {MIN_BITS} to {MAX_BITS} bits, not {self.bits}.", "Use one of these widths.")
        if not isinstance(self.block_size, int) or self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"A block has {', '.join(map(str, BLOCK_SIZES))} weights, not {self.block_size}.", "Use one of these."
            )
        if self.scale not in SCALE_FORMATS:
            raise UsageError(f"Block scales are 'log8' or 'fp16', not {self.scale!r}.", "Use one of these.")

    @classmethod
    def classic(cls, bits: int) -> Scheme:
        """Return the published method: blocks of 128, raw L2 norms in fp16, no search."""
        return cls(bits, block_size=128, scale="fp16", search=False)

    @property
    def tables(self) -> CodeTables:
        """The codebook and its lookup tables."""
        return CodeTables.from_centroids(lloyd_max(self.bits))

    def padded(self, columns: int) -> int:
        """Return `columns` rounded up to whole blocks."""
        return padded_columns(columns, self.block_size)

    def row_bytes(self, columns: int) -> int:
        """Return the number of bytes that one row takes: codes, scales and base."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.layout((1, columns)).values())

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the stored parts: codes, scales and, with `log8`, base."""
        return SCALE_FORMATS[self.scale].parts

    def layout(self, shape: tuple[int, ...]) -> dict[str, PartLayout]:
        """Return the shape and dtype of each stored part of a weight of shape (..., out, in)."""
        return layout(shape, self.bits, self.block_size, self.scale)


@dataclass(frozen=True)
class Coded:
    """A coded weight of shape (..., out, in).

    Attributes:
        codes: uint8 (..., out, padded_in * bits / 8), packed bit planes.
        scales: uint8 (`log8`) or float16 (`fp16`), (..., out, padded_in / block_size).
        base: bfloat16 (..., out) for `log8`, None for `fp16`.
        shape: shape of the weight.
        scheme: how the weight was coded.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor | None
    shape: tuple[int, ...]
    scheme: Scheme

    @property
    def nbytes(self) -> int:
        """Number of stored bytes."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.base is None else self.base.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Number of stored bits, scales and base included, per weight."""
        return 8 * self.nbytes / math.prod(self.shape)
