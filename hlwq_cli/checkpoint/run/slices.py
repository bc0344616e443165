"""A run's pieces of work: rows of one source tensor, small enough that a few of them fit any memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from ...codec import EncodedRows
from ..format import Shard, bytes_of
from ..io import SLICE_WEIGHTS, Source, SourceRows, TensorInfo
from ..plan import CodedTensor, KeptTensor, PlannedTensor, stored_bytes


@dataclass(frozen=True)
class Slice:
    """Rows of one part of a coded tensor and where they go; for a kept tensor, a range of its bytes.

    Attributes:
        planned: what it is a piece of.
        info: the source tensor to read.
        start: the first row of the part, or the first byte of a kept tensor.
        length: number of rows, or of bytes.
        first_row: where the rows go in the coded tensor.
        part: of the coded tensor; None for a kept tensor.
    """

    planned: PlannedTensor
    info: TensorInfo
    start: int
    length: int
    first_row: int = 0
    part: SourceRows | None = None

    @property
    def columns(self) -> int:
        """Number of weights in a row of a coded tensor."""
        return self.planned.shape[-1] if isinstance(self.planned, CodedTensor) else 0

    @property
    def source_bytes(self) -> int:
        """Bytes it reads."""
        return self.length * self._unit

    def read_into(self, source: Source, buffer: memoryview) -> None:
        """Fill a buffer of `source_bytes` from the source."""
        if self.part is None:
            source.read_into(self.info, self.start, buffer)
        else:
            self.part.read_into(source, self.start, self.length, buffer)

    @property
    def first_index(self) -> tuple[str, int, tuple[int, ...]]:
        """Tensor, row and leading dimensions that name the first weight: in the source, where the part is whole."""
        assert isinstance(self.planned, CodedTensor)
        if self.part is not None and self.part.is_whole:
            return self.info.name, self.start, self.info.shape[:-1]
        return self.planned.parameter, self.first_row, self.planned.shape[:-1]

    @property
    def written(self) -> tuple[int, int]:
        """First byte and number of bytes that it fills in the planned tensor's first stored tensor."""
        if isinstance(self.planned, KeptTensor):
            return self.start, self.length
        row = stored_bytes(self.planned.stored_tensors[0]) // self.planned.rows
        return self.first_row * row, self.length * row

    @property
    def _unit(self) -> int:
        return 1 if self.part is None else self.part.row_bytes


@dataclass(frozen=True)
class WholeTensor:
    """A coded tensor that is written as a whole, although perhaps in several steps."""

    planned: CodedTensor

    @property
    def written(self) -> tuple[int, int]:
        """First byte and number of bytes that it fills in the planned tensor's first stored tensor."""
        return 0, stored_bytes(self.planned.stored_tensors[0])


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


def slices(shard: Shard, weights: int = SLICE_WEIGHTS, without: Collection[str] = ()) -> Iterator[Slice]:
    """Cut the work of a shard into slices of at most `weights` weights, or of one row.

    Each planned tensor has at least one slice, and no slice crosses source tensors. Tensors named in `without` have
    none.
    """
    for planned in shard.planned:
        if planned.name in without:
            continue
        if isinstance(planned, KeptTensor):
            step = 2 * weights
            for start in range(0, max(planned.info.nbytes, 1), step):
                yield Slice(planned, planned.info, start, min(step, planned.info.nbytes - start))
            continue
        row = 0
        for part in planned.parts:
            step = max(1, weights // part.columns)
            for start in range(0, part.count, step):
                n = min(step, part.count - start)
                yield Slice(planned, part.info, start, n, row, part)
                row += n
