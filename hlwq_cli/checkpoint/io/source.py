"""The source of the weights: a folder or a Hub repository, read by slice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import CorruptError
from .hub_repo import HubRepo
from .local_files import check_inside, open_regular, read_errors
from .open_files import PREFETCH_FILES, PrefetchedFiles
from .safetensors_file import DTYPES, TensorInfo, read_header, read_into
from .weight_files import WEIGHT_SUFFIXES

_SAMPLE = 4096


@dataclass
class Source:
    """An unquantized checkpoint.

    Attributes:
        id: the path or Hub id, as given by the user.
        revision: the commit, for a Hub repository.
        config: contents of config.json.
        tensors: all tensors, in the order of files and offsets.
        sidecar_files: names of all files to copy, relative to the root: files without weights, and small modules that
            transformers does not load with the model.
        root: the folder that files are read from.
        repo: the Hub repository that files are fetched from on demand, or None.
        sidecar_bytes: size of the weights among the sidecar files.
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
        """Return the total size of the `count` largest files of weights."""
        sizes: Counter[str] = Counter()
        for info in self.tensors.values():
            sizes[info.file] = max(sizes[info.file], info.offset + info.nbytes)
        return sum(n for _, n in sizes.most_common(count))

    def path(self, file: str) -> Path:
        """Return the local path of a sidecar file. The file is fetched first if it is not there."""
        if self.repo is None:
            check_inside(self.root, file)
            return self.root / file
        return self.repo.fetch(file, self._private_folder(file) if file.endswith(WEIGHT_SUFFIXES) else None)

    def read(self, info: TensorInfo, first_row: int = 0, rows: int | None = None) -> torch.Tensor:
        """Return rows of a tensor, (rows, last dimension) in its dtype; its leading dimensions count as one."""
        columns = info.shape[-1] if info.shape else 1
        rows = info.rows - first_row if rows is None else rows
        row_bytes = columns * DTYPES[info.dtype].itemsize
        data = self.read_bytes(info, first_row * row_bytes, rows * row_bytes)
        return torch.frombuffer(data, dtype=DTYPES[info.dtype]).view(rows, columns)

    def read_bytes(self, info: TensorInfo, start: int, length: int) -> bytearray:
        """Return `length` bytes of a tensor's data from byte `start`."""
        data = bytearray(length)
        self.read_into(info, start, memoryview(data))
        return data

    def read_into(self, info: TensorInfo, start: int, buffer: memoryview) -> None:
        """Fill a buffer with a tensor's data from byte `start`."""
        read_into(self._files.descriptor(info.file), buffer, info.offset + start, info.file)

    def prefetch(self, files: Sequence[str], private: Path | None = None) -> None:
        """Fetch files of a Hub repository ahead of their use. Each must be released in the end.

        Args:
            files: file names in the order of their use.
            private: a folder to fetch into instead of the cache. A file is removed from it when it is released. All
                other content of the folder is removed now.
        """
        if self.repo is None:
            return
        self._private = private
        if private is not None and private.is_dir():
            kept = {folder.name for f in files[:PREFETCH_FILES] if (folder := self._private_folder(f)) is not None}
            for old in private.iterdir():
                if old.is_symlink() or not old.is_dir():  # hlwq makes folders only
                    old.unlink()
                elif old.name not in kept:
                    shutil.rmtree(old)
        self._files.prefetch(files)

    def open_file(self, file: str) -> None:
        """Wait until a file can be read."""
        self._files.descriptor(file)

    def release(self, file: str) -> None:
        """Release a file that was given to `prefetch` and will not be read again."""
        if self.repo is not None:
            self._files.release(file)

    def stop(self) -> None:
        """Fetch no more files. Threads that wait for one get a CancelledError."""
        self._files.stop()

    def _locate(self, file: str) -> Path:
        if self.repo is None:
            return self.path(file)
        path = self.repo.fetch(file, self._private_folder(file))
        header, _ = read_header(path, file)
        planned = {t.name: t for t in self.tensors.values() if t.file == file}
        if header != planned:
            raise CorruptError(f"{file} as fetched differs from its header on the Hub.", "Delete it and run again.")
        return path

    def _private_folder(self, file: str) -> Path | None:
        """Return the folder that a file is fetched into instead of the cache, or None. Each file has its own."""
        return None if self._private is None else self._private / file.replace("/", "--")

    def _drop(self, file: str) -> None:
        if (folder := self._private_folder(file)) is not None:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the source: id and commit, or the size and a hash of each file.

        The hash of a file of weights covers its header and both ends of each tensor. So the time of its last change is
        a part of the fingerprint, too.
        """
        if self.repo is not None:
            return {"repo": self.id, "revision": self.revision}
        hashes = {f: hashlib.sha256(_header(self.path(f))) for f in sorted({t.file for t in self.tensors.values()})}
        for info in self.tensors.values():
            n = min(_SAMPLE, info.nbytes)
            hashes[info.file].update(self.read_bytes(info, 0, n) + self.read_bytes(info, info.nbytes - n, n))
        return {
            "files": {f: [self.path(f).stat().st_size, h.hexdigest()[:16]] for f, h in hashes.items()},
            "others": {n: _sha256(self.path(n))[:16] for n in self.sidecar_files},
            "modified": self._times_of_change(),
        }

    def _times_of_change(self) -> dict[str, int]:
        """Return when each local file of weights was changed last, in nanoseconds."""
        return {f: self.path(f).stat().st_mtime_ns for f in sorted({t.file for t in self.tensors.values()})}

    def check_unchanged(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise CorruptError if a local file of weights has changed since `fingerprint` was made."""
        if self.repo is not None:
            return
        before = fingerprint["modified"]
        changed = [name for name, time in self._times_of_change().items() if time != before[name]]
        if changed:
            raise CorruptError(
                f"{changed[0]} of {self.id} was changed while it was read.", "Run again, with --overwrite."
            )


def _sha256(path: Path) -> str:
    with os.fdopen(open_regular(path), "rb") as f, read_errors(path, path.name):
        return hashlib.file_digest(f, "sha256").hexdigest()


def _header(path: Path) -> bytes:
    with os.fdopen(open_regular(path), "rb") as f, read_errors(path, path.name):
        length = f.read(8)
        return length + f.read(int.from_bytes(length, "little"))
