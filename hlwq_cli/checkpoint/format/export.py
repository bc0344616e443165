"""Export: a coded checkpoint is decoded to plain weights, under the names and in the layout of its source."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from ..._version import __version__
from ...errors import CorruptError, NonFiniteError, OutOfSpaceError, UsageError
from ...progress import Progress, ProgressCallback, ignore_progress
from ...sizes import format_size
from ..io import DTYPES, INDEX, SLICE_WEIGHTS, TensorInfo, check_unlocked, locked_folder, open_regular
from ..plan import KeptTensor
from .export_folder import ExportJournal, check_export_folder
from .files import copy_file, disk_errors, write_json
from .manifest import CHART, RESULTS
from .manifest_entries import FileRecord, TensorRecord
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
        out: the folder to write. It must be empty or absent, or hold an unfinished export. An export of the same
            checkpoint with the same settings continues; another one is replaced.
        to: type of decoded weights, `bf16`, `f16` or `f32`. Kept tensors keep their types.
        max_shard_bytes: largest size of an output file.
        progress: called after every slice of a tensor.

    Raises:
        HlwqError: see hlwq_cli/errors.py.
    """
    if to not in EXPORT_DTYPES:
        raise UsageError(f"{to!r} is not a type to export to.", f"Use {', '.join(EXPORT_DTYPES)}.")
    folder = Path(out)
    check_export_folder(folder)
    check_unlocked(folder)
    checkpoint = open_coded(path)
    try:
        run = _Export(checkpoint, folder, EXPORT_DTYPES[to], progress)
        run.check_files()
        run.make_room()
        with locked_folder(folder):
            check_export_folder(folder)
            return run.run(max_shard_bytes)
    finally:
        checkpoint.close()


class _Export:
    def __init__(self, checkpoint: CodedCheckpoint, out: Path, dtype: str, progress: ProgressCallback) -> None:
        self.checkpoint, self.out, self.dtype, self.progress = checkpoint, out, dtype, progress
        self.pieces: dict[str, list[_Piece]] = defaultdict(list)
        for record in checkpoint.manifest.coded:
            for name, piece in _pieces_of(record):
                self.pieces[name].append(piece)
        self.tensors = self._tensors()
        self.total = sum(t.nbytes for t in self.tensors)
        self.done = 0
        self.overflowing: set[str] = set()
        self.is_new = not os.path.lexists(out)

    def check_files(self) -> None:
        """Check before any work that tensors have different names, and that all files to copy are there.

        Raises:
            HlwqError: a file is missing, or not as the manifest states it.
        """
        names = Counter(t.name for t in self.tensors)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise CorruptError(f"The manifest makes {twice[0]} of two tensors.", "Fetch the checkpoint again.")
        for record in self._sidecar_files().values() if self.checkpoint.repo is None else ():
            descriptor = open_regular(self.checkpoint.path(record.name), record.name)
            size = os.fstat(descriptor).st_size
            os.close(descriptor)
            if size != record.size:
                raise CorruptError(
                    f"{record.name} does not have the size in the manifest.", "Fetch the checkpoint again."
                )

    def run(self, max_shard_bytes: int) -> ExportResult:
        """Write what is missing in the output folder, which is locked; see `export`."""
        shards = divide((KeptTensor(t, "", "") for t in self.tensors), max_shard_bytes)
        sidecars = self._sidecar_files()
        files = [*(s.file for s in shards), INDEX, "config.json", *sidecars]
        settings = {"checkpoint": self.checkpoint.manifest.digest, "to": self.dtype, "max_shard_bytes": max_shard_bytes}
        journal = ExportJournal(self.out, settings | {"tool": __version__}, files)
        finished = journal.open()
        for shard in shards:
            if shard.file in finished:
                self.done += shard.nbytes
                continue
            self._write(shard)
            if not self.overflowing:
                journal.add(shard.file)
        if self.overflowing:
            self._refuse_overflow(journal)
        write_index(self.out, shards)
        for name, record in sidecars.items():
            copy_file(self.checkpoint.path(record.name), self.out, name, record.sha256)
        self.checkpoint.check_unchanged()
        config = {k: v for k, v in self.checkpoint.config.items() if k != "quantization_config"}
        write_json(self.out / "config.json", config)  # last: without it nothing loads the folder
        journal.close()
        return ExportResult(self.out, self.total, len(self.tensors))

    def _write(self, shard: Shard) -> None:
        writer = ShardWriter(self.out, shard)
        try:
            for planned in shard.planned:
                assert isinstance(planned, KeptTensor)
                for start, data in self._data(planned.info):
                    writer.write(planned.info.name, start, data)
                    self.done += data.nbytes
                    self.progress(Progress(planned.info.name, self.done, self.total))
            self.checkpoint.check_unchanged()
            writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _tensors(self) -> list[TensorInfo]:
        """Return the tensors to write: decoded ones with the names and shapes of their sources, then kept ones."""
        shapes = {
            name: shape
            for record in self.checkpoint.manifest.coded
            for name, shape in zip(record.sources, record.shapes_of_sources, strict=True)
        }
        itemsize = DTYPES[self.dtype].itemsize
        found = [TensorInfo(n, self.dtype, shape, "", 0, math.prod(shape) * itemsize) for n, shape in shapes.items()]
        kept = [self.checkpoint.tensors[k.name] for k in self.checkpoint.manifest.kept]
        return found + kept

    def make_room(self) -> None:
        """Make the output folder. Raise OutOfSpaceError if its disk cannot hold what is missing."""
        with disk_errors(self.out / INDEX):
            self.out.mkdir(parents=True, exist_ok=True)
            there = sum(p.stat().st_size for p in self.out.glob("*.safetensors"))
        if shutil.disk_usage(self.out).free + there < self.total:
            raise OutOfSpaceError(
                f"{self.out} needs {format_size(self.total)} of disk.", "Free some or choose another folder."
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

    def _refuse_overflow(self, journal: ExportJournal) -> NoReturn:
        """Remove what was written, and raise NonFiniteError."""
        journal.remove_files()
        if self.is_new:
            self.out.rmdir()
        first, count = min(self.overflowing), len(self.overflowing)
        largest = torch.finfo(DTYPES[self.dtype]).max
        raise NonFiniteError(
            f"{first} has weights beyond {largest:g}, the largest {self.dtype} ({count} tensors in all); "
            "nothing was written.",
            "Use --to bf16 or --to f32.",
        )

    def _sidecar_files(self) -> dict[str, FileRecord]:
        """Return the checkpoint's other files, by their names in the export."""
        skipped = ("config.json", "README.md", INDEX, RESULTS, CHART)
        found = [r for r in self.checkpoint.manifest.files if r.name not in skipped and not r.is_shard]
        return {"README.md" if r.name == "README.source.md" else r.name: r for r in found}


@dataclass(frozen=True)
class _Piece:
    """Rows of a source tensor (or columns, if transposed) that follow one another in a coded tensor."""

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
