"""Check a checkpoint against its manifest: sizes, hashes, and whether all scales are finite numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from blake3 import blake3

from ...errors import CorruptError, NotFoundError
from ...progress import ProgressCallback, ProgressCounter, ignore_progress
from ..io import DTYPES, TensorInfo, open_regular, read_errors
from .manifest import Manifest
from .manifest_entries import FileRecord, KeptRecord, TensorRecord
from .reader import CodedCheckpoint
from .shards import shard_header

_STEP = 2 * 2**20
"""Bytes read and hashed at a time. The buffer is reused and small enough to stay in the processor's cache."""

Count = Callable[[int], None]


def _ignore_count(_: int) -> None:
    pass


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        files: number of files in the manifest.
        bytes: their total size.
        problems: one sentence per problem; empty if there is none.
    """

    files: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        count = len(self.problems)
        return "all files match the manifest" if not count else f"{count} problem{'s' if count > 1 else ''}"


def hash_file(path: Path, count: Count = _ignore_count) -> str:
    """Return the sha256 of a file; `count` is called with the number of bytes of every piece that was hashed."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_STEP))
    with path.open("rb", buffering=0) as f, read_errors(path, path.name):
        while length := f.readinto(buffer):
            digest.update(buffer[:length])
            count(length)
    return digest.hexdigest()


def tensor_hash(checkpoint: CodedCheckpoint, stored: Iterable[TensorInfo], count: Count = _ignore_count) -> str:
    """Return the blake3 of stored tensors, one after the other; `count` is called as for `hash_file`."""
    digest, buffer = blake3(), memoryview(bytearray(_STEP))
    for info in stored:
        for at in range(0, info.nbytes, _STEP):
            piece = buffer[: info.nbytes - at]
            checkpoint.read_into(info, at, piece)
            digest.update(piece)
            count(len(piece))
    return digest.hexdigest()


def file_record(folder: Path, name: str) -> FileRecord:
    """Return the size and hash of a file in `folder`."""
    return FileRecord(name, (folder / name).stat().st_size, hash_file(folder / name))


def with_all_hashes(folder: Path, manifest: Manifest, progress: ProgressCallback = ignore_progress) -> Manifest:
    """Return a manifest with the hash of every file. Missing hashes are computed from the files in `folder`."""
    missing = [f for f in manifest.files if f.sha256 is None]
    counter = ProgressCounter(progress, "hashing", sum(f.size for f in missing))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(lambda f: hash_file(folder / f.name, counter.add), missing)
        return manifest.with_files(replace(f, sha256=h) for f, h in zip(missing, hashes, strict=True))


def bytes_to_verify(manifest: Manifest) -> int:
    """Return the number of bytes that `verify` hashes: all tensors, and all files whose hash is in the manifest."""
    return manifest.output_bytes + sum(f.size for f in manifest.files if f.sha256 is not None)


def verify(checkpoint: CodedCheckpoint, progress: ProgressCallback = ignore_progress) -> VerifyReport:
    """Hash every tensor of a checkpoint and every file whose hash is in the manifest, and check every scale.

    A shard without a hash in the manifest is checked completely, too: see `_check_unstated`.

    Args:
        checkpoint: an open checkpoint. `open_coded` has checked its shapes and sizes.
        progress: called after each hashed piece; the total is `bytes_to_verify`.
    """
    manifest = checkpoint.manifest
    count = ProgressCounter(progress, "hashing", bytes_to_verify(manifest)).add
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = (
            pool.map(lambda r: _check_file(checkpoint, r, count), manifest.files),
            pool.map(lambda r: _check_coded(checkpoint, r, count), manifest.coded),
            pool.map(lambda r: _check_hash(checkpoint, r, [checkpoint.tensors[r.name]], count), manifest.kept),
        )
        problems = tuple(problem for part in found for some in part for problem in some)
    return VerifyReport(len(manifest.files), sum(r.size for r in manifest.files), problems)


def _check_file(checkpoint: CodedCheckpoint, record: FileRecord, count: Count) -> list[str]:
    try:
        path = checkpoint.path(record.name)
        os.close(open_regular(path, record.name))
    except NotFoundError:
        return [f"{record.name} is missing"]
    except CorruptError:
        return [f"{record.name} is not a regular file"]
    if record.sha256 is None:
        return _check_unstated(checkpoint, record, path)
    if hash_file(path, count) != record.sha256:
        return [f"{record.name} does not match the manifest: its sha256 differs"]
    return []


def _check_unstated(checkpoint: CodedCheckpoint, record: FileRecord, path: Path) -> list[str]:
    """Check the size and header of a shard whose hash is not in the manifest.

    Its tensors have hashes, and they fill the file after the header without a gap. The header must be the one that
    `shard_header` makes for these tensors, byte for byte, spaces and metadata included.
    """
    if path.stat().st_size != record.size:
        return [f"{record.name} does not have the size in the manifest"]
    tensors = [t for t in checkpoint.tensors.values() if t.file == record.name]
    header = shard_header([(t.name, DTYPES[t.dtype], t.shape) for t in tensors if t.dtype in DTYPES])
    with path.open("rb") as f:
        same = f.read(len(header)) == header
    return [] if same else [f"{record.name} does not match the manifest: its header differs"]


def _check_coded(checkpoint: CodedCheckpoint, record: TensorRecord, count: Count) -> list[str]:
    return _check_hash(checkpoint, record, checkpoint.stored(record), count) + _check_scales(checkpoint, record)


def _check_hash(
    checkpoint: CodedCheckpoint, record: TensorRecord | KeptRecord, stored: list[TensorInfo], count: Count
) -> list[str]:
    if tensor_hash(checkpoint, stored, count) == record.blake3:
        return []
    return [f"{record.name} in {stored[0].file} does not match the manifest"]


def _check_scales(checkpoint: CodedCheckpoint, record: TensorRecord) -> list[str]:
    """Check that float16 scales and bfloat16 bases are finite and not negative."""
    problems = []
    for info in checkpoint.stored(record)[1:]:
        if info.dtype == "U8":
            continue
        bad = 0
        for at in range(0, info.nbytes, _STEP):
            data = checkpoint.read_bytes(info, at, min(_STEP, info.nbytes - at))
            values = torch.frombuffer(data, dtype=DTYPES[info.dtype])
            bad += int((~(values.isfinite() & (values >= 0))).sum())
        if bad:
            problems.append(f"{info.name} has {bad} values that are negative, infinite or NaN")
    return problems
