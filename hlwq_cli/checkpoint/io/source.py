"""The source of the weights: a folder or a Hub repository, read by slice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import CorruptError
from .hub_repo import HubRepo
from .open_files import PREFETCH_FILES, PrefetchedFiles
from .safetensors_file import DTYPES, TensorInfo, read_header, read_into
from .weight_files import WEIGHT_SUFFIXES

_SAMPLE = 4096


@dataclass
class Source:
    """An unquantized checkpoint.

    Attributes:
        id: as the user named it.
        revision: the commit, for a Hub repository.
        config: its config.json.
        tensors: every tensor, in the order of files and offsets.
        sidecar_files: names of all files to copy, relative to the root: those that are no weights, and small modules
            that transformers does not load with the model.
        root: the folder that files are read from.
        repo: the Hub repository that fills `root`, or None.
        sidecar_bytes: bytes of the weights among the sidecar files.
        warnings: sentences about files of weights that are neither read nor copied.
    """

    id: str
    revision: str | None
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sidecar_files: tuple[str, ...]
    root: Path
    repo: HubRepo | None = None
    sidecar_bytes: int = 0
    warnings: tuple[str, ...] = ()
    _files: PrefetchedFiles = field(init=False, repr=False)
    _private: Path | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._files = PrefetchedFiles(self._locate, self._drop)

    @property
    def tied(self) -> bool:
        """Whether the config ties the head to the embeddings."""
        text = self.config.get("text_config")
        default = text.get("tie_word_embeddings", False) if isinstance(text, dict) else False
        return bool(self.config.get("tie_word_embeddings", default))

    def largest_files(self, count: int) -> int:
        """Bytes of the largest so many files of weights."""
        sizes: Counter[str] = Counter()
        for info in self.tensors.values():
            sizes[info.file] = max(sizes[info.file], info.offset + info.nbytes)
        return sum(n for _, n in sizes.most_common(count))

    def path(self, file: str) -> Path:
        """The local path of a sidecar file, fetched first where it must be."""
        if self.repo is None:
            return self.root / file
        return self.repo.fetch(file, self._private_folder(file) if file.endswith(WEIGHT_SUFFIXES) else None)

    def read(self, info: TensorInfo, first_row: int = 0, rows: int | None = None) -> torch.Tensor:
        """Rows of a tensor whose leading dimensions are taken as one: (rows, last dimension), in its dtype."""
        columns = info.shape[-1] if info.shape else 1
        rows = info.rows - first_row if rows is None else rows
        row_bytes = columns * DTYPES[info.dtype].itemsize
        data = self.read_bytes(info, first_row * row_bytes, rows * row_bytes)
        return torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(rows, columns)

    def read_bytes(self, info: TensorInfo, start: int, length: int) -> bytearray:
        """`length` bytes of a tensor's data from `start`."""
        data = bytearray(length)
        self.read_into(info, start, memoryview(data))
        return data

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fill a buffer with a tensor's data from byte `start`."""
        read_into(self._files.descriptor(info.file), buffer, info.offset + start, info.file)

    def prefetch(self, files: Sequence[str], private: Path | None = None) -> None:
        """Get ready to read files one after the other, each to be let go at the end: those of a Hub repository are
        fetched one ahead.

        Args:
            files: in the order of their use.
            private: a folder to fetch into instead of the cache, from which files are removed when they are let go.
                Whatever else it holds is removed now.
        """
        if self.repo is None:
            return
        self._private = private
        if private is not None and private.is_dir():
            kept = {folder.name for f in files[:PREFETCH_FILES] if (folder := self._private_folder(f)) is not None}
            for old in set(os.listdir(private)) - kept:
                shutil.rmtree(private / old)
        self._files.prefetch(files)

    def open_file(self, file: str) -> None:
        """Wait until a file can be read."""
        self._files.descriptor(file)

    def release(self, file: str) -> None:
        """Say that a file which `prefetch` was given will not be read again."""
        if self.repo is not None:
            self._files.release(file)

    def stop(self) -> None:
        """Fetch no more files; threads that wait for one are told so by CancelledError."""
        self._files.stop()

    def _locate(self, file: str) -> Path:
        if self.repo is None:
            return self.root / file
        path = self.repo.fetch(file, self._private_folder(file))
        header, _ = read_header(path, file)
        planned = {t.name: t for t in self.tensors.values() if t.file == file}
        if header != planned:
            raise CorruptError(f"{file} as fetched differs from its header on the Hub.", "Delete it and run again.")
        return path

    def _private_folder(self, file: str) -> Path | None:
        """The folder that a file is fetched into instead of the cache: one for each file."""
        return None if self._private is None else self._private / file.replace("/", "--")

    def _drop(self, file: str) -> None:
        if (folder := self._private_folder(file)) is not None:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the source: id and commit, or each file's size, header and both ends of its tensors."""
        if self.repo is not None:
            return {"repo": self.id, "revision": self.revision}
        hashes = {f: hashlib.sha256(_header(self.root / f)) for f in sorted({t.file for t in self.tensors.values()})}
        for info in self.tensors.values():
            n = min(_SAMPLE, info.nbytes)
            hashes[info.file].update(self.read_bytes(info, 0, n) + self.read_bytes(info, info.nbytes - n, n))
        return {
            "files": {f: [(self.root / f).stat().st_size, h.hexdigest()[:16]] for f, h in hashes.items()},
            "others": {n: _sha256(self.root / n)[:16] for n in self.sidecar_files},
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _header(path: Path) -> bytes:
    with path.open("rb") as f:
        length = f.read(8)
        return length + f.read(int.from_bytes(length, "little"))
