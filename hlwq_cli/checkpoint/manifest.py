"""What a run wrote: the manifest of a finished checkpoint, and the journal of an unfinished one."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConflictError, CorruptError, NotFoundError
from .jobs import CodedTensor, KeptTensor
from .plan import Plan
from .shards import FORMAT_VERSION, disk_errors, write_file

MANIFEST = "hlwq_manifest.json"
JOURNAL = ".hlwq_run.jsonl"


@dataclass(frozen=True)
class TensorRecord:
    """A coded tensor as written.

    Attributes:
        name: module path, and the parameter's name for stacked experts.
        role: of its source.
        shape: (out, in), or (experts, out, in).
        bits: width of a code.
        bytes: stored bytes of codes, scales and base.
        sha256: of codes, scales and base, in this order.
        nmse: ||W - W'||^2 / ||W||^2, to 5 digits.
        sources: names of its source tensors, in the order of its rows.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    bits: int
    bytes: int
    sha256: str
    nmse: float
    sources: tuple[str, ...]

    @property
    def matrices(self) -> int:
        """How many matrices it holds: its experts, or one."""
        return self.shape[0] if len(self.shape) == 3 else 1


@dataclass(frozen=True)
class KeptRecord:
    """A tensor copied bit for bit."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str
    reason: str


@dataclass(frozen=True)
class FileRecord:
    """A file of the checkpoint."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: a line of the journal."""

    file: FileRecord
    coded: tuple[TensorRecord, ...]
    kept: tuple[KeptRecord, ...]


@dataclass(frozen=True)
class Manifest:
    """hlwq_manifest.json: what the checkpoint is made of, and of what it was made."""

    fingerprint: dict[str, Any]
    tool: dict[str, str]
    source: dict[str, Any]
    rule: str
    source_bytes: int
    files: tuple[FileRecord, ...]
    coded: tuple[TensorRecord, ...]
    kept: tuple[KeptRecord, ...]
    dropped: tuple[dict[str, str], ...]
    format_version: int = FORMAT_VERSION

    @property
    def coded_bytes(self) -> int:
        """Stored bytes of coded tensors."""
        return sum(t.bytes for t in self.coded)

    @property
    def kept_bytes(self) -> int:
        """Bytes of kept tensors."""
        return sum(t.bytes for t in self.kept)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits of coded tensors over their weights."""
        weights = sum(math.prod(t.shape) for t in self.coded)
        return 8 * self.coded_bytes / weights if weights else 0.0

    def dump(self) -> bytes:
        """The file's bytes."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Read a finished checkpoint's manifest.

    Raises:
        NotFoundError: the folder has none.
        CorruptError: it cannot be understood.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise NotFoundError(
                f"{folder} holds an unfinished run.", "Run the same quantize command again to finish it."
            )
        raise NotFoundError(
            f"{folder} is not an HLWQ checkpoint: it has no {MANIFEST}.", "Make one with `hlwq quantize`."
        )
    try:
        document = json.loads(path.read_text())
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise CorruptError(f"{path} has format version {version}, not {FORMAT_VERSION}.", "Update hlwq.")
        document["files"] = tuple(FileRecord(**f) for f in document["files"])
        document["coded"] = tuple(_tensor(t) for t in document["coded"])
        document["kept"] = tuple(_kept(t) for t in document["kept"])
        document["dropped"] = tuple(document["dropped"])
        return Manifest(**document)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} cannot be understood: {error}.", "Fetch the checkpoint again.") from error


def _tensor(document: dict[str, Any]) -> TensorRecord:
    return TensorRecord(**{**document, "shape": tuple(document["shape"]), "sources": tuple(document["sources"])})


def _kept(document: dict[str, Any]) -> KeptRecord:
    return KeptRecord(**{**document, "shape": tuple(document["shape"])})


def fingerprint(plan: Plan, max_shard_bytes: int) -> dict[str, Any]:
    """What decides a run's bytes; two runs with the same fingerprint write the same files."""
    return {
        "source": plan.source.fingerprint(),
        "recipe": plan.recipe.as_json(),
        "plan": plan.digest(),
        "max_shard_bytes": max_shard_bytes,
        "tool": __version__,
    }


def describe_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How two fingerprints differ, in a few words; empty where they do not."""
    found = _differences(ours, theirs)
    telling = [d for d in found if not d.startswith(("plan ", "recipe.role_bits"))] or found
    more = f" and {len(telling) - 3} more" if len(telling) > 3 else ""
    return ", ".join(telling[:3]) + more


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} (now {a}, then {b})")
    return found


class Journal:
    """The finished shards of a run that is not finished: first line the fingerprint, then one line a shard."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.fingerprint = fingerprint
        self.shards: dict[str, ShardRecord] = {}

    def open(self) -> None:
        """Start a journal, or continue the one that is there.

        Raises:
            ConflictError: the one that is there belongs to a run with other arguments.
        """
        lines = self.path.read_text().split("\n") if self.path.exists() else []
        if not lines or len(lines) == 1:  # absent, or cut off within its first line
            write_file(self.path, json.dumps(self.fingerprint).encode() + b"\n")
            return
        different = describe_differences(self.fingerprint, json.loads(lines[0]))
        if different:
            raise ConflictError(
                f"{self.path.parent} holds an unfinished run that differs in {different}.",
                "Use the same arguments to continue it, or --overwrite to start anew.",
            )
        whole = lines[1:-1]  # a line is whole when a newline ends it
        for line in whole:
            record = _shard_record(json.loads(line))
            path = self.path.parent / record.file.name
            if path.is_file() and path.stat().st_size == record.file.size:
                self.shards[record.file.name] = record
        write_file(self.path, "\n".join([lines[0], *whole, ""]).encode())

    def add(self, record: ShardRecord) -> None:
        """Note a finished shard, on disk before this returns."""
        with disk_errors(self.path), self.path.open("a") as f:
            f.write(json.dumps(asdict(record)) + "\n")
            f.flush()
            os.fsync(f.fileno())
        self.shards[record.file.name] = record


def _shard_record(document: dict[str, Any]) -> ShardRecord:
    return ShardRecord(
        FileRecord(**document["file"]),
        tuple(_tensor(t) for t in document["coded"]),
        tuple(_kept(t) for t in document["kept"]),
    )


def coded_record(job: CodedTensor, sha256: str, nmse: float) -> TensorRecord:
    """The record of a coded tensor."""
    sources = tuple(p.name for p in job.parts)
    return TensorRecord(
        job.name, job.role, job.shape, job.scheme.bits, job.nbytes, sha256, float(f"{nmse:.4e}"), sources
    )


def kept_record(job: KeptTensor, sha256: str) -> KeptRecord:
    """The record of a kept tensor."""
    info = job.info
    return KeptRecord(info.name, job.role, info.dtype, info.shape, info.nbytes, sha256, job.reason)
