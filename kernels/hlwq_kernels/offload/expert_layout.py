"""The record of an expert: codes, scales and base of both its matrices in one run of bytes, to move between memories.

Records are stored one after the other. So the parts of many experts are views into them: stacked tensors whose stride
along the experts is a whole record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..codes import QuantizedWeight, ceil_div

ALIGNMENT = 128
"""Every part begins at a multiple of this many bytes: what a GPU reads at once."""


class Part(NamedTuple):
    """A stored tensor of one expert, such as the codes of its first matrix.

    Attributes:
        offset: its first byte within the record.
        shape: without the experts' dimension.
        dtype: of the stored tensor.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its length in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class RecordLayout:
    """Where the parts are in a record. It is equal for layers whose records are interchangeable.

    Attributes:
        gate_up: codes, scales and, with `log8` scales, base of the first matrix.
        down: the same of the second.
        bytes: bytes of a whole record.
    """

    gate_up: tuple[Part, ...]
    down: tuple[Part, ...]
    bytes: int

    @classmethod
    def of(
        cls, gate_up: Sequence[tuple[Sequence[int], torch.dtype]], down: Sequence[tuple[Sequence[int], torch.dtype]]
    ) -> RecordLayout:
        """Lay out the shapes and types of both matrices' parts one after the other."""
        parts, at = [], 0
        for shape, dtype in (*gate_up, *down):
            parts.append(Part(at, tuple(shape), dtype))
            at += ceil_div(parts[-1].bytes, ALIGNMENT) * ALIGNMENT
        return cls(tuple(parts[: len(gate_up)]), tuple(parts[len(gate_up) :]), at)

    def weights(
        self, records: torch.Tensor, centroids: tuple[torch.Tensor, torch.Tensor], block_size: int
    ) -> tuple[QuantizedWeight, QuantizedWeight]:
        """Return both matrices of uint8 (experts, bytes) records, as views into them."""
        both = []
        for parts, table in zip((self.gate_up, self.down), centroids, strict=True):
            codes, scales, *base = (view(records, part) for part in parts)
            both.append(QuantizedWeight(codes, scales, base[0] if base else None, table, block_size))
        return both[0], both[1]


def view(records: torch.Tensor, part: Part) -> torch.Tensor:
    """Return one part of uint8 (experts, bytes) records, as a view: (experts, *shape)."""
    found: torch.Tensor = records[:, part.offset : part.offset + part.bytes].view(part.dtype).unflatten(1, part.shape)
    return found
