"""Is a checkpoint what its manifest says: sizes, hashes, and scales that are numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .reader import CodedCheckpoint
from .records import FileRecord, KeptRecord, TensorRecord
from .safetensors_file import DTYPES, TensorInfo

_STEP = 8 * 2**20


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        files: how many were hashed.
        bytes: how many were read.
        problems: one sentence each; none when all is well.
    """

    files: int
    bytes: int
    problems: tuple[str, ...]


def hash_file(path: Path, progress: Callable[[int], None] = lambda n: None) -> str:
    """sha256 of a file; `progress` is told of every piece read."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(_STEP):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def file_record(folder: Path, name: str) -> FileRecord:
    """Size and hash of a file of `folder`."""
    return FileRecord(name, (folder / name).stat().st_size, hash_file(folder / name))


def verify(checkpoint: CodedCheckpoint, progress: Callable[[int], None] = lambda n: None) -> VerifyReport:
    """Hash every file of a checkpoint and look at every scale.

    Args:
        checkpoint: an opened one, whose shapes and sizes have been checked.
        progress: told the bytes of every piece read.
    """
    records = checkpoint.manifest.files
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [p for p in pool.map(lambda r: _check_file(checkpoint, r, progress), records) if p]
        for found in pool.map(lambda r: _check_coded(checkpoint, r), checkpoint.manifest.coded):
            problems += found
        for found in pool.map(
            lambda r: _check_hash(checkpoint, r, [checkpoint.tensors[r.name]]), checkpoint.manifest.kept
        ):
            problems += found
    return VerifyReport(len(records), sum(r.size for r in records), tuple(problems))


def _check_file(checkpoint: CodedCheckpoint, record: FileRecord, progress: Callable[[int], None]) -> str:
    path = checkpoint.path(record.name)
    if not path.is_file():
        return f"{record.name} is missing"
    if hash_file(path, progress) != record.sha256:
        return f"{record.name} is not what the manifest states: its sha256 differs"
    return ""


def _check_coded(checkpoint: CodedCheckpoint, record: TensorRecord) -> list[str]:
    return _check_hash(checkpoint, record, checkpoint.stored(record)) + _check_scales(checkpoint, record)


def _check_hash(checkpoint: CodedCheckpoint, record: TensorRecord | KeptRecord, stored: list[TensorInfo]) -> list[str]:
    digest = hashlib.sha256()
    for info in stored:
        for at in range(0, info.nbytes, _STEP):
            digest.update(checkpoint.read_bytes(info, at, min(_STEP, info.nbytes - at)))
    return [] if digest.hexdigest() == record.sha256 else [f"{record.name} is not what the manifest states"]


def _check_scales(checkpoint: CodedCheckpoint, record: TensorRecord) -> list[str]:
    """Float16 scales and bf16 bases must be finite and not negative."""
    problems = []
    for info in checkpoint.stored(record)[1:]:
        if info.dtype == "U8":
            continue
        values = torch.frombuffer(checkpoint.read_bytes(info, 0, info.nbytes), dtype=DTYPES[info.dtype])
        bad = int((~(values.isfinite() & (values >= 0))).sum())
        if bad:
            problems.append(f"{info.name} has {bad} values that are negative, infinite or NaN")
    return problems
