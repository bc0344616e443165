"""A run's pieces of work: rows of one source tensor, small enough that a few of them fit any memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...codec import EncodedRows
from ..format.shards import Shard, bytes_of
from ..io.safetensors_file import TensorInfo
from ..io.slice_sizes import SLICE_WEIGHTS
from ..plan.planned import KeptTensor, PlannedTensor, stored_bytes


@dataclass(frozen=True)
class Slice:
    """Rows of one source tensor and where they go; for a kept tensor, a range of its bytes."""

    planned: PlannedTensor
    info: TensorInfo
    start: int
    length: int
    first_row: int = 0

    @property
    def source_bytes(self) -> int:
        """Bytes it reads."""
        return self.length * self._unit

    @property
    def first_byte(self) -> int:
        """Where in its tensor it begins."""
        return self.start * self._unit

    @property
    def written(self) -> tuple[int, int]:
        """First byte and number of bytes that it fills in the planned tensor's first stored tensor."""
        if isinstance(self.planned, KeptTensor):
            return self.start, self.length
        row = stored_bytes(self.planned.stored_tensors[0]) // self.planned.rows
        return self.first_row * row, self.length * row

    @property
    def _unit(self) -> int:
        return 1 if isinstance(self.planned, KeptTensor) else self.info.nbytes // max(self.info.rows, 1)


@dataclass(frozen=True)
class CodedSlice:
    """What became of a slice.

    Attributes:
        weight: (rows, columns), as it was read.
        written: bytes of codes, scales and, with `log8`, base, to be written.
        error: what coding cost each row, see `EncodedRows`.
        energy: likewise.
    """

    weight: torch.Tensor
    written: tuple[memoryview, ...]
    error: torch.Tensor
    energy: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, rows: EncodedRows) -> CodedSlice:
        """Of encoded rows in host memory."""
        written = tuple(bytes_of(t) for t in (rows.codes, rows.scales, rows.base) if t is not None)
        return cls(weight, written, rows.error, rows.energy)


def slices(shard: Shard, weights: int = SLICE_WEIGHTS) -> Iterator[Slice]:
    """Cut the work of a shard into slices of at most `weights` weights, or of one row.

    Each planned tensor has at least one slice, and no slice crosses source tensors.
    """
    for planned in shard.planned:
        if isinstance(planned, KeptTensor):
            step = 2 * weights
            for start in range(0, max(planned.info.nbytes, 1), step):
                yield Slice(planned, planned.info, start, min(step, planned.info.nbytes - start))
            continue
        row = 0
        for part in planned.parts:
            step = max(1, weights // part.shape[-1])
            for start in range(0, part.rows, step):
                n = min(step, part.rows - start)
                yield Slice(planned, part, start, n, row)
                row += n
