"""A coded checkpoint back to a plain one, under the names and in the layout of its source."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from ...errors import ConflictError, NonFiniteError, OutOfSpaceError, UsageError
from ...progress import Progress, ProgressCallback, ignore_progress
from ...sizes import format_size
from ..io import DTYPES, INDEX, SLICE_WEIGHTS, TensorInfo
from ..plan import KeptTensor
from .files import copy_file, disk_errors, write_json
from .manifest import CHART, RESULTS
from .manifest_entries import TensorRecord
from .reader import CodedCheckpoint, open_coded
from .shard_writer import ShardWriter, bytes_of
from .shards import Shard, divide, write_index

EXPORT_DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote: the folder, and its bytes of weights."""

    path: Path
    bytes: int
    tensors: int


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str = "bf16",
    *,
    max_shard_bytes: int = 4_000_000_000,
    progress: ProgressCallback = ignore_progress,
) -> ExportResult:
    """Decode a checkpoint.

    Args:
        path: an HLWQ folder.
        out: the folder to write; must be empty or absent.
        to: type of decoded weights, `bf16`, `f16` or `f32`; kept tensors keep theirs.
        max_shard_bytes: largest size of an output file.
        progress: called after every slice of a tensor.

    Raises:
        HlwqError: see hlwq_cli/errors.py.
    """
    if to not in EXPORT_DTYPES:
        raise UsageError(f"--to is {', '.join(EXPORT_DTYPES)}, not {to!r}.")
    folder = Path(out)
    with disk_errors(folder / INDEX):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConflictError(f"{folder} is not empty.", "Choose another folder; it is left as it is.")
    checkpoint = open_coded(path)
    try:
        return _Export(checkpoint, folder, EXPORT_DTYPES[to], progress).run(max_shard_bytes)
    finally:
        checkpoint.close()


class _Export:
    def __init__(self, checkpoint: CodedCheckpoint, out: Path, dtype: str, progress: ProgressCallback) -> None:
        self.checkpoint, self.out, self.dtype, self.progress = checkpoint, out, dtype, progress
        self.pieces: dict[str, list[_Piece]] = defaultdict(list)
        for record in checkpoint.manifest.coded:
            for name, piece in _pieces_of(record):
                self.pieces[name].append(piece)
        self.done = 0
        self.overflowing: set[str] = set()
        self.is_new = not out.exists()

    def run(self, max_shard_bytes: int) -> ExportResult:
        tensors = self._tensors()
        total = sum(t.nbytes for t in tensors)
        self._make_room(total)
        shards = divide((KeptTensor(t, "", "") for t in tensors), max_shard_bytes)
        for shard in shards:
            writer = ShardWriter(self.out, shard)
            try:
                for planned in shard.planned:
                    assert isinstance(planned, KeptTensor)
                    for start, data in self._data(planned.info):
                        writer.write(planned.info.name, start, data)
                        self.done += data.nbytes
                        self.progress(Progress(planned.info.name, self.done, total))
                writer.finish()
            except BaseException:
                writer.abandon()
                raise
        if self.overflowing:
            self._refuse_overflow(shards)
        self._write_sidecar_files(shards)
        return ExportResult(self.out, total, len(tensors))

    def _tensors(self) -> list[TensorInfo]:
        """What to write, decoded tensors under their source's names: shapes from the rows each contributed."""
        shapes = {
            name: shape
            for record in self.checkpoint.manifest.coded
            for name, shape in zip(record.sources, record.shapes_of_sources, strict=True)
        }
        itemsize = DTYPES[self.dtype].itemsize
        found = [TensorInfo(n, self.dtype, shape, "", 0, math.prod(shape) * itemsize) for n, shape in shapes.items()]
        kept = [self.checkpoint.tensors[k.name] for k in self.checkpoint.manifest.kept]
        return found + kept

    def _make_room(self, total: int) -> None:
        with disk_errors(self.out / INDEX):
            self.out.mkdir(parents=True, exist_ok=True)
        stat = os.statvfs(self.out)
        if stat.f_bavail * stat.f_frsize < total:
            raise OutOfSpaceError(
                f"{self.out} needs {format_size(total)} of disk.", "Free some or choose another folder."
            )

    def _data(self, info: TensorInfo) -> Iterator[tuple[int, memoryview]]:
        if info.name not in self.pieces:
            for start in range(0, info.nbytes, 4 * SLICE_WEIGHTS):
                length = min(4 * SLICE_WEIGHTS, info.nbytes - start)
                yield start, memoryview(self.checkpoint.read_bytes(info, start, length))
            return
        if self.pieces[info.name][0].transposed:
            height, width = info.shape[-2:]  # a matrix at a time, decoded as its columns
            for first in range(0, math.prod(info.shape) // height, width):
                matrix = self._rows(info.name, first, width, height).T.contiguous()
                yield first * height * matrix.itemsize, bytes_of(matrix)
            return
        step = max(1, SLICE_WEIGHTS // info.shape[-1])
        row_bytes = info.nbytes // info.rows
        for row in range(0, info.rows, step):
            yield row * row_bytes, bytes_of(self._rows(info.name, row, min(step, info.rows - row), info.shape[-1]))

    def _rows(self, source: str, first: int, count: int, columns: int) -> torch.Tensor:
        """Decode rows of a source tensor (columns, where pieces are transposed), whichever coded tensors hold them."""
        rows = torch.empty(count, columns, dtype=DTYPES[self.dtype])
        for piece in self.pieces[source]:
            skipped = max(0, -(-(first - piece.start) // piece.step))
            within = min(piece.count, -(-(first + count - piece.start) // piece.step)) - skipped
            if within <= 0:
                continue
            decoded = self.checkpoint.decode_rows(piece.record, piece.coded_row + skipped, within)
            begin = piece.start + skipped * piece.step - first
            cast = decoded.to(rows.dtype)
            if (cast.isinf() & decoded.isfinite()).any():
                self.overflowing.add(source)
            rows[begin : begin + (within - 1) * piece.step + 1 : piece.step] = cast
        return rows

    def _refuse_overflow(self, shards: tuple[Shard, ...]) -> NoReturn:
        """Remove what was written, and raise NonFiniteError."""
        for shard in shards:
            (self.out / shard.file).unlink()
        if self.is_new:
            self.out.rmdir()
        first, count = min(self.overflowing), len(self.overflowing)
        largest = torch.finfo(DTYPES[self.dtype]).max
        raise NonFiniteError(
            f"{first} has weights beyond {largest:g}, the largest {self.dtype} ({count} tensors in all); "
            "nothing was written.",
            "Use --to bf16 or --to f32.",
        )

    def _write_sidecar_files(self, shards: tuple[Shard, ...]) -> None:
        write_index(self.out, shards)
        write_json(
            self.out / "config.json", {k: v for k, v in self.checkpoint.config.items() if k != "quantization_config"}
        )
        skipped = ("config.json", "README.md", INDEX, RESULTS, CHART)
        for record in self.checkpoint.manifest.files:
            if record.name not in skipped and not record.is_shard:
                name = "README.md" if record.name == "README.source.md" else record.name
                copy_file(self.checkpoint.path(record.name), self.out / name)


@dataclass(frozen=True)
class _Piece:
    """Rows of a source tensor (or columns, if transposed) that stand one after the other in a coded tensor."""

    record: TensorRecord
    coded_row: int
    start: int
    count: int
    step: int
    transposed: bool


def _pieces_of(record: TensorRecord) -> Iterator[tuple[str, _Piece]]:
    """Yield the name of a source and the piece of it, for all rows of a coded tensor."""
    runs = record.runs or tuple((i, 0, math.prod(s[:-1]), 1) for i, s in enumerate(record.shapes_of_sources))
    row = 0
    for index, start, count, step in runs:
        yield record.sources[index], _Piece(record, row, start, count, step, record.transposed)
        row += count
