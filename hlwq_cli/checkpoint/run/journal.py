"""The journal of an unfinished run: it lists the complete shards, so that the next run need not make them again.

Its first line is the fingerprint, with the names of all other files that the run writes. While a run with --overwrite
removes an earlier result, it also holds the names of those files. Each other line is one finished shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConflictError, HlwqError
from ..format import JOURNAL, ShardRecord, describe_differences, disk_errors, dump_shard, read_shard, write_file
from ..io import is_inside, read_text

_WRITES, _REPLACES = "writes", "replaces"


def journal_differences(folder: Path, fingerprint: dict[str, Any]) -> str:
    """Return how an unfinished run in `folder` differs from `fingerprint`, in a few words, or "" if it does not."""
    theirs = _first_line(folder)
    if theirs is None:
        return "a journal that cannot be read"
    known = {key: value for key, value in theirs.items() if key not in (_WRITES, _REPLACES)}
    return describe_differences(fingerprint, known)


def journal_files(folder: Path) -> list[str]:
    """Return the names of files, other than shards, that the unfinished run in `folder` writes or replaces."""
    return [*_names(folder, _WRITES), *replaced_files(folder)]


def replaced_files(folder: Path) -> list[str]:
    """Return the names of files of an earlier result that the unfinished run in `folder` has yet to remove."""
    return _names(folder, _REPLACES)


def _names(folder: Path, kind: str) -> list[str]:
    names = (_first_line(folder) or {}).get(kind)
    return [name for name in names if is_inside(name)] if isinstance(names, list) else []


def _lines(folder: Path) -> list[str]:
    """Return the lines of the journal; a single one if there is none, or if it cannot be read."""
    try:
        return read_text(folder / JOURNAL).split("\n")
    except (HlwqError, UnicodeDecodeError):
        return [""]


def _first_line(folder: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(_lines(folder)[0])
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class Journal:
    """The finished shards of an unfinished run.

    Attributes:
        path: path of the file.
        fingerprint: fingerprint of the current run.
        writes: names of the files, other than shards, that the run writes.
        shards: finished shards by file name.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], writes: Sequence[str] = ()) -> None:
        self.path = folder / JOURNAL
        self.fingerprint, self.writes = fingerprint, list(writes)
        self.shards: dict[str, ShardRecord] = {}

    def begin_replacing(self, names: Iterable[str]) -> None:
        """Start a new journal that names the files of an earlier result, before the first of them is removed."""
        self._write([], {_REPLACES: list(names)})

    def open(self) -> None:
        """Start a journal, or continue the existing one. All files to replace must be removed.

        Raises:
            ConflictError: the existing one belongs to a run with other arguments.
        """
        lines = _lines(self.path.parent)
        if len(lines) == 1:  # absent, or cut off within its first line
            self._write([])
            return
        different = journal_differences(self.path.parent, self.fingerprint)
        if different:
            raise ConflictError(
                f"{self.path.parent} holds an unfinished run that differs in {different}.",
                "Use the same arguments to continue it, or --overwrite to start again.",
            )
        whole = []
        for line in lines[1:-1]:
            try:
                record = read_shard(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # its shard is made again
            whole.append(line)
            path = self.path.parent / record.file.name
            if path.is_file() and path.stat().st_size == record.file.size:
                self.shards[record.file.name] = record
        self._write(whole)

    def add(self, record: ShardRecord) -> None:
        """Add a finished shard. It is on disk when this returns."""
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "w") as f:
                f.write(json.dumps(dump_shard(record)) + "\n")
                f.flush()
                os.fsync(f.fileno())
        self.shards[record.file.name] = record

    def _write(self, lines: Sequence[str], more: Mapping[str, Any] = {}) -> None:
        first = json.dumps({**self.fingerprint, _WRITES: self.writes, **more})
        write_file(self.path, "".join(f"{line}\n" for line in (first, *lines)).encode())
