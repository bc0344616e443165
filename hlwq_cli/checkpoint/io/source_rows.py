"""Rows of a stored tensor that become rows of a coded one: contiguous, at a fixed distance, or columns of matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .safetensors_file import DTYPES, TensorInfo
from .source import Source


@dataclass(frozen=True)
class SourceRows:
    """Rows that follow one another in a coded tensor.

    Attributes:
        info: the stored tensor.
        start: the first row, counted over all dimensions but the last; with `is_transposed` the first column, counted
            over all dimensions but the one before the last.
        count: number of rows.
        step: distance between two rows.
        is_transposed: whether the rows are columns of the stored matrices. They all lie in one matrix, or `step` is 1.
    """

    info: TensorInfo
    start: int
    count: int
    step: int = 1
    is_transposed: bool = False

    @classmethod
    def whole(cls, info: TensorInfo) -> SourceRows:
        """Return all rows of a tensor."""
        return cls(info, 0, info.rows)

    @property
    def name(self) -> str:
        """Name of the stored tensor."""
        return self.info.name

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the tensor, in their order."""
        return not self.is_transposed and (self.start, self.count, self.step) == (0, self.info.rows, 1)

    @property
    def columns(self) -> int:
        """Number of weights in a row."""
        return self.info.shape[-2] if self.is_transposed else self.info.shape[-1]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * DTYPES[self.info.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.count * self.row_bytes

    def read_into(self, source: Source, first: int, count: int, buffer: memoryview) -> None:
        """Fill a buffer with rows `first` to `first + count - 1` of these.

        Raises:
            HlwqError: the file cannot be read.
        """
        start = self.start + first * self.step
        if self.is_transposed:
            self._read_columns(source, start, count, buffer)
        elif self.step == 1:
            source.read_into(self.info, start * self.row_bytes, buffer)
        else:
            span = torch.empty(((count - 1) * self.step + 1) * self.row_bytes, dtype=torch.uint8)
            source.read_into(self.info, start * self.row_bytes, span.numpy().data)
            rows = torch.frombuffer(buffer, dtype=torch.uint8).view(count, self.row_bytes)
            rows[:-1] = span[: (count - 1) * self.step * self.row_bytes].view(-1, self.step, self.row_bytes)[:, 0]
            rows[-1] = span[-self.row_bytes :]

    def read(self, source: Source, first: int = 0, count: int | None = None) -> torch.Tensor:
        """Return rows of these as (rows, columns), in the stored dtype."""
        count = self.count - first if count is None else count
        data = bytearray(count * self.row_bytes)
        self.read_into(source, first, count, memoryview(data))
        return torch.frombuffer(data, dtype=DTYPES[self.info.dtype]).view(count, self.columns)

    def _read_columns(self, source: Source, start: int, count: int, buffer: memoryview) -> None:
        """Read the stored matrices that hold columns, one at a time, and copy their columns as rows."""
        height, width = self.info.shape[-2:]
        dtype = DTYPES[self.info.dtype]
        rows = torch.frombuffer(buffer, dtype=dtype).view(count, height)
        matrix_bytes = height * width * dtype.itemsize
        data = torch.empty(matrix_bytes, dtype=torch.uint8)
        matrix = data.view(dtype).view(height, width)
        done = 0
        while done < count:
            number, column = divmod(start + done * self.step, width)
            taken = min(count - done, math.ceil((width - column) / self.step))
            source.read_into(self.info, number * matrix_bytes, data.numpy().data)
            rows[done : done + taken] = matrix[:, column : column + (taken - 1) * self.step + 1 : self.step].T
            done += taken
