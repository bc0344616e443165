"""A run's pieces of work: rows of one source tensor, small enough that a few of them fit any memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..codec import SquaredError, encode
from .jobs import CodedTensor, KeptTensor
from .safetensors_file import TensorInfo
from .shards import Shard, ShardWriter
from .source import Source

SLICE_WEIGHTS = 1_048_576
"""Weights read, coded and written at a time: 4 MiB in float32."""


@dataclass(frozen=True)
class Slice:
    """Rows of one source tensor and where they go; for a kept tensor, a range of its bytes."""

    job: CodedTensor | KeptTensor
    info: TensorInfo
    start: int
    length: int
    row_in_job: int = 0

    @property
    def name(self) -> str:
        """Of the job, as records name it."""
        return self.job.name if isinstance(self.job, CodedTensor) else self.info.name

    @property
    def source_bytes(self) -> int:
        """Bytes it reads."""
        if isinstance(self.job, KeptTensor):
            return self.length
        return self.length * (self.info.nbytes // max(self.info.rows, 1))


def slices(shard: Shard) -> Iterator[Slice]:
    """A shard's work in pieces, in order; a piece never crosses a source tensor."""
    for job in shard.jobs:
        if isinstance(job, KeptTensor):
            step = 4 * SLICE_WEIGHTS
            for start in range(0, job.info.nbytes, step):
                yield Slice(job, job.info, start, min(step, job.info.nbytes - start))
            continue
        row = 0
        for part in job.parts:
            step = max(1, SLICE_WEIGHTS // part.shape[-1])
            for start in range(0, part.rows, step):
                n = min(step, part.rows - start)
                yield Slice(job, part, start, n, row)
                row += n


def code_slice(source: Source, piece: Slice, writer: ShardWriter) -> SquaredError:
    """Read a piece, code it, write it; returns what coding cost."""
    job = piece.job
    if isinstance(job, KeptTensor):
        writer.write(job.info.name, piece.start, source.read_bytes(job.info, piece.start, piece.length))
        return SquaredError()
    weight = source.read(piece.info, piece.start, piece.length)
    coded, cost = encode(weight, job.scheme, piece.info.name, piece.start, piece.info.shape[:-1])
    for (name, _, _), data in zip(job.outputs, (coded.codes, coded.scales, coded.base), strict=False):
        assert data is not None
        writer.write(name, piece.row_in_job * (data.nbytes // piece.length), data)
    return cost
